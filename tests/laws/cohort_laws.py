"""The law of cohorts: who is trained beside others learns what the trainer of one teaches it.

The trainer of one is the oracle: :func:`require_alike` trains the same tasks both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from headwater.adapters.model import AdaptedModel
from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.merging.coverage import last_layers
from headwater.protocol.messages import ClientPlan, FisherPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example
from headwater.training.backprop import BackpropTrainer
from headwater.training.batched.trainer import BatchedBackpropTrainer
from headwater.training.cohort import TrainTask

SINGLE, DOUBLE = 1e-4, 1e-12
"""Relative differences after four steps of AdamW, in float32 and in float64."""


def example(draw: np.random.Generator, language_model: bool) -> Example:
    """Of 3 to 13 tokens.

    The one target of a causal row of two hangs on no query and no key: their gradients are rounding alone,
    and AdamW makes whole steps of it.
    """
    tokens = draw.integers(5, 30, draw.integers(3, 14)).astype(np.int32)
    if not language_model:
        return Example(tokens, np.array([draw.integers(2)]))
    targets = tokens.astype(np.int64)
    targets[0] = -100
    return Example(tokens, targets, by_token=True)


def cohort(
    model: AdaptedModel,
    training: BackpropTraining,
    rows: Sequence[int],
    plans: Sequence[str] = (),
    seed: int = 0,
) -> list[TrainTask]:
    """Clients of other states (the first has the initial one) and lengths of rows.

    Args:
        model: the adapted model.
        training: of all.
        rows: of each client.
        plans: what each may train, from :func:`parts`; all of it where there is none.
        seed: of states and rows.
    """
    draw, start, found = np.random.default_rng(seed), model.initial_state().vector(), []
    known = parts(model)
    for number, count in enumerate(rows):
        noise = torch.from_numpy(draw.standard_normal(len(start), np.float32))
        own = known[plans[number]] if plans else {}
        plan = ClientPlan(training, DenseCodec(kind="dense"), **own)
        examples = [example(draw, model.language_model) for _ in range(count)]
        state = AdapterState.from_vector(model.spec, start + 0.05 * noise * bool(number))
        found.append(TrainTask(f"c{number}", state, examples, plan))
    return found


def parts(model: AdaptedModel) -> dict[str, dict[str, object]]:
    """What a plan may ask for."""
    return {
        "all": {},
        "last layer": {"tensors": last_layers(model.spec, 1)},
        "first tensor": {"tensors": (model.spec.tensors[0].name,)},
        "rank 1": {"rank": 1},
        "rank 1 of the last layer": {"rank": 1, "tensors": last_layers(model.spec, 1)},
        "fisher": {"fisher": FisherPlan(4, 100.0)},
        "fisher of rank 1": {"rank": 1, "fisher": FisherPlan(4, 100.0)},
    }


def corrected(tasks: Sequence[TrainTask], who: Sequence[bool]) -> list[TrainTask]:
    """Some with a correction of SCAFFOLD."""
    found = []
    for number, (task, has) in enumerate(zip(tasks, who, strict=True)):
        change = torch.sin(torch.arange(task.state.spec.numel, dtype=torch.float32) + number)
        correction = AdapterState.from_vector(task.state.spec, 0.05 * change)
        found.append(replace(task, correction=correction) if has else task)
    return found


trainings = st.builds(
    BackpropTraining,
    kind=st.just("backprop"),
    epochs=st.sampled_from([0.5, 1.0, 2.0]),
    max_steps=st.just(4),
    batch_size=st.integers(1, 4),
    learning_rate=st.sampled_from([1e-3, 1e-2]),
    head_learning_rate=st.sampled_from([None, 5e-3]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    max_grad_norm=st.sampled_from([None, 0.1, 1.0]),
    proximal_mu=st.sampled_from([0.0, 0.5]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
)


def require_alike(
    model: AdaptedModel, tasks: Sequence[TrainTask], tolerance: float, *, values: float | None = None
) -> float:
    """Train both ways; losses, values and statistics must be the same up to a relative difference.

    Args:
        model: as precise as ``tolerance`` needs: states are float32, and so are the deltas.
        tasks: at least two, which must have been one batch.
        tolerance: of losses.
        values: of deltas and statistics, by their norm; ``tolerance`` if None.

    Returns:
        The largest relative difference of a delta.
    """
    key, most = Key.root(3), len(tasks)
    alone = list(BackpropTrainer(model, 0).train(tasks, key=key))
    trainer, groups = BatchedBackpropTrainer(model, 0, most), []
    apart = trainer._together
    trainer._together = lambda group, key: groups.append(group) or apart(group, key)
    together = list(trainer.train(tasks, key=key))
    assert [len(group) for group in groups] == [most], "they were one batch"
    worst, within = 0.0, tolerance if values is None else values
    for one, other in zip(alone, together, strict=True):
        assert (one.client, one.steps, one.examples) == (other.client, other.steps, other.examples)
        assert one.error is None
        assert other.error is None
        assert one.metrics.keys() == other.metrics.keys()
        for name in ("loss", "first_loss", "last_loss"):
            assert other.metrics[name] == pytest.approx(one.metrics[name], rel=tolerance)
        assert one.statistics.keys() == other.statistics.keys()
        pairs = [(one.delta, other.delta)]
        pairs += [(one.statistics[name], other.statistics[name]) for name in one.statistics]
        for left, right in pairs:
            difference = float((left.vector() - right.vector()).norm() / left.vector().norm())
            assert difference <= within
            worst = max(worst, difference)
    return worst
