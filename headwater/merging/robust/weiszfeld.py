"""WeiszfeldAggregator: the geometric median in passes of sums, so that no update is kept.

Pillutla et al. 2022 (RFA, arXiv 1912.13445, algorithm 2): z ← Σ β_i·δ_i / Σ β_i with
β_i = w_i / max(ν, ‖z − δ_i‖). Each step is a pass in which every client adds its own term, so that memory is
two vectors for any number of clients; :mod:`headwater.merging.kept` has the same rule from inner products.

Two things differ from the paper. The first step goes from 0, the adapter as it was, by the mean direction of
all times the median length h: the mean itself is moved anywhere by one huge update. And the paper's ν is a
length; here it is ``smoothing`` times h. A mean of lengths, of whatever kind, would be moved by one that is
huge or almost 0; their median comes from sums as well, of a histogram.

The sums are int64. Instead of β·δ, which nothing bounds, a client adds the direction (δ − z)/max(ν, ‖δ − z‖),
no longer than 1, and h/max(ν, ‖δ − z‖), at most 1/smoothing: z moves by h·(Σ w·direction)/(Σ w·pull). In the
first step it adds its weight to a bin of lengths instead, unless it moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.errors import DecodeError, EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.fixed_point import from_fixed, require_bounded, require_norm, require_range, to_fixed
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.state import AdapterState, StateSpec

_LOWEST, _HIGHEST, _PER_OCTAVE = -40, 32, 4
BINS = (_HIGHEST - _LOWEST) * _PER_OCTAVE
"""Of lengths, each 19 % above the one before: from 2^-40 to 2^32; what is beyond is in the first or last."""
_SLACK = 1 + 1e-6


@dataclass(frozen=True)
class Pulls:
    """One step's sums.

    Args:
        participants: who is in. After the first step the plan has only those of the first.
        directions: Σ w·(δ − z)/max(ν, ‖δ − z‖), int64 [numel].
        pulls: Σ w·h/max(ν, ‖δ − z‖), int64 [2]: in units, and what rounding to them left in finer ones. In
            the first step Σ w by length, int64 [:data:`BINS`].
        step: 0, 1, …
        point: z, float32 [numel]; empty in the first step, where it is 0.
        unit: h; 1 in the first step.
    """

    participants: Participants
    directions: Tensor
    pulls: Tensor
    step: int = 0
    point: Tensor = field(default_factory=lambda: torch.zeros(0))
    unit: float = 1.0


class WeiszfeldAggregator(Aggregator[Pulls]):
    """The weighted geometric median after so many smoothed Weiszfeld steps.

    Args:
        steps: each is a pass over the updates.
        smoothing: ν, as a part of the median length.
    """

    name = "geometric_median"

    def __init__(self, steps: int, smoothing: float) -> None:
        self.passes, self.smoothing = steps, smoothing

    def init(self, plan: MergePlan) -> Pulls:
        """Zeros: 8 bytes a value.

        Raises:
            ConfigError: weights that leave too few digits.
        """
        self._bits(plan)
        return Pulls(Participants(plan), *_zeros(plan, BINS))

    def identity(self) -> Mapping[str, Any]:  # noqa: D102 - inherited
        return {"steps": self.passes, "smoothing": self.smoothing}

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:
        """What the updates take, at most, where they are kept in memory for later passes."""
        return spec.nbytes * clients if self.passes > 1 else 0

    def require_sound(self, acc: Pulls) -> None:
        """Refuse sums of the first step that no updates have.

        Raises:
            DecodeError: says what is wrong.
        """
        plan, weight = acc.participants.plan, acc.participants.weight
        if acc.step or acc.point.numel() or acc.unit != 1.0 or acc.pulls.shape != (BINS,):
            raise DecodeError("accumulator, geometric_median", expected="the first step", got="another")
        if acc.directions.shape != (plan.spec.numel,):
            raise DecodeError("accumulator, directions", expected=f"{plan.spec.numel} values", got="others")
        require_range(acc.pulls, "lengths", low=0, high=weight)
        if (counted := sum(acc.pulls.tolist())) > weight:
            raise DecodeError("accumulator, lengths", expected=f"at most {weight} in all", got=str(counted))
        bits = plan.scale_bits(_SLACK)
        slack = weight * math.sqrt(plan.spec.numel) * 2.0**-bits
        require_norm(from_fixed(acc.directions, bits), "directions", most=weight * _SLACK, slack=slack)

    def add(self, acc: Pulls, update: Update) -> Pulls:
        """Add the update's direction from z, and its pull."""
        plan = acc.participants.plan
        weight = acc.participants.weight_of(update)
        vector = acc.participants.values_of(update).vector()
        require_bounded(vector, plan.spec, bound=plan.value_bound, who=f"client {update.client}")
        way = vector.double() - acc.point if acc.step else vector.double()
        # NumPy's sum: one order, whatever the threads
        length = math.sqrt(float(np.square(way.numpy()).sum()))
        if acc.step:
            length = max(length, self.smoothing * acc.unit)
            coarse, fine = self._bits(plan)
            scaled = acc.unit / length * 2.0**coarse
            whole = round(scaled)
            acc.pulls.add_(torch.tensor([whole, round((scaled - whole) * 2.0**fine)]), alpha=weight)
        elif length:
            acc.pulls[_bin(length)] += weight
        if length:
            acc.directions.add_(to_fixed(way / length, plan.scale_bits(_SLACK)), alpha=weight)
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: Pulls, right: Pulls) -> Pulls:
        """Add the sums of two groups."""
        left.participants.require_disjoint(right.participants)
        left.directions.add_(right.directions)
        left.pulls.add_(right.pulls)
        left.participants.join(right.participants)
        return left

    def next_pass(self, acc: Pulls) -> Pulls | None:  # noqa: D102 - inherited
        if acc.step + 1 >= self.passes:
            return None
        point, unit = self._moved(acc)
        plan = acc.participants.plan
        if not acc.step:
            known = {name: plan.weights[name] for name in sorted(acc.participants.clients)}
            plan = replace(plan, weights=known, others_weight=0)
        self._bits(plan)
        return Pulls(Participants(plan), *_zeros(plan, 2), acc.step + 1, point, unit)

    def finalize(self, acc: Pulls) -> Merged:
        """The point after the last step. The report has ``delta_norm``.

        Raises:
            UpdateRejected: somebody's update of the first step did not come again.
        """
        point, _ = self._moved(acc)
        delta = AdapterState.from_vector(acc.participants.plan.spec, point)
        clients = tuple(sorted(acc.participants.clients))
        return Merged(delta, clients, acc.participants.weight, {"delta_norm": delta.norm()})

    def _moved(self, acc: Pulls) -> tuple[Tensor, float]:
        """The next z, float32 [numel], and h.

        Raises:
            EmptyRound: no update was added.
            UpdateRejected: not all came again.
        """
        participants = acc.participants
        plan = participants.plan
        missing = plan.weights.keys() - participants.clients if acc.step else set()
        if not participants.clients and not missing:
            raise EmptyRound(self.name, expected="at least one accepted update", got="none")
        if missing:
            raise UpdateRejected(
                f"client {min(missing)}",
                expected=f"its update in both passes of {self.name}, and in all others",
                got="none in a later one",
            )
        if acc.step:
            coarse, fine = self._bits(plan)
            whole, rest = (int(value) for value in acc.pulls)
            unit, pulls = acc.unit, max(whole * 2.0**-coarse + rest * 2.0 ** -(coarse + fine), 2.0**-62)
        else:
            unit, pulls = _median(acc.pulls.tolist()), float(participants.weight)
        step = from_fixed(acc.directions, plan.scale_bits(_SLACK)) * (unit / pulls)
        moved = (acc.point.double() + step if acc.step else step) + 0.0  # one zero of two
        return moved.float(), unit

    def _bits(self, plan: MergePlan) -> tuple[int, int]:
        """Of pulls: the units' bits, and the finer ones' beyond them."""
        return plan.scale_bits(_SLACK / self.smoothing), plan.scale_bits(0.5)


def _zeros(plan: MergePlan, pulls: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(plan.spec.numel, dtype=torch.int64), torch.zeros(pulls, dtype=torch.int64)


def _bin(length: float) -> int:
    """Where a length above 0 is counted."""
    return min(max(math.floor((math.log2(length) - _LOWEST) * _PER_OCTAVE), 0), BINS - 1)


def _median(weights: Sequence[int]) -> float:
    """The middle of the bin with the weighted median; 1 where nothing is counted."""
    total, below = sum(weights), 0
    for number, weight in enumerate(weights):
        below += weight
        if total and 2 * below >= total:
            return math.pow(2.0, _LOWEST + (number + 0.5) / _PER_OCTAVE)
    return 1.0
