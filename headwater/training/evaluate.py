"""Measure adapters on examples: :func:`evaluate_each`, :func:`evaluate_groups`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from headwater.adapters.stacked.stack import stacked
from headwater.adapters.trained_tensors import unit_of
from headwater.errors import DataError, HeadwaterError, TrainingError
from headwater.protocol.failures import FailureCode, coded
from headwater.state import AdapterState
from headwater.tasks.batches import Batch, Example, collate
from headwater.tasks.table import AnyTask

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel, Output


Measured = tuple[int, dict[str, float]]
"""The number of targets (rows, or tokens of a causal model), and the task's metrics of them."""


def evaluate_each(
    model: AdaptedModel,
    states: Sequence[AdapterState],
    lots: Sequence[Sequence[Example]],
    *,
    batch_size: int,
    pad: int,
    prefix_cache_bytes: int = 0,
) -> list[Measured | HeadwaterError]:
    """Measure states on the examples of several owners, whose rows share batches: one for each, in order.

    What :func:`evaluate_groups` would raise for an owner, but of another spec, stands in its place.

    Args:
        model: the adapted model; one of which stacks can be made, if states differ.
        states: each owner's; the same object where several have one.
        lots: each owner's examples.
        batch_size: rows at a time.
        pad: token id that fills a batch.
        prefix_cache_bytes: memory for what reaches the first trained layer, for later evaluations.
    """
    sharing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if prefix_cache_bytes:
        sharing = model.caching_prefix(budget_bytes=prefix_cache_bytes, purpose="evaluation")
    if all(state is states[0] for state in states):
        model.load(states[0])
        with sharing:
            return measure_each(model.forward, model.task, lots, batch_size=batch_size, pad=pad)
    for state in states:
        state.require_spec(model.spec, "state to evaluate")
    own = {
        s.name: (torch.stack([state[s.name] for state in states]) * unit_of(s)).to(p.device, p.dtype)
        for s, p in model.parameters()
    }

    def forward(batch: Batch, owners: npt.NDArray[np.int64]) -> Output:
        rows = torch.from_numpy(owners)
        with stacked(model, {n: v[rows.to(v.device)] for n, v in own.items()}, len(rows)):
            return model.forward(batch)

    with sharing:
        return _measure_owners(forward, model.task, lots, batch_size=batch_size, pad=pad)


def evaluate_groups(
    model: AdaptedModel,
    state: AdapterState,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad: int,
    prefix_cache_bytes: int = 0,
) -> tuple[Measured, dict[str, Measured]]:
    """Measure a state on examples, and in the same passes on each group's, in order of name.

    Deterministic; the model keeps the state. A group without a target token is left out.

    Args:
        model: the adapted model.
        state: to measure.
        examples: on which; their ``group`` says which are one.
        batch_size: rows at a time.
        pad: token id that fills a batch.
        prefix_cache_bytes: memory for what reaches the first trained layer, for later evaluations.

    Raises:
        DataError: no example, or no target token.
        TrainingError: the loss is not finite.
        SpecMismatch: a state of another spec.
    """
    sharing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if prefix_cache_bytes:
        sharing = model.caching_prefix(budget_bytes=prefix_cache_bytes, purpose="evaluation")
    model.load(state)
    groups = np.array([example.group for example in examples], dtype=object)
    whole = _Tally()
    by = {name: _Tally() for name in sorted({*groups.tolist()} - {""})}
    with sharing, torch.inference_mode():
        for chosen, rows, batch in _by_length(examples, batch_size, pad):
            output = model.forward(batch)
            decided = model.task.judge(output.logits, rows)
            whole.add(batch, output, decided, np.arange(len(rows)))
            for name in {*groups[chosen].tolist()} - {""}:
                by[name].add(batch, output, decided, np.flatnonzero(groups[chosen] == name))
    if not examples:
        raise _nothing()
    found = _raised(whole.measured(model.task))
    return found, {name: _raised(tally.measured(model.task)) for name, tally in by.items() if tally.count}


def measure(
    forward: Callable[[Batch], Output],
    task: AnyTask,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad: int,
) -> Measured:
    """Count and metrics of a model on ``examples``, as :func:`evaluate_groups`: predict measures by it too.

    Args:
        forward: gives logits and losses of a batch.
        task: what is learnt.
        examples: on which, at least one.
        batch_size: rows at a time.
        pad: token id that fills a batch.

    Raises:
        DataError: no example, or no target token.
        TrainingError: the loss is not finite.
    """
    (found,) = measure_each(forward, task, [examples], batch_size=batch_size, pad=pad)
    return _raised(found)


def measure_each(
    forward: Callable[[Batch], Output],
    task: AnyTask,
    lots: Sequence[Sequence[Example]],
    *,
    batch_size: int,
    pad: int,
) -> list[Measured | HeadwaterError]:
    """:func:`measure` for several owners, as :func:`evaluate_each`: all rows by length, whosever they are."""
    return _measure_owners(lambda batch, _: forward(batch), task, lots, batch_size=batch_size, pad=pad)


def _measure_owners(
    forward: Callable[[Batch, npt.NDArray[np.int64]], Output],
    task: AnyTask,
    lots: Sequence[Sequence[Example]],
    *,
    batch_size: int,
    pad: int,
) -> list[Measured | HeadwaterError]:
    """:func:`measure_each` where the pass is told whose each row is."""
    examples = [example for lot in lots for example in lot]
    owners = np.repeat(np.arange(len(lots)), [len(lot) for lot in lots])
    tallies = [_Tally() for _ in lots]
    with torch.inference_mode():
        for chosen, rows, batch in _by_length(examples, batch_size, pad):
            output = forward(batch, owners[chosen])
            decided = task.judge(output.logits, rows)
            for owner in np.unique(owners[chosen]):
                tallies[owner].add(batch, output, decided, np.flatnonzero(owners[chosen] == owner))
    return [tally.measured(task) if lot else _nothing() for tally, lot in zip(tallies, lots, strict=True)]


def _by_length(
    examples: Sequence[Example], batch_size: int, pad: int
) -> Iterator[tuple[npt.NDArray[np.int64], list[Example], Batch]]:
    """Batches, the shortest rows first: the numbers of their examples, these, and their tokens."""
    order = np.argsort([len(example.tokens) for example in examples], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [examples[i] for i in chosen]
        yield chosen, rows, collate(rows, pad)


class _Tally:
    """What was seen of one owner's or group's rows.

    Attributes:
        count: of their targets.
    """

    def __init__(self) -> None:
        self._total, self.count = 0.0, 0
        self._truths: list[npt.NDArray[Any]] = []
        self._decided: list[npt.NDArray[Any]] = []

    def add(
        self, batch: Batch, output: Output, decided: npt.NDArray[Any] | None, rows: npt.NDArray[np.int64]
    ) -> None:
        """Those rows of a batch are among them."""
        chosen = torch.from_numpy(rows)
        here = chosen.to(output.losses.device)
        self._total += output.losses[here].sum(dtype=torch.float64).item()
        self.count += int(output.counts[here].sum())
        if decided is not None:
            self._truths.append(batch.targets[chosen].numpy())
            self._decided.append(decided[rows])

    def measured(self, task: AnyTask) -> Measured | HeadwaterError:
        """Count and metrics, or why there are none."""
        if not self.count:
            return DataError("evaluation", expected="at least one token with a loss", got="none")
        loss = self._total / self.count
        if not math.isfinite(loss):
            error = TrainingError(
                "evaluation",
                expected="a finite loss",
                got=str(loss),
                hint="The adapter has diverged: lower the learning rates.",
            )
            return coded(error, FailureCode.DIVERGED)
        if not self._decided:
            return self.count, task.score(loss, None, None)
        truth = None if task.settings.by_token else np.concatenate(self._truths)
        return self.count, task.score(loss, truth, np.concatenate(self._decided))


def _nothing() -> HeadwaterError:
    return DataError("evaluation", expected="at least one example", got="none")


def _raised(found: Measured | HeadwaterError) -> Measured:
    if isinstance(found, HeadwaterError):
        raise found
    return found


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
