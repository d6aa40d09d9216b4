"""MeanAggregator: the weighted mean of the deltas.

FedAvg (McMahan et al. 2017, arXiv 1602.05629): Δ = Σ w_i·δ_i / Σ w_i. The statistic Σ w_i·δ_i is
additive as it stands; the server's optimiser is the business of the strategy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.errors import EmptyRound
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.fixed_point import blocks, from_fixed, require_bounded, to_fixed
from headwater.merging.roster import Roster
from headwater.protocol.messages import MergePlan, Update
from headwater.state import AdapterState


@dataclass(frozen=True)
class MeanSums:
    """Σ w·δ in units of 2^-bits: int64 [numel]."""

    roster: Roster
    bits: int
    total: Tensor


class MeanAggregator(Aggregator[MeanSums]):
    """Weighted mean. Error of a value: at most half a unit 2^-bits, then one rounding to fp32."""

    def init(self, plan: MergePlan) -> MeanSums:
        """Zeros, 8 bytes a value."""
        return MeanSums(Roster(plan), plan.scale_bits(), torch.zeros(plan.spec.numel, dtype=torch.int64))

    def add(self, acc: MeanSums, update: Update) -> MeanSums:
        """Add w·δ."""
        plan = acc.roster.plan
        weight = acc.roster.weight_of(update)
        vector = update.delta.vector()
        require_bounded(vector, plan.spec, bound=plan.value_bound, who=f"client {update.client}")
        for part in blocks(vector.numel()):
            acc.total[part].add_(to_fixed(vector[part], acc.bits), alpha=weight)
        acc.roster.enter(update.client)
        return acc

    def combine(self, left: MeanSums, right: MeanSums) -> MeanSums:
        """Add the sums of two groups."""
        left.roster.require_disjoint(right.roster)
        left.total.add_(right.total)
        left.roster.join(right.roster)
        return left

    def finalize(self, acc: MeanSums) -> Merged:
        """Σ w·δ / Σ w. The report has ``delta_norm`` (L2) and ``resolution`` (the unit)."""
        roster = acc.roster
        if not roster.clients:
            raise EmptyRound("mean", expected="at least one accepted update", got="none")
        values = from_fixed(acc.total, acc.bits).div_(roster.weight)
        delta = AdapterState.from_vector(roster.plan.spec, values.float())
        report = {"delta_norm": delta.norm(), "resolution": 2.0**-acc.bits}
        return Merged(delta, tuple(sorted(roster.clients)), roster.weight, report)
