"""Sums of gradients that were clipped one example at a time: :class:`ExampleGradients`.

What bounds one example's part must be exact, so the sum is made of integers: each example's gradient, scaled
down to norm C, is cut to whole multiples of C·2^-23, towards zero. Its integers' norm is at most
:data:`UNITS`, whatever the example is and rounding included, and they add up without error in float64.

In a stack every row has tensors of its own, so one backward pass gives each example's gradient, whatever the
kind of adapter. Of a model that cannot be stacked, one example follows another, which is also the oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.adapters.stacked.layer import Dropping
from headwater.adapters.stacked.stack import drops, stacked
from headwater.errors import ModelError
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example, collate
from headwater.training.batched.trial import require_stackable
from headwater.training.trainable_part import TrainablePart

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel

UNITS = 2**23
"""C in units: float32 holds every whole number up to it and a bit more."""
_SHORT = 1 - 2.0**-20
"""Room for what float32 rounds: a factor and a product, each by at most 2^-24 of itself."""
_VALUES = 2**24
"""Of gradients in one pass: 64 MiB of float32."""

Unit = Sequence[Example]
"""What privacy counts as one example: all that come of one row, such as a text's windows (:func:`by_row`)."""


def rows_at_once(numel: int, micro_batch_size: int | None) -> int:
    """How many examples' gradients are in memory at once."""
    return micro_batch_size or max(1, _VALUES // max(1, numel))


@dataclass(frozen=True)
class ExampleGradients:
    """Of a model, at the values that it has.

    Args:
        model: on which gradients are taken.
        part: of it, that is trained.
        bound: C, of each example's gradient over all trained tensors together; 2^-40 to 2^40.
        pad: token id that fills a batch.
        rows: computed at once.
        stacks: whether a pass gives many examples' gradients; else each has a pass of its own.
    """

    model: AdaptedModel
    part: TrainablePart
    bound: float
    pad: int
    rows: int
    stacks: bool

    @staticmethod
    def of(
        model: AdaptedModel,
        part: TrainablePart,
        bound: float,
        *,
        pad: int,
        micro_batch_size: int | None,
        checkpointing: bool,
    ) -> ExampleGradients:
        """By the faster way that this model allows.

        What checkpoints compute again must drop the same, which a stack's streams do not.
        """
        numel = sum(spec.numel for spec, _ in part.trained)
        stacks = not (checkpointing and drops(model)) and _stackable(model)
        return ExampleGradients(model, part, bound, pad, rows_at_once(numel, micro_batch_size), stacks)

    @property
    def unit(self) -> float:
        """What one unit of :meth:`sums` is."""
        return self.bound / (UNITS * _SHORT)

    def sums(self, units: Mapping[int, Unit], key: Key) -> list[Tensor]:
        """Σ of the clipped gradients of mean losses, in units, in the order of ``part.trained``.

        A gradient that is not finite counts as zero: how an example goes wrong must not be told.

        Args:
            units: any number of them, by the number that each has among all of the client's. What is dropped
                of one hangs on that alone, for the seed is no secret: of what is dropped by its place among
                those drawn, one example more would change the gradients of all others.
            key: of what is dropped.

        Returns:
            Whole numbers in float64, each [*shape]; of no unit all zero.
        """
        totals = [torch.zeros_like(p, dtype=torch.float64) for _, p in self.part.trained]
        ordered = sorted(units.items(), key=lambda item: max(len(example.tokens) for example in item[1]))
        for lot in _lots(ordered, self.rows if self.stacks else 1):
            self._add(totals, self._means(lot, key))
        return totals

    def _means(self, lot: Sequence[tuple[int, Unit]], key: Key) -> list[Tensor | None]:
        """The gradient of each unit's mean loss [units, *shape], of passes of at most :attr:`rows` rows."""
        owner = torch.tensor([at for at, (_, unit) in enumerate(lot) for _ in unit])
        rows = [(key.child(n, part), row) for n, unit in lot for part, row in enumerate(unit)]
        sums: list[Tensor | None] = [None] * len(self.part.trained)
        counts, most = torch.zeros(len(lot)), self.rows if self.stacks else 1
        for start in range(0, len(rows), most):
            some, own = rows[start : start + most], owner[start : start + most]
            found, counted = self._together(some) if self.stacks else self._alone(*some[0])
            counts.index_add_(0, own, counted.cpu().float())
            for at, gradient in enumerate(found):
                if gradient is None:
                    continue
                before, place = sums[at], own.to(gradient.device)
                whole = gradient.new_zeros(len(lot), *gradient.shape[1:]) if before is None else before
                sums[at] = whole.index_add_(0, place, gradient)
        shares = counts.clamp(min=1).reciprocal()
        return [None if g is None else _scaled(g, shares) for g in sums]

    def _together(self, rows: Sequence[tuple[Key, Example]]) -> tuple[list[Tensor | None], Tensor]:
        """The gradient of each row's losses [rows, *shape], of one pass, and how many these are [rows]."""
        batch = collate([row for _, row in rows], self.pad)
        trained = {spec.name for spec, _ in self.part.trained}
        values = {
            spec.name: p.detach().expand(len(rows), *p.shape).requires_grad_(spec.name in trained)
            for spec, p in self.model.parameters()
        }
        dropping = None
        if drops(self.model):
            streams = [torch.Generator().manual_seed(key.seed()) for key, _ in rows]
            dropping = Dropping(streams, [(1, len(row.tokens)) for _, row in rows])
        with stacked(self.model, values, len(rows), dropping):
            output = self.model.forward(batch)
            leaves = [values[spec.name] for spec, _ in self.part.trained]
            found = torch.autograd.grad(output.losses.sum(), leaves, allow_unused=True)
        return list(found), output.counts

    def _alone(self, key: Key, row: Example) -> tuple[list[Tensor | None], Tensor]:
        """The same of one row, in a pass of its own."""
        torch.manual_seed(key.seed())
        output = self.model.forward(collate([row], self.pad))
        leaves = [p for _, p in self.part.trained]
        found = torch.autograd.grad(output.losses.sum(), leaves, allow_unused=True)
        return [None if g is None else g.unsqueeze(0) for g in found], output.counts

    def _add(self, totals: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
        """Clip each unit's gradient, cut it to units, and add it."""
        for (_, parameter), gradient in zip(self.part.trained, found, strict=True):
            for masked, outside, _ in self.part.masked:
                if masked is parameter and gradient is not None:
                    gradient.masked_fill_(outside, 0.0)
        known = [g.float() for g in found if g is not None]
        if not known:
            return
        squares = torch.stack(
            [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64).square().cpu() for g in known]
        )
        norms = squares.sum(0).sqrt()
        wrong = ~norms.isfinite()
        factors = (UNITS * _SHORT / norms.clamp(min=self.bound)).float().masked_fill_(wrong, 0.0)
        for total, gradient in zip(totals, found, strict=True):
            if gradient is None:
                continue
            values = gradient.float()
            if bool(wrong.any()):
                values[wrong.to(values.device)] = 0.0
            total += _scaled(values, factors).trunc_().sum(0, dtype=torch.float64)


def _scaled(stack: Tensor, factors: Tensor) -> Tensor:
    """Each of the stack's tensors, times its own factor."""
    return stack * factors.to(stack.device, stack.dtype).view(-1, *[1] * (stack.dim() - 1))


def _lots(units: Iterable[tuple[int, Unit]], rows: int) -> Iterator[list[tuple[int, Unit]]]:
    """The units in lots of at most so many rows, or of one unit."""
    lot, filled = list[tuple[int, Unit]](), 0
    for number, unit in units:
        if lot and filled + len(unit) > rows:
            yield lot
            lot, filled = [], 0
        lot.append((number, unit))
        filled += len(unit)
    if lot:
        yield lot


def _stackable(model: AdaptedModel) -> bool:
    try:
        require_stackable(model)
    except ModelError:
        return False
    return True
