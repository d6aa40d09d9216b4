"""Methods without gradients: a cohort's losses are one batch, and each client's steps are its own."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import DecomflTraining, KseedTraining, MezoTraining
from headwater.errors import TrainingError
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedPlan, directions_of
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.training.batched.losses import BatchedLossTrainer
from headwater.training.decomfl import DecomflTrainer
from headwater.training.kseed import KseedTrainer
from headwater.training.mezo import MezoTrainer
from tests.laws.trainer_laws import same
from tests.support import federations
from tests.training.batched.test_trainer import adapted, tasks_of

MEZO = MezoTraining(kind="mezo", max_steps=4, batch_size=4, learning_rate=1e-3, directions=2)
METHODS = {
    "mezo": (MezoTrainer, MEZO, None),
    "kseed": (
        KseedTrainer,
        KseedTraining(kind="kseed", max_steps=6, batch_size=4, learning_rate=2e-3, seeds=64),
        SeedPlan(0, 64, "rademacher", 15, 6),
    ),
    "decomfl": (
        DecomflTrainer,
        DecomflTraining(kind="decomfl", max_steps=4, directions=3, batch_size=4, learning_rate=2e-3),
        SeedPlan(72, 12, "rademacher", 15, 12, implied=True),
    ),
}


@pytest.fixture(scope="module", params=[("encoder", "bert"), ("causal-lm", "llama")], ids=["bert", "llama"])
def model(request, tmp_path_factory):
    return adapted(tmp_path_factory.mktemp("m"), *request.param)


def of(model, name):
    """Both trainers of a method, and clients' tasks for it."""
    make, training, seeds = METHODS[name]
    plan = ClientPlan(training, DenseCodec(kind="dense"), seeds=seeds)
    along = None if seeds is None else directions_of(seeds, Key.root(3), model.spec.numel)
    tasks = [replace(task, plan=plan, directions=along) for task in tasks_of(model)]
    return make(model, 0), BatchedLossTrainer(model, 0, 8, make), tasks


def learnt(result):
    delta = result.delta
    return delta.vector().numpy() if isinstance(delta, AdapterState) else delta.sums


@pytest.mark.parametrize("name", METHODS)
def test_each_steps_as_it_steps_alone(model, name):
    require_alike(model, name)


@pytest.mark.parametrize("kind", ["prompt", "vera", "dora"])
def test_and_so_it_does_with_other_kinds_of_adapters(kind, tmp_path):
    require_alike(adapted(tmp_path, "encoder", "bert", federations.adapter(kind, "bert")), "mezo")


def require_alike(model, name):
    """In float64, where losses differ by so little that even rounded coefficients are the same."""
    alone, together, tasks = of(model, name)
    model.network.double()
    try:
        pairs = zip(alone.train(tasks, key=Key.root(0)), together.train(tasks, key=Key.root(0)), strict=True)
        for one, other in pairs:
            assert (one.client, one.steps, one.error) == (other.client, other.steps, None)
            assert np.abs(learnt(one)).max() > 0
            assert learnt(other) == pytest.approx(learnt(one), rel=1e-6, abs=1e-9)
            assert other.metrics == pytest.approx(one.metrics, rel=1e-9)
    finally:
        model.network.float()


def test_one_pass_answers_all_who_are_there(model, monkeypatch):
    _, together, tasks = of(model, "mezo")
    sizes, losses = [], model.losses
    monkeypatch.setattr(model, "losses", lambda batch: sizes.append(len(batch)) or losses(batch))
    list(together.train(tasks, key=Key.root(0)))
    steps = [MEZO.steps(len(task.examples)) for task in tasks]
    assert len(sizes) == max(steps) * MEZO.directions * 2  # probes of one client
    assert max(sizes) == len(tasks) * MEZO.batch_size


def test_the_same_bits_from_run_to_run(model):
    _, together, tasks = of(model, "mezo")
    first, second = (list(together.train(tasks, key=Key.root(0))) for _ in range(2))
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_a_client_that_is_not_a_number_keeps_it_to_itself(model):
    _, together, tasks = of(model, "mezo")
    well = list(together.train(tasks, key=Key.root(0)))
    bad = AdapterState.from_vector(model.spec, torch.full((model.spec.numel,), torch.nan))
    tasks[2] = replace(tasks[2], state=bad)
    found = list(together.train(tasks, key=Key.root(0)))
    assert isinstance(found[2].error, TrainingError)
    assert [r.client for r in found] == [t.client for t in tasks]
    for number in (0, 1):
        change = learnt(well[number])
        assert np.linalg.norm(learnt(found[number]) - change) <= 1e-2 * np.linalg.norm(change)


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt()])
def test_what_ends_a_pass_leaves_no_thread_behind(model, error, monkeypatch):
    _, together, tasks = of(model, "mezo")

    def ends(batch):
        raise error

    monkeypatch.setattr(model, "losses", ends)
    if isinstance(error, MemoryError):
        results = list(together.train(tasks, key=Key.root(0)))
        assert all("no room" in str(result.error) for result in results)
    else:
        with pytest.raises(KeyboardInterrupt):
            list(together.train(tasks, key=Key.root(0)))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cohort ")]
