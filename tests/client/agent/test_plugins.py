"""A device runs the kinds of packages that its owner installed and allowed, and tells which it lacks."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest

from headwater.client.agent.problems import read_problems
from headwater.client.agent.task_handler import TaskHandler
from headwater.config import plugins
from headwater.errors import UpdateRejected
from headwater.proto.wire import encode_reply
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import ClientFailure, ClientProfile, ProfileRequest
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.handshake import profile_of
from headwater.server.workspace.run_queue import RunQueue
from tests.client.agent.devices import RUN, agent_file, ask, profile_request, sign, vector_federation
from tests.client.agent.fakes import FakeWorker
from tests.support.plugins import installed_in, write_package

SOURCE = """
from typing import ClassVar, Literal
from headwater.config.traits import TrainingSettings

class Still(TrainingSettings):
    learns_from: ClassVar[str] = "nothing"
    alone: ClassVar[bool] = True
    implementation: ClassVar[str] = "still_life:Trainer"
    kind: Literal["still"]
"""


@pytest.fixture
def folder(tmp_path):
    write_package(tmp_path / "site", "still_life", SOURCE, {"trainers": {"still": "still_life:Still"}})
    with installed_in(tmp_path / "site"):
        yield tmp_path / "site"


@pytest.fixture
def request_(folder):
    """What a server asks that has the package."""
    return profile_request(vector_federation(training={"kind": "still"}))


def device(tmp_path, allow=()):
    settings = agent_file(tmp_path / "device", plugins={"allow": list(allow)})
    plugins.allow_only(settings.file.plugins.allow, plugins.AGENT_ALLOWS)  # as run_agent does
    lines = []
    return TaskHandler(settings, FakeWorker(), sign, lines.append), lines, settings


def test_what_is_installed_and_allowed_is_worked_for(tmp_path, request_):
    handler, _, _ = device(tmp_path, ["trainers:still"])
    assert isinstance(ask(handler, request_), ClientProfile)


def test_without_the_package_the_owner_reads_its_name_and_the_server_its_number(tmp_path, folder, request_):
    handler, lines, settings = device(tmp_path, ["trainers:still"])
    shutil.rmtree(folder)
    plugins._FOUND.clear()
    reply = ask(handler, request_)
    assert reply.failure.code is FailureCode.PLUGIN_MISSING
    assert reply.failure.numbers == (1,)
    assert "still" not in reply.reason
    assert "pip install still-life==1.0" in lines[-1]
    (problem,) = read_problems(settings.state / "problems.json")
    assert "Install it" in problem.advice
    handler.setbacks.problems.keep_runs([])  # the run is not among those that the device knows
    assert list(handler.setbacks.problems)


def test_what_the_owner_does_not_allow_is_not_even_imported(tmp_path, request_):
    sys.modules.pop("still_life", None)
    handler, lines, _ = device(tmp_path)
    reply = ask(handler, request_)
    assert reply.failure.code is FailureCode.POLICY_PLUGINS
    assert 'add "trainers:still"' in lines[-1]
    assert "still_life" not in sys.modules


def test_a_server_that_names_no_package_gets_no_further(tmp_path, request_):
    """Whoever leaves [plugins] out asks for a kind by its name alone, and meets the same rule."""
    bare = request_.federation.replace(',"plugins":{"trainers:still":"still-life 1.0"}', "")
    assert bare != request_.federation
    sys.modules.pop("still_life", None)
    handler, _, _ = device(tmp_path)
    reply = ask(handler, ProfileRequest(RUN, bare, request_.model_sha256, "0.1.0"))
    assert reply.failure.code is FailureCode.POLICY_PLUGINS
    assert "still_life" not in sys.modules


def test_the_organiser_reads_which_package_the_device_lacks(folder):
    federation = vector_federation(training={"kind": "still"})
    failure = ClientFailure("ann", 0, "", RUN, Failure(FailureCode.PLUGIN_MISSING, (1,)))
    data = encode_reply(failure)
    incoming = ReceivedReply("ann", ProfileRequest, 0, data, "", len(data), data)
    context = SimpleNamespace(loaded=SimpleNamespace(settings=federation))
    with pytest.raises(UpdateRejected, match=r"It is still-life 1\.0, for trainers:still") as caught:
        profile_of(incoming, context, RUN, client="ann")
    assert caught.value.failure.code is FailureCode.PLUGIN_MISSING


def test_a_server_queues_no_run_whose_kinds_its_owner_did_not_allow(tmp_path, folder):
    text = '[federation]\nname="t"\nrounds=1\n[model]\nkind="vector"\nsize=4\n'
    text += '[data]\nkind="none"\nclients=2\n[training]\nkind="still"\n'
    (tmp_path / "runs").mkdir()
    book = RunQueue(tmp_path / "runs.json", tmp_path / "runs")
    plugins.allow_only([], plugins.SERVER_ALLOWS)  # as the daemon does at its start
    with pytest.raises(plugins.PluginNotAllowed, match=r"\[plugins\] allow of server\.toml.*trainers:still"):
        book.submit(text, tmp_path)
    plugins.allow_only(["trainers:still"], plugins.SERVER_ALLOWS)
    entry, _ = book.submit(text, tmp_path)
    resolved = (tmp_path / "runs" / entry.run / "federation.toml").read_text()
    assert '"trainers:still" = "still-life 1.0"' in resolved
