"""TiesAggregator: trim each delta, elect a sign per coordinate, average those that agree.

TIES-Merging (Yadav et al. 2023, arXiv 2306.01708, section 4). With τ̂_i the trimmed delta of client i
and w_i its weight, four sums are sufficient::

    P = Σ w·max(τ̂, 0)   N = Σ w·max(−τ̂, 0)   c⁺ = Σ w·[τ̂ > 0]   c⁻ = Σ w·[τ̂ < 0]
    result = P/c⁺ if P > N,  −N/c⁻ if N > P,  0 if P = N

As in mergekit the sign is elected on the weighted sum and the mean is over the weights that agree;
where the two signs weigh the same the result is 0 (mergekit and PEFT take the positive side, the
reference code the majority sign of the whole vector). In floats an exact tie is decided by the
order of arrival; in int64 it is a tie. Trimming is over the flat vector of all tensors, as in the
paper. Left out: the paper's λ, which is the strategy's server learning rate.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

from headwater.errors import ConfigError, DecodeError, EmptyRound
from headwater.kernels import gate
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.fixed_point import (
    BLOCK,
    bits_of,
    blocks,
    fixed_into,
    float32_at_most,
    from_fixed,
    most_units,
    require_bounded,
    require_norm,
    require_range,
    zeros,
)
from headwater.merging.held_updates import HeldUpdates
from headwater.merging.largest import Cut
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.security.secagg.ring import Integers, RingLayout, RingPart
from headwater.state import AdapterState

_SAVED = 12.0
"""Nanoseconds a value by which NumPy takes longer than compiled loops."""


class _UpToDate:
    """A sum of :class:`TiesSums`: whoever reads it finds the updates in it that waited."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, acc: TiesSums, owner: type) -> Tensor:
        acc.settle()
        return cast(Tensor, acc.__dict__[self._name])

    def __set__(self, acc: TiesSums, value: Tensor) -> None:
        if self._name in acc.__dict__:
            acc.settle()
        acc.__dict__[self._name] = value


@dataclass(frozen=True)
class TiesSums:
    """P and N in units of 2^-bits, and the weights c⁺ and c⁻ behind them: int64 [numel] each."""

    participants: Participants
    bits: int
    positive: Tensor
    negative: Tensor
    positive_weight: Tensor
    negative_weight: Tensor

    @cached_property
    def held(self) -> HeldUpdates:
        """What waits. No field: it is never written."""
        return HeldUpdates()

    def settle(self) -> None:
        """Add what waits."""
        if not self.held.empty:
            self.held.add_to([self.__dict__[name].numpy() for name in _SUMS], self.bits)


_SUMS = "positive", "negative", "positive_weight", "negative_weight"
for _name in _SUMS:
    setattr(TiesSums, _name, _UpToDate(_name))


class TiesAggregator(Aggregator[TiesSums]):
    """TIES with integer statistics.

    Args:
        density: fraction of a delta's values that is kept, 0 < density ≤ 1.
    """

    def __init__(self, density: float = 0.2) -> None:
        if not 0 < density <= 1:
            raise ConfigError("ties density", expected="a fraction in (0, 1]", got=repr(density))
        self.density = density

    def init(self, plan: MergePlan) -> TiesSums:
        """Zeros, 32 bytes a value; where loops are compiled, at most four updates are kept beside them."""
        size = plan.spec.numel
        return TiesSums(
            Participants(plan), plan.scale_bits(), zeros(size), zeros(size), zeros(size), zeros(size)
        )

    def require_sound(self, acc: TiesSums) -> None:
        """A value that is kept is at least a unit and at most the bound, and each client keeps so many."""
        plan, weight = acc.participants.plan, acc.participants.weight
        if acc.bits != plan.scale_bits():
            raise DecodeError("accumulator, bits", expected=str(plan.scale_bits()), got=str(acc.bits))
        most = most_units(plan.value_bound, acc.bits)
        for sign, kept in (
            (acc.positive, acc.positive_weight),
            (acc.negative, acc.negative_weight),
        ):
            require_range(kept, "weights", low=0, high=weight)
            require_range(sign, "sums", low=kept, high=kept * most)
        if plan.norm_bound is not None:  # what is kept of an update is no longer than it is
            both = from_fixed(torch.cat([acc.positive, acc.negative]), acc.bits)
            slack = weight * plan.spec.numel * 2.0**-acc.bits
            require_norm(both, "sums", most=weight * plan.norm_bound, slack=slack)
        kept = acc.positive_weight + acc.negative_weight
        require_range(kept, "weights", low=0, high=weight)
        allowed = weight * max(1, int(self.density * kept.numel()))
        if (total := sum(kept.tolist())) > allowed:
            raise DecodeError("accumulator, weights", expected=f"at most {allowed} together", got=str(total))

    def add(self, acc: TiesSums, update: Update) -> TiesSums:
        """Trim, and add to the four sums.

        What is kept is a function of the update's own float values. A kept value that is zero in
        fixed point (below half a unit) has no sign and is not counted.
        """
        plan = acc.participants.plan
        weight = acc.participants.weight_of(update)
        vector, who = acc.participants.values_of(update).flat(), f"client {update.client}"
        count = max(1, int(self.density * vector.numel()))
        values, limit = vector.numpy(), bits_of(float32_at_most(plan.value_bound))
        kernels = gate.GATE.after(_SAVED * values.size)
        if kernels is None or not acc.held.can_hold(values, weight):
            require_bounded(vector, plan.spec, bound=plan.value_bound, who=who)
            trim(vector := vector.clone(), count)
            _add(acc, vector, weight)
        elif not acc.held.hold(kernels, values, count=count, limit=limit, weight=weight):
            require_bounded(vector, plan.spec, bound=plan.value_bound, who=who)
        elif acc.held.full:
            acc.settle()
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: TiesSums, right: TiesSums) -> TiesSums:
        """Add the sums of two groups."""
        left.participants.require_disjoint(right.participants)
        left.positive.add_(right.positive)
        left.negative.add_(right.negative)
        left.positive_weight.add_(right.positive_weight)
        left.negative_weight.add_(right.negative_weight)
        left.participants.join(right.participants)
        return left

    def sum_layout(self, plan: MergePlan) -> RingLayout:
        """All four sums: no weight is above that of all clients, and no sum below 0."""
        weight, size = plan.total_weight, plan.spec.numel
        most = weight * most_units(plan.value_bound, plan.scale_bits())
        bounds = zip(_SUMS, (most, most, weight, weight), strict=True)
        return RingLayout(tuple(RingPart(name, size, 0, high) for name, high in bounds))

    def to_sums(self, acc: TiesSums) -> list[Integers]:  # noqa: D102 - inherited
        return [getattr(acc, name).numpy() for name in _SUMS]

    def from_sums(  # noqa: D102 - inherited
        self, plan: MergePlan, clients: Collection[str], sums: Sequence[Integers]
    ) -> TiesSums:
        parts = (torch.from_numpy(part) for part in sums)
        return TiesSums(Participants.all_of(plan, clients), plan.scale_bits(), *parts)

    def finalize(self, acc: TiesSums) -> Merged:
        """Elect and average.

        The report has fractions of all coordinates: ``kept`` (by at least one client), ``conflicts``
        (kept with both signs) and ``ties`` (both signs weigh exactly the same, so the result is 0);
        and ``delta_norm`` (L2).
        """
        participants = acc.participants
        if not participants.clients:
            raise EmptyRound("ties", expected="at least one accepted update", got="none")
        up, down = acc.positive > acc.negative, acc.negative > acc.positive
        total = torch.where(up, acc.positive, -acc.negative)
        count = torch.where(up, acc.positive_weight, acc.negative_weight)
        values = from_fixed(total, acc.bits).div_(count.clamp_(min=1))
        values[~(up | down)] = 0.0
        delta = AdapterState.from_vector(participants.plan.spec, values.float())
        conflicts = (acc.positive_weight > 0) & (acc.negative_weight > 0)
        size = max(1, values.numel())
        report = {
            "kept": int(((acc.positive_weight + acc.negative_weight) > 0).sum()) / size,
            "conflicts": int(conflicts.sum()) / size,
            "ties": int((conflicts & (acc.positive == acc.negative)).sum()) / size,
            "delta_norm": delta.norm(),
        }
        return Merged(delta, tuple(sorted(participants.clients)), participants.weight, report)


def trim(vector: Tensor, n: int) -> None:
    """Set to zero, in place, all but the ``n`` largest magnitudes; of equal ones the lower index stays.

    Args:
        vector: finite float32 [numel].
        n: at least 1.
    """
    if n < vector.numel():
        values = vector.numpy()
        Cut.largest(values, n).apply(values)


def _add(acc: TiesSums, vector: Tensor, weight: int) -> None:
    """Add a trimmed vector to the four sums, without a branch for any value."""
    values = vector.numpy()
    positive, negative, for_positive, for_negative = (
        sums.numpy() for sums in (acc.positive, acc.negative, acc.positive_weight, acc.negative_weight)
    )
    scaled = np.empty(min(BLOCK, values.size), np.float32)
    room, rest = np.empty(scaled.size, np.int64), np.empty(scaled.size, np.int64)
    for part in blocks(values.size):
        own = slice(0, part.stop - part.start)
        units, below = room[own], rest[own]
        fixed_into(units, scaled[own], values[part], acc.bits, weight)
        np.minimum(units, 0, out=below)
        np.subtract(negative[part], below, out=negative[part])
        np.subtract(units, below, out=units)
        np.add(positive[part], units, out=positive[part])
        # a number below zero, shifted by all of its bits, is -1: the weight where there is a value, else 0
        np.right_shift(below, 63, out=below)
        np.bitwise_and(below, weight, out=below)
        np.add(for_negative[part], below, out=for_negative[part])
        np.negative(units, out=units)
        np.right_shift(units, 63, out=units)
        np.bitwise_and(units, weight, out=units)
        np.add(for_positive[part], units, out=for_positive[part])
