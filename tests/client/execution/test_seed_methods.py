"""The client path of methods without backprop: scalars, coverage and noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwater.client.execution.execute import execute
from headwater.client.execution.store import DirectoryStore, MemoryStore
from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.seed_update import decode_scalars
from headwater.config.codec import DenseCodec as DenseSettings
from headwater.config.training import MezoTraining
from headwater.errors import ModelError
from headwater.merging.coverage import covered
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import ClientFailure, ClientPlan, EncodedUpdate
from headwater.seeds.coefficients import SeedCoefficients, directions_of
from headwater.state import AdapterState
from headwater.training.cohort import CohortTrainer, TrainResult
from tests.client.execution.seed_requests import COMPEFT, PLAN, SEEDS, dense, fresh, one
from tests.support.runs import OWNERS


class Fixed(CohortTrainer):
    """Trains nothing: gives what it is told to."""

    def __init__(self, delta, noise=0.0):
        self.delta, self.noise = delta, noise

    def train(self, tasks, *, key):
        for task in tasks:
            self.task = task
            yield TrainResult(task.client, self.delta, len(task.examples), noise=self.noise)


@pytest.fixture
def trains(runtime, monkeypatch):
    def as_told(delta, noise=0.0):
        trainer = Fixed(delta, noise)
        monkeypatch.setattr(type(runtime.context), "trainer", lambda self, training: trainer)
        return trainer

    return as_told


def test_a_kseed_round_costs_some_bytes_and_is_repeated_with_the_same(runtime, tmp_path):
    store = DirectoryStore(tmp_path)
    first = one(execute([dense(runtime)], store, runtime))
    assert isinstance(first, EncodedUpdate)
    assert first.delta.codec == "scalars.v1"
    assert len(first.delta.body) < 40
    found = decode_scalars(first.delta, SEEDS)
    assert len(found.seeds) == first.steps == 6
    assert "noise" not in first.metrics
    again = one(execute([dense(runtime)], DirectoryStore(tmp_path), fresh(runtime)))
    assert again.delta == first.delta
    assert list(tmp_path.iterdir()) == []  # no residual, no file


def test_the_trainer_is_given_the_federations_directions(runtime, trains):
    trainer = trains(SeedCoefficients.of(SEEDS, [(3, 5)]))
    update = one(execute([dense(runtime)], MemoryStore(), runtime))
    assert trainer.task.directions == directions_of(SEEDS, runtime.root, runtime.context.spec.numel)
    assert decode_scalars(update.delta, SEEDS).coefficients.tolist() == [5]


def test_scalars_beyond_the_plan_do_not_leave(runtime, trains):
    trains(SeedCoefficients.of(SEEDS, [(3, 40_000)]))
    assert "32767" in one(execute([dense(runtime)], MemoryStore(), runtime)).reason
    trains(AdapterState.zeros(runtime.context.spec))
    assert "expected scalars" in one(execute([dense(runtime)], MemoryStore(), runtime)).reason


def test_a_residual_outlives_rounds_of_scalars(runtime, trains):
    """A client that is switched from deltas to scalars and back loses nothing of what it held back."""
    store, spec = MemoryStore(), runtime.context.spec
    delta = AdapterState.from_vector(spec, torch.linspace(-1, 1, spec.numel))
    plain = replace(PLAN, seeds=None)
    trains(delta)
    one(execute([dense(runtime, plan=plain)], store, runtime))
    held = store.load("ann", spec).pending
    trains(SeedCoefficients.of(SEEDS, [(3, 5)]))
    # round 1 was refused: everything comes back; round 2 says so, not only round 3
    one(execute([dense(runtime, round=2, accepted=0)], store, runtime))
    pending = store.load("ann", spec).pending
    assert pending.round == 2
    assert pending.residual_if_accepted == held.residual_if_accepted + held.sent
    trains(AdapterState.zeros(spec))
    one(execute([dense(runtime, round=3, accepted=2, plan=plain)], store, runtime))
    pending = store.load("ann", spec).pending
    assert (pending.residual_if_accepted + pending.sent - delta).max_abs() < 1e-6


def test_kinds_are_trained_apart_in_one_round(runtime):
    tasks = [
        dense(runtime, client="ann"),
        dense(runtime, client="ben", plan=ClientPlan(runtime.context.loaded.settings.training, COMPEFT)),
        dense(runtime, client="cleo"),
    ]
    answers = {a.client: a.data for a in execute(tasks, MemoryStore(), runtime)}
    assert set(answers) == set(OWNERS)
    for task in tasks:
        alone = one(execute([task], MemoryStore(), runtime))
        assert decode_reply(answers[task.client], max_bytes=10**6).delta == alone.delta


@pytest.mark.parametrize("part", ["tensors", "rank"])
def test_what_is_not_covered_stays_in_the_residual(runtime, trains, part):
    store, spec = MemoryStore(), runtime.context.spec
    delta = AdapterState.from_vector(spec, torch.linspace(-1, 1, spec.numel))
    trains(delta)
    plan = ClientPlan(runtime.context.loaded.settings.training, COMPEFT)
    one(execute([dense(runtime, plan=plan)], store, runtime))  # leaves a residual everywhere
    before = store.load("ann", spec).pending.residual_if_accepted
    limits = {"tensors": (spec.tensors[0].name,)} if part == "tensors" else {"rank": 1}
    mask = covered(spec, limits.get("tensors"), limits.get("rank"))
    trains(AdapterState.zeros(spec))
    update = one(execute([dense(runtime, round=2, accepted=1, plan=replace(plan, **limits))], store, runtime))
    arrived = CompeftGapsCodec().decode(update.delta, spec).vector()
    assert not arrived[~mask].any()
    assert arrived[mask].any()
    held = store.load("ann", spec).pending.residual_if_accepted.vector()
    assert torch.equal(held[~mask], before.vector()[~mask])
    assert torch.allclose(held + arrived, before.vector(), atol=1e-6)


def test_noise_is_told_by_the_methods_that_have_it(runtime, trains):
    delta = AdapterState.zeros(runtime.context.spec)
    mezo = ClientPlan(MezoTraining(kind="mezo"), COMPEFT)
    trains(delta, noise=0.25)
    assert one(execute([dense(runtime, plan=mezo)], MemoryStore(), runtime)).metrics["noise"] == 0.25
    backprop = ClientPlan(runtime.context.loaded.settings.training, COMPEFT)
    assert "noise" not in one(execute([dense(runtime, plan=backprop)], MemoryStore(), runtime)).metrics
    for bad in (-1.0, float("nan"), float("inf")):
        trains(delta, noise=bad)
        assert "noise" in one(execute([dense(runtime, plan=mezo)], MemoryStore(), runtime)).reason


def test_noise_is_that_of_the_update_as_it_is_sent(runtime, trains):
    """A clipped update has less of it: the square of what it was shortened by."""
    spec = runtime.context.spec
    delta = AdapterState.from_vector(spec, torch.full((spec.numel,), 2.0 / spec.numel**0.5))
    trains(delta, noise=0.25)
    plan = ClientPlan(MezoTraining(kind="mezo"), DenseSettings(kind="dense"), clip_l2=0.5)
    update = one(execute([dense(runtime, plan=plan)], MemoryStore(), runtime))
    assert update.metrics["noise"] == pytest.approx(0.25 / 16, rel=1e-6)


def test_what_a_trainer_refuses_ends_that_task_only(runtime, monkeypatch):
    """An error out of the trainer ends its generator: the clients after it are trained all the same."""

    class Choosy(CohortTrainer):
        def train(self, tasks, *, key):
            for task in tasks:
                if task.client == "ben":
                    raise ModelError("adapter", expected="forward mode", got="none")
                yield TrainResult(task.client, SeedCoefficients.of(SEEDS, [(3, 5)]), len(task.examples))

    monkeypatch.setattr(type(runtime.context), "trainer", lambda self, training: Choosy())
    tasks = [dense(runtime, client=name) for name in OWNERS]
    answers = [decode_reply(a.data, max_bytes=10**6) for a in execute(tasks, MemoryStore(), runtime)]
    assert [a.client for a in answers] == list(OWNERS)
    assert [a.client for a in answers if isinstance(a, ClientFailure)] == ["ben"]
    assert "forward mode" in answers[list(OWNERS).index("ben")].reason
