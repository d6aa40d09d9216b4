"""WeiszfeldAggregator: the geometric median in passes of sums, so that no update is kept.

Pillutla et al. 2022 (RFA, arXiv 1912.13445, algorithm 2): z ← Σ β_i·δ_i / Σ β_i with
β_i = w_i / max(ν, ‖z − δ_i‖). Each step is a pass in which every client adds its own term, so that memory is
two vectors for any number of clients; :mod:`headwater.merging.kept` has the same rule from inner products.

Two things differ from the paper. The first z is 0, the adapter as it was, and not the mean, which one huge
update moves anywhere: the first step is then a mean of directions. And the paper's ν is a length; here it is
``smoothing`` times the harmonic mean h of the lengths, which no huge update moves.

The sums are int64. Instead of β·δ, which nothing bounds, a client adds the direction (δ − z)/max(ν, ‖δ − z‖),
no longer than 1, and h/max(ν, ‖δ − z‖), at most 1/smoothing: z moves by h·(Σ w·direction)/(Σ w·pull).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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

SHORTEST = 2.0**-16
"""Of a length in the first step: no update is taken for a shorter one."""
_SLACK = 1 + 1e-6


@dataclass(frozen=True)
class Pulls:
    """One step's sums.

    Args:
        participants: who is in. After the first step the plan has only those of the first.
        directions: Σ w·(δ − z)/max(ν, ‖δ − z‖), int64 [numel].
        pulls: Σ w·h/max(ν, ‖δ − z‖), int64 [2]: in units, and what rounding to them left in finer ones.
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
        smoothing: ν, as a part of the harmonic mean of the updates' lengths.
    """

    name = "geometric_median"

    def __init__(self, steps: int, smoothing: float) -> None:
        self.passes, self.smoothing = steps, smoothing

    def init(self, plan: MergePlan) -> Pulls:
        """Zeros: 8 bytes a value.

        Raises:
            ConfigError: weights that leave too few digits.
        """
        self._bits(plan, 0)
        return Pulls(Participants(plan), *_zeros(plan))

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
        if acc.step or acc.point.numel() or acc.unit != 1.0 or acc.pulls.shape != (2,):
            raise DecodeError("accumulator, geometric_median", expected="the first step", got="another")
        if acc.directions.shape != (plan.spec.numel,):
            raise DecodeError("accumulator, directions", expected=f"{plan.spec.numel} values", got="others")
        coarse, fine, longest = self._bits(plan, 0)
        most = math.ceil(longest * 2.0**coarse) * weight
        require_range(acc.pulls[:1], "pulls", low=0, high=most)
        most = (1 + round(0.5 * 2.0**fine)) * weight
        require_range(acc.pulls[1:], "rest of pulls", low=-most, high=most)
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
        length = max(math.sqrt(float(np.square(way.numpy()).sum())), self._shortest(acc))
        acc.directions.add_(to_fixed(way / length, plan.scale_bits(_SLACK)), alpha=weight)
        coarse, fine, _ = self._bits(plan, acc.step)
        scaled = acc.unit / length * 2.0**coarse
        whole = round(scaled)
        acc.pulls.add_(torch.tensor([whole, round((scaled - whole) * 2.0**fine)]), alpha=weight)
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
        point, pulls = self._moved(acc)
        plan, weight = acc.participants.plan, acc.participants.weight
        unit = acc.unit
        if not acc.step:
            known = {name: plan.weights[name] for name in sorted(acc.participants.clients)}
            plan = replace(plan, weights=known, others_weight=0)
            unit = weight / pulls  # the harmonic mean of lengths
        self._bits(plan, 1)
        return Pulls(Participants(plan), *_zeros(plan), acc.step + 1, point, unit)

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
        """The next z, float32 [numel], and Σ w·h/max(ν, ‖δ − z‖).

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
        coarse, fine, _ = self._bits(plan, acc.step)
        whole, rest = (int(value) for value in acc.pulls)
        pulls = max(whole * 2.0**-coarse + rest * 2.0 ** -(coarse + fine), 2.0**-62)
        step = from_fixed(acc.directions, plan.scale_bits(_SLACK)) * (acc.unit / pulls)
        moved = (acc.point.double() + step if acc.step else step) + 0.0  # one zero of two
        return moved.float(), pulls

    def _shortest(self, acc: Pulls) -> float:
        return self.smoothing * acc.unit if acc.step else SHORTEST

    def _bits(self, plan: MergePlan, step: int) -> tuple[int, int, float]:
        """Of pulls: the units' bits, the finer ones' beyond them, and the largest pull of weight 1."""
        longest = 1 / (self.smoothing if step else SHORTEST)
        return plan.scale_bits(longest * _SLACK), plan.scale_bits(0.5), longest


def _zeros(plan: MergePlan) -> tuple[Tensor, Tensor]:
    return torch.zeros(plan.spec.numel, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
