"""Clients trained as one batch learn what they learn alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.errors import ModelError, TrainingError
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example
from headwater.training.backprop import BackpropTrainer
from headwater.training.batched import groups
from headwater.training.batched.trainer import BatchedBackpropTrainer
from headwater.training.cohort import TrainTask
from tests.laws.trainer_laws import bits, same
from tests.support import federations
from tests.support.architectures import build
from tests.training.on_bert import BackpropOnBert

CLOSE = 5e-4  # AdamW's first steps make much of the last digits of small gradients
TRAINING = BackpropTraining(kind="backprop", epochs=2.0, batch_size=4, learning_rate=1e-2)


def adapted(folder, kind, name, table=None):
    table = table or federations.adapter("lora", name)
    return federations.adapted(federations.federation(folder, kind, name, table))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return adapted(tmp_path_factory.mktemp("b"), "encoder", "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return adapted(tmp_path_factory.mktemp("l"), "causal-lm", "llama")


@pytest.fixture(scope="module", params=["roberta", "qwen2"])
def classifier(request, tmp_path_factory):
    """Of two layers, and one that scores each token, without bias."""
    folder = tmp_path_factory.mktemp("s")
    build(request.param, folder / request.param)
    table = {"kind": "lora", "rank": 2, "target_modules": ("all-linear",)}
    changes = {"model": {"kind": "sequence-classification", "path": request.param}}
    loaded = federations.federation(folder, "sequence-classification", request.param, table, **changes)
    return federations.adapted(loaded)


def tasks_of(model, *, clients=6, training=TRAINING, seed=0):
    """Clients of other states, numbers of rows and lengths of rows."""
    draw = np.random.default_rng(seed)
    start, found = model.initial_state().vector(), []
    for number in range(clients):
        noise = torch.from_numpy(draw.standard_normal(len(start), np.float32))
        rows = [example(draw, model.language_model) for _ in range(3 + 5 * (number % 3))]
        state = AdapterState.from_vector(model.spec, start + 0.02 * noise)
        found.append(TrainTask(f"c{number}", state, rows, ClientPlan(training, DenseCodec(kind="dense"))))
    return found


def example(draw, language_model):
    tokens = draw.integers(5, 30, draw.integers(2, 14)).astype(np.int32)
    if not language_model:
        return Example(tokens, np.array([draw.integers(2)]))
    targets = tokens.astype(np.int64)
    targets[0] = -100
    return Example(tokens, targets, by_token=True)


def both(model, tasks, most=8):
    key = Key.root(3)
    alone = list(BackpropTrainer(model, 0).train(tasks, key=key))
    together = list(BatchedBackpropTrainer(model, 0, most).train(tasks, key=key))
    return alone, together


class TestLaws(BackpropOnBert):
    def trainer(self):
        return BatchedBackpropTrainer(self.model, 0, 8)

    def examples(self):
        return federations.examples(10, language_model=False)

    def training(self):
        return TRAINING

    def like(self, left, right):
        change, other = left.delta.vector(), right.delta.vector()
        return bool((change - other).norm() <= CLOSE * other.norm()) and left.steps == right.steps


def test_heads_that_the_base_brings_are_stacked_too(classifier):
    assert any(spec.role == "head" for spec in classifier.spec)
    for one, other in zip(*both(classifier, tasks_of(classifier)), strict=True):
        change = one.delta.vector()
        assert (change - other.delta.vector()).norm() <= CLOSE * change.norm()


@pytest.mark.parametrize("fixture", ["bert", "llama"])
@pytest.mark.parametrize(
    "changes", [{}, {"max_grad_norm": 0.1}, {"proximal_mu": 0.5, "weight_decay": 0.1, "batch_size": 3}]
)
def test_each_learns_what_it_learns_alone(fixture, changes, request):
    model = request.getfixturevalue(fixture)
    training = TRAINING.model_copy(update=changes)
    for one, other in zip(*both(model, tasks_of(model, training=training)), strict=True):
        assert (one.client, one.steps, one.examples) == (other.client, other.steps, other.examples)
        change = one.delta.vector()
        assert (change - other.delta.vector()).norm() <= CLOSE * change.norm()
        assert other.metrics == pytest.approx(one.metrics, rel=CLOSE)


def test_each_drops_what_it_drops_alone(tmp_path):
    table = {**federations.adapter("lora", "bert"), "dropout": 0.3}
    model = adapted(tmp_path, "encoder", "bert", table)
    tasks = tasks_of(model)
    for one, other in zip(*both(model, tasks), strict=True):
        change = one.delta.vector()
        assert (change - other.delta.vector()).norm() <= CLOSE * change.norm()
    model.network.double()
    for one, other in zip(*both(model, tasks), strict=True):
        assert other.metrics == pytest.approx(one.metrics, rel=1e-12)


@pytest.mark.parametrize("fixture", ["bert", "llama"])
def test_in_float64_it_is_the_same_algebra(fixture, request):
    model = request.getfixturevalue(fixture)
    model.network.double()
    try:
        for one, other in zip(*both(model, tasks_of(model)), strict=True):
            assert other.metrics == pytest.approx(one.metrics, rel=1e-12)
    finally:
        model.network.float()


def test_the_same_bits_from_run_to_run(bert):
    tasks = tasks_of(bert)
    (_, first), (_, second) = both(bert, tasks), both(bert, tasks)
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_a_cohort_of_one_has_the_bits_of_the_trainer_of_one(bert):
    (one,), (other,) = both(bert, tasks_of(bert, clients=1))
    assert same(one, other)
    for one, other in zip(*both(bert, tasks_of(bert), most=1), strict=True):
        assert same(one, other)


def test_rows_of_a_batch_are_bounded(bert, monkeypatch):
    sizes = []
    forward = bert.forward
    monkeypatch.setattr(bert, "forward", lambda batch: sizes.append(len(batch)) or forward(batch))
    monkeypatch.setattr(groups, "MOST_TOKENS", 3 * 4 * 8)
    both(bert, tasks_of(bert))
    assert max(sizes) == 3 * 4
    monkeypatch.setattr(groups, "MOST_TOKENS", 2 * 4 * 8)  # two gain nothing
    sizes.clear()
    both(bert, tasks_of(bert))
    assert max(sizes) == 4


def test_a_client_that_is_not_a_number_keeps_it_to_itself(bert):
    tasks = tasks_of(bert)
    bad = AdapterState.from_vector(bert.spec, torch.full((bert.spec.numel,), torch.nan))
    spoilt = [replace(t, state=bad) if t.client == "c2" else t for t in tasks]
    alone, together = both(bert, spoilt)
    assert isinstance(together[2].error, TrainingError)
    assert str(together[2].error) == str(alone[2].error)
    _, well = both(bert, tasks)
    for number in (0, 1, 3, 4, 5):
        assert bits(together[number].delta) == bits(well[number].delta)


def test_plans_that_cannot_be_joined_are_trained_beside_the_others(bert):
    tasks = tasks_of(bert)
    nothing = replace(tasks[1].plan, tensors=())
    training = TRAINING.model_copy(update={"trunk_cache_mb": 1})
    cached = replace(tasks[3].plan, training=training, tensors=(bert.spec.tensors[0].name,))
    mixed = [
        replace(
            t,
            plan={"c1": nothing, "c3": cached}.get(t.client, t.plan),
            examples=[] if t.client == "c5" else t.examples,
        )
        for t in tasks
    ]
    alone, together = both(bert, mixed)
    assert [r.client for r in together] == [t.client for t in mixed]
    assert str(together[1].error) == str(alone[1].error)
    assert "a plan that covers none" in str(alone[1].error)
    assert same(alone[3], together[3])
    assert "at least one example" in str(together[5].error)


def test_want_of_memory_ends_the_batch_and_says_so(bert, monkeypatch):
    def full(*args):
        raise MemoryError("no room")

    monkeypatch.setattr(bert, "forward", full)
    results = list(BatchedBackpropTrainer(bert, 0, 8).train(tasks_of(bert), key=Key.root(0)))
    assert [r.client for r in results] == [f"c{n}" for n in range(6)]
    assert all(f"client {r.client}" in str(r.error) and "no room" in str(r.error) for r in results)


def test_a_base_that_turns_its_rows_is_refused(tmp_path):
    """XLNet's layers are given [tokens, rows]."""
    build("xlnet", tmp_path / "xlnet")
    table = {"kind": "lora", "rank": 2, "target_modules": ("layer_1",)}
    changes = {"model": {"kind": "encoder", "path": "xlnet"}}
    model = federations.adapted(federations.federation(tmp_path, "encoder", "xlnet", table, **changes))
    before = model.read()
    with pytest.raises(ModelError, match=r"losses that differ: .* together, .* alone"):
        BatchedBackpropTrainer(model, 0, 8)
    assert model.read().sha256() == before.sha256()
