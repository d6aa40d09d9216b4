"""A trainer that was added as docs/how-to/add-a-trainer.md says: its updates are sent, and folded.

No list of kinds stands between: what is special about a method stands on its settings class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import pytest

from headwater.client.execution.execute import execute
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.config import load_federation
from headwater.config.codec import DenseCodec as DenseSettings
from headwater.config.training import MinibatchTraining
from headwater.errors import UpdateRejected
from headwater.proto.wire import decode_reply, encode_reply
from headwater.protocol.messages import EncodedUpdate, TrainRequest
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Downlink
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.rounds.open_round import OpenRound
from headwater.strategies import FederatedStrategy
from headwater.training import context as build
from headwater.training.cohort import CohortTrainer, TrainResult
from tests.support.runs import tiny_federation

ROOT = Key.root(0)


class LionTraining(MinibatchTraining):
    kind: Literal["lion"]
    learning_rate: float = 0.5


class NoisyLionTraining(LionTraining):
    noise: ClassVar[Literal["none", "reported", "from coefficients"]] = "reported"


class LionTrainer(CohortTrainer):
    def __init__(self, model, pad):
        pass

    def train(self, tasks, *, key):
        for task in tasks:
            training = task.plan.training
            delta = task.state.map(lambda tensor, rate=training.learning_rate: 0 * tensor + rate * 2**-8)
            noise = 0.25 if training.noise == "reported" else 0.0
            yield TrainResult(task.client, delta, len(task.examples), 1, metrics={"loss": 1.0}, noise=noise)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return ClientRuntime.open(load_federation(tiny_federation(tmp_path_factory.mktemp("fed"))))


def round_of(runtime, training):
    """An open round in which everybody is asked for ``training``, by a strategy that never heard of it."""
    settings = runtime.context.loaded.settings.model_copy(update={"training": training})
    strategy = FederatedStrategy(settings)
    server = strategy.init(runtime.context.initial_state())
    profiles = {client: runtime.profile(client) for client in ("ann", "ben")}
    plan = strategy.plan(server, profiles, key=ROOT)
    down = Downlink(ROOT).open(server, DenseSettings(kind="dense"), {})
    return OpenRound(plan, down, runtime.run, profiles, strategy.aggregator(plan, down.base), ROOT)


def answer(runtime, round_, client="ann"):
    (found,) = execute([round_.request(client, 0)], MemoryStore(), runtime)
    return ReceivedReply(client, TrainRequest, 1, found.data, "", len(found.data), found.data)


@pytest.mark.parametrize(("settings", "noise"), [(LionTraining, None), (NoisyLionTraining, 0.25)])
def test_an_added_trainers_update_is_folded(runtime, monkeypatch, settings, noise):
    monkeypatch.setitem(build._TRAINERS, "lion", LionTrainer)
    round_ = round_of(runtime, settings(kind="lion"))
    assert round_.plan.merge.claimed == (frozenset() if noise is None else frozenset({""}))
    incoming = answer(runtime, round_)
    reply = decode_reply(incoming.data, max_bytes=10**6)
    assert isinstance(reply, EncodedUpdate), reply
    assert reply.metrics.get("noise") == noise
    round_.fold(incoming)
    assert round_._rows["ann"].get("noise") == noise
    assert round_.merge().clients == ("ann",)


def test_one_that_must_say_its_noise_is_refused_without(runtime, monkeypatch):
    monkeypatch.setitem(build._TRAINERS, "lion", LionTrainer)
    round_ = round_of(runtime, NoisyLionTraining(kind="lion"))
    incoming = answer(runtime, round_)
    reply = decode_reply(incoming.data, max_bytes=10**6)
    silent = encode_reply(replace(reply, metrics={k: v for k, v in reply.metrics.items() if k != "noise"}))
    with pytest.raises(UpdateRejected, match="the noise of its update, which 'lion' tells"):
        round_.fold(replace(incoming, data=silent))
