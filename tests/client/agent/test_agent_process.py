"""The agent as a process over TLS: killed, restarted, and its server too; the same bytes come out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

from headwater.client.agent.known_runs import KnownRuns
from headwater.client.execution.execute import execute
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.data.federated import FederatedData
from headwater.flower import pack, unpack
from headwater.proto.wire import decode_reply, decode_signed
from headwater.protocol.messages import ClientProfile, EncodedUpdate
from headwater.security.signing import Identity, verify_reply
from headwater.seeds.keys import Key
from headwater.training.context import TrainingContext
from tests.client.agent.devices import (
    RUN,
    agent_file,
    parts,
    profile_request,
    vector_federation,
    vector_train,
)
from tests.flower_layer.deployment import Server

FEDERATION = vector_federation(codec={"up": {"kind": "dense"}})  # no error feedback: nothing but the outbox


@pytest.fixture
def server(tmp_path):
    found = Server(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def device(tmp_path, server):
    """Ann, accepted by the server."""
    folder = tmp_path / "ann"
    agent_file(folder, server=f"127.0.0.1:{server.port}")
    (folder / "ca.pem").write_bytes(server.ca)
    identity = Identity.create("ann")
    identity.save(folder / "state" / "keys")
    server.registry.add(identity)
    server.link.register("ann", identity.public.node_key)
    return folder, identity


@contextlib.contextmanager
def agent(folder: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "headwater", "client", "run", str(folder / "agent.toml")],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def push(server, request) -> str:
    kind = {"ProfileRequest": "query", "TrainRequest": "train"}[type(request).__name__]
    (found,) = server.link.grid.push_messages(
        [Message(pack(**parts(request)), server.link.node_of("ann"), kind)]
    )
    return found


def pull(server, message_id: str, identity, seconds: float = 60) -> bytes:
    """The signed reply."""
    ends = time.monotonic() + seconds
    while not (found := list(server.link.grid.pull_messages([message_id]))):
        assert time.monotonic() < ends, "no reply"
        time.sleep(0.05)
    (signed,) = unpack(found[0].content, "reply")
    data, signature = decode_signed(signed, max_bytes=10**6)
    verify_reply(identity.public, data, signature)
    return signed


def reply(signed: bytes):
    return decode_reply(decode_signed(signed, max_bytes=10**6)[0], max_bytes=10**6)


def worker_of(pid: int) -> int:
    """The agent's child, once there is one."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            return int(found[0])
        for task in Path(f"/proc/{pid}/task").iterdir():
            if found := (task / "children").read_text().split():
                return int(found[0])
        time.sleep(0.02)
    raise AssertionError("no worker")


def wait_until(folder: Path, doing: str) -> None:
    """Wait until the agent says so, or the test's own limit is over."""
    while json.loads((folder / "state" / "status.json").read_text())["doing"] != doing:
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def undisturbed(folder: Path, task) -> EncodedUpdate:
    loaded = KnownRuns(folder / "oracle").join(profile_request(FEDERATION)).loaded(None)
    root = Key.root(FEDERATION.federation.seed)
    data = FederatedData.own(loaded, folder, "ann", None, root)
    runtime = ClientRuntime(RUN, TrainingContext.open(loaded), data, root)
    (found,) = execute([task], MemoryStore(), runtime)
    return decode_reply(found.data, max_bytes=10**6)


def test_killed_at_every_turn_the_agent_sends_what_an_undisturbed_one_sends(server, device, tmp_path):
    folder, identity = device
    task = vector_train(FEDERATION)
    with agent(folder) as process:
        assert isinstance(
            reply(pull(server, push(server, profile_request(FEDERATION)), identity)), ClientProfile
        )
        worker = worker_of(process.pid)
        os.kill(worker, signal.SIGSTOP)  # the task is out and will never be answered
        message = push(server, task)
        wait_until(folder, "train")
        process.kill()
        os.kill(worker, signal.SIGCONT)
        while not gone(worker):  # until the test's own limit
            time.sleep(0.02)
    with agent(folder) as process:  # under the same name, at once, without a new profile request
        first = pull(server, message, identity)
        expected = undisturbed(tmp_path, task)
        assert replace(reply(first), metrics={}) == replace(expected, metrics={})
        worker = worker_of(process.pid)
        server.stop()  # and with it everything it had
        server.start()
        again = push(server, task)
        assert pull(server, again, identity) == first
        assert worker_of(process.pid) == worker
        wait_until(folder, "idle")
        os.kill(worker, signal.SIGSTOP)
        push(server, vector_train(FEDERATION, round=2))
        wait_until(folder, "train")
        process.terminate()  # in the middle of a task
        assert process.wait() == 0
        assert gone(worker)
    log = (folder / "state" / "agent.log").read_text()
    assert "answered again with the same bytes" in log
    assert log.rstrip().endswith("ended")
