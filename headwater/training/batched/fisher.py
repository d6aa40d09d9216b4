"""Fisher information of several clients, whose examples share passes: :func:`fishers`.

In a stack every row can have tensors of its own, so one backward pass gives each example's own gradient,
whatever the kind of adapter: :mod:`headwater.training.fisher` says what is done with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.adapters.stacked.stack import stacked
from headwater.adapters.trained_tensors import unit_of
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example, collate
from headwater.training.batched.groups import MOST_TOKENS
from headwater.training.cohort import TrainTask
from headwater.training.fisher import chosen_examples, drawn_losses

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel

_VALUES = 2**24
"""Of trained tensors in one pass: 64 MiB of float32, and as much of gradients."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """A client's mean of squared gradients, as is.

    Args:
        mean: of all examples.
        seconds: the client's share of the time that all took, by examples.
    """

    mean: AdapterState
    seconds: float


@dataclass(frozen=True, slots=True)
class _Row:
    """One example of one client, with the key of its drawn labels."""

    owner: int
    example: Example
    key: Key


def fishers(
    model: AdaptedModel,
    tasks: Sequence[TrainTask],
    states: Sequence[AdapterState],
    *,
    pad: int,
    keys: Sequence[Key],
) -> list[Estimated]:
    """One for each task, at its state.

    Args:
        model: of which stacks can be made.
        tasks: with plans that ask for a Fisher.
        states: where each is estimated.
        pad: token id that fills a batch.
        keys: of each client's examples and labels.
    """
    began, rows = time.perf_counter(), list[_Row]()
    for owner, (task, key) in enumerate(zip(tasks, keys, strict=True)):
        assert task.plan.fisher is not None, "who calls has asked"
        chosen = chosen_examples(task.examples, task.plan.fisher, key)
        rows += [_Row(owner, example, key.child("label", i)) for i, example in enumerate(chosen)]
    rows.sort(key=lambda row: len(row.example.tokens))
    values = {
        s.name: (torch.stack([state[s.name] for state in states]) * unit_of(s)).to(p.device, p.dtype)
        for s, p in model.parameters()
    }
    totals = {name: torch.zeros_like(value) for name, value in values.items()}
    while rows:
        count = _fitting(rows, model.spec.numel, model.virtual_tokens)
        _add(model, values, totals, rows[:count], pad)
        rows = rows[count:]
    counts = [min(len(task.examples), task.plan.fisher.examples) for task in tasks if task.plan.fisher]
    seconds = time.perf_counter() - began
    return [
        Estimated(
            AdapterState(
                model.spec, {n: (t[at] / count).to("cpu", torch.float32) for n, t in totals.items()}
            ),
            seconds * count / sum(counts),
        )
        for at, count in enumerate(counts)
    ]


def _fitting(rows: Sequence[_Row], values: int, virtual_tokens: int) -> int:
    """How many of the first rows are one batch, the shortest first; at least one."""
    most = max(1, _VALUES // max(1, values))
    for count, row in enumerate(rows[:most], 1):
        if count * (len(row.example.tokens) + virtual_tokens) > MOST_TOKENS:
            return max(1, count - 1)
    return min(most, len(rows))


def _add(
    model: AdaptedModel,
    values: dict[str, Tensor],
    totals: dict[str, Tensor],
    rows: Sequence[_Row],
    pad: int,
) -> None:
    """The squared gradients of some examples, to their owners' totals."""
    owners = torch.tensor([row.owner for row in rows])
    mine = {row.owner: owners == row.owner for row in rows}
    leaves = {name: value[owners.to(value.device)].requires_grad_() for name, value in values.items()}
    with stacked(model, leaves, len(rows)):
        losses = drawn_losses(model, collate([row.example for row in rows], pad), [row.key for row in rows])
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
    for total, gradient in zip(totals.values(), found, strict=True):
        if gradient is None:
            continue
        for owner, own in mine.items():  # in one order on every device
            total[owner] += gradient[own.to(gradient.device)].square_().sum(0)
