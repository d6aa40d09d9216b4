"""Measure an adapter on examples: :func:`evaluate`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from headwater.data.batches import Batch, Example, batches, collate
from headwater.errors import DataError, TrainingError
from headwater.protocol.failures import FailureCode, coded
from headwater.state import AdapterState

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel, Output


def evaluate(
    model: AdaptedModel,
    state: AdapterState,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad: int,
    language_model: bool,
    trunk_cache_bytes: int = 0,
) -> tuple[int, dict[str, float]]:
    """Measure ``state`` on ``examples``. Deterministic; the model keeps ``state``.

    Args:
        model: the adapted model.
        state: to measure.
        examples: on which.
        batch_size: rows at a time.
        pad: token id that fills a batch.
        language_model: whether targets are tokens.
        trunk_cache_bytes: memory for what reaches the first trained layer, for later evaluations.

    Returns:
        For a classifier, the number of examples and ``accuracy``, ``macro_f1`` (the mean F1 over labels
        that occur among truths or predictions) and ``loss``; for a causal model the number of target
        tokens, ``loss`` per token (nats) and ``perplexity``.

    Raises:
        DataError: no example, or no target token.
        TrainingError: the loss is not finite.
        SpecMismatch: a state of another spec.
    """
    if not examples:
        raise DataError("evaluation", expected="at least one example", got="none")
    model.load(state)
    sharing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if trunk_cache_bytes:
        sharing = model.caching_prefix(budget_bytes=trunk_cache_bytes, purpose="evaluation")
    with sharing:
        return measure(model.forward, examples, batch_size=batch_size, pad=pad, language_model=language_model)


def measure(
    forward: Callable[[Batch], Output],
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad: int,
    language_model: bool,
) -> tuple[int, dict[str, float]]:
    """Count and metrics of a model on ``examples``, as :func:`evaluate`: predict measures by it too.

    Args:
        forward: gives logits and losses of a batch.
        examples: on which, at least one.
        batch_size: rows at a time.
        pad: token id that fills a batch.
        language_model: whether targets are tokens.

    Raises:
        DataError: no target token.
        TrainingError: the loss is not finite.
    """
    total, count = 0.0, 0
    truths: list[npt.NDArray[np.int64]] = []
    predictions: list[npt.NDArray[np.int64]] = []
    with torch.inference_mode():
        for batch in batches(examples, batch_size, pad, language_model=language_model, generator=None):
            output = forward(batch)
            total += output.losses.sum(dtype=torch.float64).item()
            count += int(output.counts.sum())
            if not language_model:
                truths.append(batch.targets.numpy())
                predictions.append(output.logits.argmax(-1).cpu().numpy())
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
    if language_model:
        return count, {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # e^710 overflows
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    accuracy = float((truth == predicted).mean())
    return count, {"accuracy": accuracy, "macro_f1": macro_f1(truth, predicted), "loss": loss}


def features(
    model: AdaptedModel, examples: Sequence[Example], *, batch_size: int, pad: int, language_model: bool
) -> npt.NDArray[np.float32]:
    """The frozen base's mean-pooled features, float32 [examples, d], in the order of ``examples``."""
    order = np.argsort([len(e.tokens) for e in examples], kind="stable")
    rows: list[npt.NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            group = [examples[i] for i in order[start : start + batch_size]]
            batch = collate(group, pad, language_model=language_model)
            device = model.base.device
            found = model.network.features(batch.tokens.to(device), batch.mask.to(device))
            rows.append(found.float().cpu().numpy())
    return np.concatenate(rows)[np.argsort(order)]


def macro_f1(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> float:
    """The mean of F1 = 2·TP / (truths + predictions) over labels in ``truth`` or ``predicted``."""
    size = int(max(truth.max(), predicted.max())) + 1
    hits = np.bincount(truth[truth == predicted], minlength=size)
    seen = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * hits[seen > 0] / seen[seen > 0]).mean())
