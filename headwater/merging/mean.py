"""MeanAggregator: the weighted mean of the updates, deltas and coefficients of seeds in one sum.

FedAvg (McMahan et al. 2017, arXiv 1602.05629): Δ = Σ w_i·δ_i / Σ w_i. A delta adds to Σ w·δ; coefficients
add to Σ w·c, one number for each seed (FedKSeed, arXiv 2312.06353), and are expanded once, when the round
ends: Σ_i w_i Σ_s c_is·z_s = Σ_s (Σ_i w_i·c_is)·z_s. What an update weighs may depend on its noise
(:mod:`headwater.merging.scatter`), and a value's divisor on who trained it
(:mod:`headwater.merging.coverage`). The server's optimiser is the business of the strategy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headwater.errors import ConfigError, EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.coverage import divisors, require_covered
from headwater.merging.fixed_point import blocks, from_fixed, require_bounded, to_fixed
from headwater.merging.roster import Roster
from headwater.merging.scatter import Seen, energy_of, estimate, require_noise, weighed
from headwater.merging.steepness import SeedUse
from headwater.protocol.directions import Integers
from headwater.protocol.messages import MergePlan, Update
from headwater.protocol.scalars import FINE_BITS, Scalars, to_float32
from headwater.state import AdapterState


@dataclass
class MeanSums:
    """What a round adds up.

    Args:
        roster: who is in.
        bits: ``total`` is in units of 2^-bits.
        total: int64 [numel], Σ w·δ.
        coefficients: int64 [plan.seeds.count], Σ w·c; empty if the plan has no seeds.
        seen: those who are in, as they were weighed.
        values: how many of them sent a delta.
        use: steps along each seed, where the plan asks for it.
    """

    roster: Roster
    bits: int
    total: Tensor
    coefficients: Tensor
    seen: dict[str, Seen] = field(default_factory=dict)
    values: int = 0
    use: SeedUse | None = None


class MeanAggregator(Aggregator[MeanSums]):
    """Weighted mean. Error of a value: at most half a unit 2^-bits, then one rounding to fp32."""

    def init(self, plan: MergePlan) -> MeanSums:
        """Zeros, 8 bytes a value and a seed.

        Raises:
            ConfigError: weights and seeds whose sums could overflow.
        """
        seeds = 0
        if plan.seeds is not None:
            seeds = plan.seeds.count
            too_many = plan.seeds.entries >= 2**23  # in finalize, Σ|mean| ≤ entries·2^15·2^FINE_BITS
            too_heavy = plan.total_weight * plan.seeds.entries >= 2**47
            lost = plan.directions is None or plan.directions.size != plan.spec.numel
            if lost or too_many or too_heavy:
                raise ConfigError(
                    "merge plan",
                    expected="directions of the adapter's size, entries below 2^23, weights times entries "
                    "below 2^47",
                    got=f"total weight {plan.total_weight}, {plan.seeds.entries} entries",
                    hint='Use weighting = "equal".',
                )
        zeros = torch.zeros(plan.spec.numel, dtype=torch.int64)
        use = SeedUse.none(seeds) if plan.use else None
        return MeanSums(
            Roster(plan), plan.scale_bits(), zeros, torch.zeros(seeds, dtype=torch.int64), use=use
        )

    def add(self, acc: MeanSums, update: Update) -> MeanSums:
        """Add w·δ, or w·c.

        Raises:
            UpdateRejected: also scalars of another plan, values outside what the client trains, or a
                noise that is none.
        """
        plan, who = acc.roster.plan, f"client {update.client}"
        planned = acc.roster.weight_of(update)
        require_noise(update.noise, update.client)
        weight, energy = weighed(planned, update.client, plan), 0.0
        if isinstance(update.delta, Scalars):
            if plan.seeds is None or plan.directions is None:
                raise UpdateRejected(who, expected="a delta", got="coefficients of seeds")
            if update.client in plan.tensors or update.client in plan.ranks:
                raise UpdateRejected(
                    who, expected="a delta: its plan names tensors or a rank", got="coefficients of seeds"
                )
            update.delta.require(plan.seeds, who)
            acc.coefficients.add_(torch.from_numpy(update.delta.sums), alpha=weight)
            energy = update.delta.energy(plan.directions) if plan.weighs else 0.0
            if acc.use is not None:
                acc.use.add(update.delta)
        else:
            vector = update.delta.vector()
            require_bounded(vector, plan.spec, bound=plan.value_bound, who=who)
            require_covered(vector, plan, update.client)
            for part in blocks(vector.numel()):
                acc.total[part].add_(to_fixed(vector[part], acc.bits), alpha=weight)
            acc.values += 1
            energy = energy_of(vector) if plan.weighs else 0.0
        seeded = isinstance(update.delta, Scalars) and update.noise == update.delta.noise(plan.spec.numel)
        acc.seen[update.client] = Seen(weight, energy, min(update.noise, energy), seeded)
        acc.roster.enter(update.client, weight)
        return acc

    def combine(self, left: MeanSums, right: MeanSums) -> MeanSums:
        """Add the sums of two groups."""
        left.roster.require_disjoint(right.roster)
        left.total.add_(right.total)
        left.coefficients.add_(right.coefficients)
        left.seen |= right.seen
        left.values += right.values
        if left.use is not None and right.use is not None:
            left.use.join(right.use)
        left.roster.join(right.roster)
        return left

    def finalize(self, acc: MeanSums) -> Merged:
        """The mean, value by value.

        The report has ``delta_norm`` (L2), ``resolution`` (the unit), and where methods are weighed by
        their noise ``between`` and ``noise_least`` (squared norms) and ``weight_lost`` (the fraction of the
        planned weight that noise cost).
        """
        roster, plan = acc.roster, acc.roster.plan
        if not roster.clients:
            raise EmptyRound("mean", expected="at least one accepted update", got="none")
        divisor = divisors(plan, {client: row.weight for client, row in acc.seen.items()})
        values = from_fixed(acc.total, acc.bits)
        values.div_(roster.weight if divisor is None else divisor.clamp(min=1))
        coefficients = None
        if plan.seeds is not None and plan.directions is not None and acc.values < len(roster.clients):
            coefficients = _means(acc.coefficients, roster.weight)
            seeds = np.arange(plan.seeds.first, plan.seeds.first + plan.seeds.count)
            exact = plan.directions.combine(seeds, coefficients)
            bits = plan.seeds.unit_bits + FINE_BITS + plan.directions.unit_bits
            expanded = torch.from_numpy(to_float32(exact, bits)).double()
            values += expanded if divisor is None else expanded * (roster.weight / divisor.clamp(min=1))
        delta = AdapterState.from_vector(plan.spec, values.float())
        report = {"delta_norm": delta.norm(), "resolution": 2.0**-acc.bits}
        scatter = estimate(plan, acc.seen, delta.vector(), acc.coefficients.numpy())
        if scatter is not None and scatter.noises:
            planned = sum(plan.weights[client] for client in roster.clients)
            report |= {"between": scatter.between, "noise_least": min(scatter.noises.values())}
            report["weight_lost"] = 1 - roster.weight / planned
        return Merged(
            delta,
            tuple(sorted(roster.clients)),
            roster.weight,
            report,
            coefficients=coefficients if not acc.values else None,
            scatter=scatter,
            use=acc.use,
        )


def _means(sums: Tensor, weight: int) -> Integers:
    """round(Σ w·c / W · 2^FINE_BITS), halves up, in exact integers."""
    fine = [(2 * (s << FINE_BITS) + weight) // (2 * weight) for s in sums.tolist()]
    return np.array(fine, np.int64)
