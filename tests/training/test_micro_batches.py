"""A step computed some rows at a time is the step of the whole batch, up to the order of sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.proto.plan_json import plan_to_json
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.tasks.batches import IGNORED, Example, collate
from headwater.training.backprop import BackpropTrainer
from headwater.training.cohort import TrainTask
from headwater.training.memory_estimate import step_bytes
from tests.support.federations import adapted, adapter, examples, federation


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    kinds = {"bert": "encoder", "llama": "causal-lm"}
    return {base: adapted(federation(folder, k, base, adapter("lora", base))) for base, k in kinds.items()}


def trained(model, rows, **settings):
    plan = ClientPlan(training(**settings), DenseCodec(kind="dense"), 1.0)
    task = TrainTask("a", model.initial_state(), rows, plan)
    (result,) = BackpropTrainer(model, 0).train([task], key=Key.root(0))
    assert result.error is None
    return result


def training(**settings):
    given = {"kind": "backprop", "optimizer": "sgd", "learning_rate": 0.5, "batch_size": 7, "epochs": 2.0}
    return BackpropTraining(**given | settings)


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize("rows", [1, 3, 6])
def test_the_step_is_that_of_the_whole_batch(models, base, rows):
    """Also where rows have unequally many targets: the mean is over those of the batch."""
    found = examples(17, language_model=base == "llama")
    whole, parts = trained(models[base], found), trained(models[base], found, micro_batch_size=rows)
    assert parts.steps == whole.steps == 6
    assert parts.metrics["first_loss"] == pytest.approx(whole.metrics["first_loss"], rel=1e-5)
    change = whole.delta.vector()
    assert float((parts.delta.vector() - change).norm()) < 1e-4 * float(change.norm())
    assert float(change.norm()) > 1e-3


def test_a_part_as_large_as_the_batch_is_the_batch_to_the_bit(models):
    found = examples(9, language_model=False)
    one, other = (trained(models["bert"], found, micro_batch_size=n) for n in (None, 7))
    assert torch.equal(one.delta.vector(), other.delta.vector())


def test_parts_are_as_wide_as_their_rows_and_lose_no_target():
    rows = [Example(np.arange(3, n + 3).astype(np.int32), np.arange(n), by_token=True) for n in (2, 6, 3)]
    rows[1].targets[4:] = IGNORED
    first, second = collate(rows, 0).parts(2)
    assert (first.tokens.shape, second.tokens.shape) == ((2, 6), (1, 3))
    assert second.targets.tolist() == [[0, 1, 2]]
    answers = [Example(np.array([3], np.int32), np.arange(4), by_token=True)] * 2
    assert [part.targets.shape for part in collate(answers, 0).parts(1)] == [(1, 4)] * 2


def test_it_takes_less_memory_and_old_plans_do_not_change(models):
    model = models["llama"]
    plans = [ClientPlan(training(micro_batch_size=n), DenseCodec(kind="dense"), 1.0) for n in (None, 1)]
    whole, parts = (step_bytes(model, plan, 8, 32) for plan in plans)
    assert parts < 0.5 * whole
    assert ["micro_batch_size" in plan_to_json(plan) for plan in plans] == [False, True]
