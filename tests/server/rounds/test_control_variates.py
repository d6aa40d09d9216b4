"""SCAFFOLD through the real strategy, wire, client path and trainer, on clients that are parabolas."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headwater.client.execution.control_variate import ControlVariate, from_bytes, to_bytes
from headwater.client.execution.execute import execute
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import DirectoryStore, MemoryStore
from headwater.config.codec import DenseCodec
from headwater.errors import DecodeError, HeadwaterError, SpecMismatch, StorageError
from headwater.proto import wire
from headwater.proto.plan_json import plan_from_json, plan_to_json
from headwater.protocol.messages import ClientPlan, ClientProfile, TrainRequest
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Downlink
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.rounds.open_round import OpenRound
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies import FederatedStrategy
from headwater.tasks.batches import Example
from headwater.training.backprop import BackpropTrainer
from tests.strategies.test_federated import federation
from tests.support.quadratic import Output, Quadratic

SPEC = StateSpec.of([TensorSpec("body", (2,), "vector"), TensorSpec("head", (1,), "head")])
RUN, ROOT, ZERO = "r" * 32, Key.root(3), AdapterState.zeros(SPEC)
CLIENTS = {"ann": 0, "bo": 1, "cleo": 2}
TARGETS = torch.tensor([[0.0, 1.0, -1.0], [1.0, -1.0, 2.0], [3.0, 0.5, 0.5]]).double()
CURVATURES = torch.tensor([[1.0, 1.0, 0.5], [6.0, 3.0, 4.0], [2.0, 0.5, 1.0]]).double()
SGD = {"kind": "backprop", "optimizer": "sgd", "learning_rate": 0.05, "head_learning_rate": 0.1}
SGD |= {"epochs": 10, "batch_size": 1, "max_grad_norm": 1e9}
SCAFFOLD = {"kind": "mean", "weighting": "equal", "control_variates": True}


class Parabolas(Quadratic):
    """Each example has a curvature of its own: ½ Σ hᵢ·(w − tᵢ)²."""

    def forward(self, batch):
        rows = batch.tokens[:, 0]
        away = self._flat() - self.targets[rows]
        return Output((0.5 * CURVATURES[rows] * away**2).sum(1), torch.ones(len(batch), dtype=torch.int64))


def optimum(names):
    """Of the sum of these clients' losses, equally weighted."""
    rows = [CLIENTS[name] for name in names]
    return (CURVATURES[rows] * TARGETS[rows]).sum(0) / CURVATURES[rows].sum(0)


class World:
    """A server and its clients, whose stores outlive every task."""

    def __init__(self, names=("ann", "bo"), store=None, **tables):
        tables = {"strategy": SCAFFOLD, "training": SGD, "codec": {"up": {"kind": "dense"}}, **tables}
        settings = federation(**tables)
        self.strategy = FederatedStrategy(settings)
        self.server, self.accepted = self.strategy.init(ZERO), dict.fromkeys(names, 0)
        self.store = store or MemoryStore()
        context = SimpleNamespace(
            loaded=SimpleNamespace(settings=settings),
            spec=SPEC,
            trainer=lambda training: BackpropTrainer(Parabolas(SPEC, TARGETS), 0),
            initial_state=lambda: ZERO,
        )
        data = SimpleNamespace(
            has=names.__contains__, client=lambda name: SimpleNamespace(train=self.examples(name))
        )
        self.runtime = ClientRuntime(RUN, context, data, ROOT)
        self.profiles = {
            n: ClientProfile(n, len(self.examples(n)), 0, "0" * 64, SPEC.fingerprint()) for n in names
        }

    def examples(self, name):
        return [Example(np.array([CLIENTS[name]], np.int32), np.array([0], np.int64))]

    def open(self, names=None):
        there = {n: self.profiles[n] for n in names or self.profiles}
        population = {n: p.train_examples for n, p in self.profiles.items()}
        plan = self.strategy.plan(self.server, there, key=ROOT, population=population)
        down = Downlink(ROOT).open(self.server, DenseCodec(kind="dense"), {})
        return OpenRound(plan, down, RUN, there, self.strategy.aggregator(plan, down.base), ROOT)

    def request(self, open_round, client):
        return wire.decode_request(*wire.encode_request(open_round.request(client, self.accepted[client])))

    def answer(self, request):
        (answer,) = execute([request], self.store, self.runtime)
        return answer.data

    def fold(self, open_round, client, data):
        open_round.fold(ReceivedReply(client, TrainRequest, open_round.plan.round, data, "", len(data), data))

    def round(self, names=None, lost=()):
        """One round of these clients; what the lost ones send does not arrive."""
        open_round = self.open(names)
        for client in open_round.plan.clients:
            data = self.answer(self.request(open_round, client))
            if client not in lost:
                self.fold(open_round, client, data)
                self.accepted[client] = open_round.plan.round
        merged = open_round.merge()
        self.server = self.strategy.update(self.server, merged)
        return merged

    def away(self):
        """How far the adapter is from the optimum of all."""
        return float((self.server.state.vector().double() - optimum(self.profiles)).abs().max())

    def mean_control(self):
        """Of what the clients will go on with."""
        kept = [self.store.load_control(n, SPEC).settled(a) or ZERO for n, a in self.accepted.items()]
        return torch.stack([state.vector().double() for state in kept]).mean(0)


def test_clients_of_different_optima_meet_at_that_of_the_mean_and_fedavg_does_not():
    plain, scaffold = World(strategy={"kind": "mean", "weighting": "equal"}), World()
    for _ in range(40):
        plain.round()
        merged = scaffold.round()
    assert plain.away() > 0.1
    assert scaffold.away() < 1e-4
    assert merged.report["control_norm"] < 1e-3  # at the optimum the gradients cancel
    ann = scaffold.store.load_control("ann", SPEC).settled(40).vector().double()
    wanted = CURVATURES[0] * (optimum(("ann", "bo")) - TARGETS[0])
    assert torch.allclose(ann, wanted, atol=1e-3)


def test_a_round_is_option_2_of_the_paper_in_float64():
    world = World()
    x, c, mine = torch.zeros(3).double(), torch.zeros(3).double(), torch.zeros(2, 3).double()
    rates = torch.tensor([0.05, 0.05, 0.1]).double()
    for _ in range(3):
        ends, after = [], []
        for i in range(2):
            y = x.clone()
            for _ in range(10):
                y = y - rates * (CURVATURES[i] * (y - TARGETS[i]) - mine[i] + c)
            ends.append(y)
            after.append(mine[i] - c + (x - y) / (10 * rates))
        x, change = torch.stack(ends).mean(0), torch.stack(after) - mine
        mine, c = torch.stack(after), c + change.mean(0)
        world.round()
        assert torch.allclose(world.server.state.vector().double(), x, atol=1e-6)
        assert torch.allclose(world.server.control.vector().double(), c, atol=1e-5)


def test_c_stays_the_mean_of_the_clients_whoever_misses_rounds_or_is_not_heard(tmp_path):
    """Two of three a round; every fourth round one update is lost, and its client goes on from before it."""
    world = World(tuple(CLIENTS), DirectoryStore(tmp_path, durable=False))
    names, draw = sorted(CLIENTS), np.random.default_rng(1)
    for number in range(40):
        chosen = sorted(draw.choice(names, 2, replace=False).tolist())
        world.round(chosen, lost=chosen[:1] if number % 4 == 3 else ())
        assert torch.allclose(world.server.control.vector().double(), world.mean_control(), atol=1e-4)
    world.round()
    assert world.away() < 0.05
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.suffix != ".state") == [".control"] * 3


def test_a_task_that_comes_again_gives_the_same_update_and_the_order_of_updates_changes_none():
    world = World()
    world.round()
    open_round, other = world.open(), world.open()
    sent = {client: world.answer(world.request(open_round, client)) for client in ("ann", "bo")}
    for client, data in sent.items():
        again = wire.decode_reply(world.answer(world.request(open_round, client)), max_bytes=100)
        assert again.delta == wire.decode_reply(data, max_bytes=100).delta
    for client in ("ann", "bo"):
        world.fold(open_round, client, sent[client])
    for client in ("bo", "ann"):
        world.fold(other, client, sent[client])
    assert open_round.merge().control == other.merge().control


def test_c_travels_behind_the_state_which_clients_of_a_round_share():
    world = World()
    world.round()
    open_round = world.open()
    ann, bo = (open_round.request(client, 1) for client in ("ann", "bo"))
    assert ann.state.body is bo.state.body
    assert ann.state.body == world.server.state.tobytes() + world.server.control.tobytes()
    assert (ann.plan.control_bytes, ann.state_sha256) == (SPEC.nbytes, world.server.state.sha256())
    assert plan_from_json(plan_to_json(ann.plan)) == ann.plan
    assert plan_to_json(ann.plan).startswith('{"codec":{"dtype":"fp32","kind":"dense"},"control_bytes":12,')
    assert "control_bytes" not in plan_to_json(ClientPlan(ann.plan.training, ann.plan.codec))
    cut = replace(ann, state=replace(ann.state, body=b"short"))
    with pytest.raises(DecodeError, match="12 bytes behind the state"):
        world.runtime.control(cut)


def test_another_number_of_steps_than_asked_for_is_refused():
    """Fewer steps of the same length would make a client's gradient look larger."""
    world = World()
    open_round = world.open()
    update = wire.decode_reply(world.answer(world.request(open_round, "ann")), max_bytes=100)
    with pytest.raises(HeadwaterError, match="10 local steps"):
        world.fold(open_round, "ann", wire.encode_reply(replace(update, steps=1)))
    with pytest.raises(HeadwaterError, match="at least one"):
        open_round.merge()


def test_a_rollback_keeps_c_as_clients_keep_theirs():
    world = World()
    world.round()
    back = world.strategy.rolled_back(world.server, ZERO)
    assert back.control == world.server.control
    assert back.state == ZERO


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"training": {"kind": "backprop"}}, "sgd"),
        ({"training": {**SGD, "proximal_mu": 0.1}}, "proximal_mu"),
        ({"training": {**SGD, "final_learning_rate_fraction": 0.0}}, "final_learning_rate_fraction"),
        ({"training": {"kind": "mezo"}}, "sgd"),
        ({"codec": {"up": {"kind": "compeft"}}}, "dense"),
        ({"schedule": {"kind": "buffered", "buffer": 2}}, "rounds"),
        ({"strategy": {**SCAFFOLD, "space": "rolora"}}, "value by value"),
        ({"strategy": {**SCAFFOLD, "space": "product"}}, "value by value"),
        (
            {
                "methods": {"m": {"training": SGD}},
                "assignment": {"kind": "shares", "shares": {"m": 0.5, "default": 0.5}},
            },
            "one method",
        ),
    ],
)
def test_where_it_would_not_be_exact_it_is_refused(tables, said):
    whole = {"strategy": SCAFFOLD, "training": SGD, "codec": {"up": {"kind": "dense"}}, **tables}
    with pytest.raises(ValueError, match=said):
        federation(**whole)


def test_what_a_client_keeps_comes_back_from_its_file_and_damage_is_seen():
    value = AdapterState.from_vector(SPEC, torch.tensor([1.0, -2.0, 0.5]))
    for kept in (ControlVariate(), ControlVariate(value), ControlVariate(value, 7, ZERO)):
        data = b"".join(bytes(piece) for piece in to_bytes(kept))
        assert from_bytes(data, SPEC) == kept
        for at in (0, 10, len(data) - 1):
            with pytest.raises(StorageError, match="remove it"):
                from_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], SPEC)
    with pytest.raises(SpecMismatch):
        from_bytes(data, StateSpec.of([TensorSpec("v", (3,), "vector")]))
    assert ControlVariate(value, 7, ZERO).settled(6) == value
    assert ControlVariate(value, 7, ZERO).settled(7) == ZERO
    assert ControlVariate(value, 7, ZERO).settled(9) == ZERO  # an older copy was put back
