"""Measure an adapter on examples: :func:`evaluate`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from headwater.errors import DataError, TrainingError
from headwater.protocol.failures import FailureCode, coded
from headwater.state import AdapterState
from headwater.tasks.batches import Batch, Example, batches, collate
from headwater.tasks.table import AnyTask

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel, Output


def evaluate(
    model: AdaptedModel,
    state: AdapterState,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad: int,
    prefix_cache_bytes: int = 0,
) -> tuple[int, dict[str, float]]:
    """Measure ``state`` on ``examples``. Deterministic; the model keeps ``state``.

    Args:
        model: the adapted model.
        state: to measure.
        examples: on which.
        batch_size: rows at a time.
        pad: token id that fills a batch.
        prefix_cache_bytes: memory for what reaches the first trained layer, for later evaluations.

    Returns:
        The number of targets (rows, or tokens of a causal model), and the task's metrics of them.

    Raises:
        DataError: no example, or no target token.
        TrainingError: the loss is not finite.
        SpecMismatch: a state of another spec.
    """
    if not examples:
        raise DataError("evaluation", expected="at least one example", got="none")
    model.load(state)
    sharing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if prefix_cache_bytes:
        sharing = model.caching_prefix(budget_bytes=prefix_cache_bytes, purpose="evaluation")
    with sharing:
        return measure(model.forward, model.task, examples, batch_size=batch_size, pad=pad)


def measure(
    forward: Callable[[Batch], Output],
    task: AnyTask,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad: int,
) -> tuple[int, dict[str, float]]:
    """Count and metrics of a model on ``examples``, as :func:`evaluate`: predict measures by it too.

    Args:
        forward: gives logits and losses of a batch.
        task: what is learnt.
        examples: on which, at least one.
        batch_size: rows at a time.
        pad: token id that fills a batch.

    Raises:
        DataError: no target token.
        TrainingError: the loss is not finite.
    """
    total, count = 0.0, 0
    truths: list[npt.NDArray[Any]] = []
    decided: list[npt.NDArray[Any]] = []
    with torch.inference_mode():
        for batch in batches(examples, batch_size, pad, generator=None):
            output = forward(batch)
            total += output.losses.sum(dtype=torch.float64).item()
            count += int(output.counts.sum())
            if (found := task.decide(output.logits)) is not None:
                truths.append(batch.targets.numpy())
                decided.append(found)
    if not count:
        raise DataError("evaluation", expected="at least one token with a loss", got="none")
    loss = total / count
    if not math.isfinite(loss):
        error = TrainingError(
            "evaluation",
            expected="a finite loss",
            got=str(loss),
            hint="The adapter has diverged: lower the learning rates.",
        )
        raise coded(error, FailureCode.DIVERGED)
    if not decided:
        return count, task.score(loss, None, None)
    return count, task.score(loss, np.concatenate(truths), np.concatenate(decided))


def features(
    model: AdaptedModel, examples: Sequence[Example], *, batch_size: int, pad: int
) -> npt.NDArray[np.float32]:
    """The frozen base's mean-pooled features, float32 [examples, d], in the order of ``examples``."""
    order = np.argsort([len(e.tokens) for e in examples], kind="stable")
    rows: list[npt.NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = collate([examples[i] for i in order[start : start + batch_size]], pad)
            device = model.base.device
            found = model.network.features(batch.tokens.to(device), batch.mask.to(device))
            rows.append(found.float().cpu().numpy())
    return np.concatenate(rows)[np.argsort(order)]
