"""MeanAggregator: the weighted mean of the updates, deltas and coefficients of seeds in one sum.

FedAvg (McMahan et al. 2017, arXiv 1602.05629): Δ = Σ n_i·δ_i / Σ n_i. A delta adds to Σ n·δ; coefficients
add to Σ n·c, one number for each seed (FedKSeed, arXiv 2312.06353), and are expanded once, when the round
ends: Σ_i n_i Σ_s c_is·z_s = Σ_s (Σ_i n_i·c_is)·z_s. What an update weighs, and counts for in the divisor,
may depend on its method (:mod:`headwater.merging.scatter`), whose sums are then kept apart; a value's divisor
also depends on who trained it (:mod:`headwater.merging.coverage`). The server's optimiser is the business of
the strategy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from headwater.errors import ConfigError, EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.coverage import divisors, require_covered
from headwater.merging.fixed_point import blocks, from_fixed, require_bounded, to_fixed
from headwater.merging.roster import Roster
from headwater.merging.scatter import Seen, Together, energy_of, estimate, progress_of, require_noise, weighed
from headwater.merging.steepness import SeedUse
from headwater.protocol.directions import Integers
from headwater.protocol.messages import MergePlan, Update
from headwater.protocol.scalars import FINE_BITS, Scalars, to_float32
from headwater.state import AdapterState


@dataclass
class MethodSums:
    """What the clients of one method add up to.

    Args:
        total: int64 [numel], Σ n·δ.
        coefficients: int64 [plan.seeds.count], Σ n·c; empty if the plan has no seeds.
        values: how many clients sent a delta.
    """

    total: Tensor
    coefficients: Tensor
    values: int = 0

    @staticmethod
    def none(plan: MergePlan) -> MethodSums:
        """Of no client."""
        seeds = 0 if plan.seeds is None else plan.seeds.count
        zeros = torch.zeros(plan.spec.numel, dtype=torch.int64), torch.zeros(seeds, dtype=torch.int64)
        return MethodSums(*zeros)

    def add(self, other: MethodSums) -> None:
        """Other clients of the method."""
        self.total.add_(other.total)
        self.coefficients.add_(other.coefficients)
        self.values += other.values


@dataclass
class MeanSums:
    """What a round adds up.

    Args:
        roster: who is in.
        bits: totals are in units of 2^-bits.
        methods: by method, where methods are weighed against each other; else all under "".
        seen: those who are in, as they were weighed.
        use: steps along each seed, where the plan asks for it.
    """

    roster: Roster
    bits: int
    methods: dict[str, MethodSums] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    use: SeedUse | None = None

    def of(self, client: str) -> MethodSums:
        """The sums that ``client`` adds to."""
        plan = self.roster.plan
        name = plan.groups.get(client, "") if plan.weighs else ""
        if name not in self.methods:
            self.methods[name] = MethodSums.none(plan)
        return self.methods[name]


class MeanAggregator(Aggregator[MeanSums]):
    """Weighted mean. Error of a value: at most half a unit 2^-bits, then one rounding to fp32."""

    def init(self, plan: MergePlan) -> MeanSums:
        """Nothing yet; 8 bytes a value and a seed for each method that arrives.

        Raises:
            ConfigError: weights and seeds whose sums could overflow.
        """
        seeds = 0 if plan.seeds is None else plan.seeds.count
        if plan.seeds is not None:
            # in finalize, Σ|mean| ≤ entries·2^15·2^FINE_BITS/LEAST_PROGRESS
            too_many = plan.seeds.entries >= 2**17
            too_heavy = plan.total_weight * plan.seeds.entries >= 2**47
            lost = plan.directions is None or plan.directions.size != plan.spec.numel
            if lost or too_many or too_heavy:
                raise ConfigError(
                    "merge plan",
                    expected="directions of the adapter's size, entries below 2^17, weights times entries "
                    "below 2^47",
                    got=f"total weight {plan.total_weight}, {plan.seeds.entries} entries",
                    hint='Use weighting = "equal".',
                )
        return MeanSums(Roster(plan), plan.scale_bits(), use=SeedUse.none(seeds) if plan.use else None)

    def add(self, acc: MeanSums, update: Update) -> MeanSums:
        """Add n·δ, or n·c.

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
            acc.of(update.client).coefficients.add_(torch.from_numpy(update.delta.sums), alpha=weight)
            energy = update.delta.energy(plan.directions) if plan.weighs else 0.0
            if acc.use is not None:
                acc.use.add(update.delta)
        else:
            vector = update.delta.vector()
            require_bounded(vector, plan.spec, bound=plan.value_bound, who=who)
            require_covered(vector, plan, update.client)
            sums = acc.of(update.client)
            for part in blocks(vector.numel()):
                sums.total[part].add_(to_fixed(vector[part], acc.bits), alpha=weight)
            sums.values += 1
            energy = energy_of(vector) if plan.weighs else 0.0
        seeded = isinstance(update.delta, Scalars) and update.noise == update.delta.noise(plan.spec.numel)
        acc.seen[update.client] = Seen(weight, energy, min(update.noise, energy), seeded)
        acc.roster.enter(update.client, weight)
        return acc

    def combine(self, left: MeanSums, right: MeanSums) -> MeanSums:
        """Add the sums of two groups."""
        left.roster.require_disjoint(right.roster)
        for name, sums in right.methods.items():
            if name in left.methods:
                left.methods[name].add(sums)
            else:
                left.methods[name] = sums
        left.seen |= right.seen
        if left.use is not None and right.use is not None:
            left.use.join(right.use)
        left.roster.join(right.roster)
        return left

    def finalize(self, acc: MeanSums) -> Merged:
        """The mean, value by value.

        The report has ``delta_norm`` (L2), ``resolution`` (the unit), and where methods are weighed against
        each other ``between`` and ``noise_least`` (squared norms), ``weight_lost`` (the fraction of the
        planned weight that noise cost) and ``progress_METHOD``.
        """
        roster, plan = acc.roster, acc.roster.plan
        if not roster.clients:
            raise EmptyRound("mean", expected="at least one accepted update", got="none")
        weights = {client: row.weight for client, row in acc.seen.items()}
        divisor = divisors(plan, weights, {client: progress_of(client, plan) for client in weights})
        everybody, *others = acc.methods.values()
        if others:
            everybody = MethodSums.none(plan)
            for sums in acc.methods.values():
                everybody.add(sums)
        values = from_fixed(everybody.total, acc.bits) / _where_any(divisor)
        coefficients, stepped = None, None
        if everybody.values < len(roster.clients):
            whole = divisor if isinstance(divisor, float) else float(roster.weight)
            coefficients, expanded = _expanded(plan, everybody.coefficients, whole)
            values += expanded * (whole / _where_any(divisor))
            stepped = expanded * whole
        delta = AdapterState.from_vector(plan.spec, values.float())
        report = {"delta_norm": delta.norm(), "resolution": 2.0**-acc.bits}
        scatter = None
        if plan.weighs:
            scatter = estimate(plan, *_by_method(acc, everybody, stepped))
        if scatter is not None and scatter.noises:
            planned = sum(plan.weights[client] for client in roster.clients)
            report |= {"between": scatter.between, "noise_least": min(scatter.noises.values())}
            report["weight_lost"] = 1 - roster.weight / planned
            report |= {f"progress_{name}": c for name, c in scatter.progress.items()}
        return Merged(
            delta,
            tuple(sorted(roster.clients)),
            roster.weight,
            report,
            coefficients=None if everybody.values else coefficients,
            scatter=scatter,
            use=acc.use,
        )


def _by_method(
    acc: MeanSums, everybody: MethodSums, stepped: Tensor | None
) -> tuple[dict[str, Together], Together]:
    """The plain means of each method's clients and of all, without progress.

    Args:
        acc: the round.
        everybody: the sums of all methods.
        stepped: Σ n·c·z over all methods, float64 [numel]; None without scalars.
    """
    plan, seeded = acc.roster.plan, [name for name, m in acc.methods.items() if bool(m.coefficients.any())]

    def together(sums: MethodSums, clients: Collection[str], stepped: Tensor | None) -> Together:
        seen = {client: acc.seen[client] for client in clients}
        weights = divisors(plan, {client: row.weight for client, row in seen.items()})
        total = from_fixed(sums.total, acc.bits)
        mean = (total if stepped is None else total + stepped) / _where_any(weights)
        by_value = torch.as_tensor(weights, dtype=torch.float64).expand(plan.spec.numel)
        return Together(seen, mean.numpy(), by_value.numpy(), sums.coefficients.numpy())

    methods = {}
    for name, sums in acc.methods.items():
        clients, own = [c for c in acc.seen if plan.groups.get(c, "") == name], None
        if name in seeded:
            own = stepped
            if len(seeded) > 1:
                weight = float(sum(acc.seen[c].weight for c in clients))
                own = _expanded(plan, sums.coefficients, weight)[1] * weight
        methods[name] = together(sums, clients, own)
    return methods, together(everybody, acc.seen, stepped)


def _expanded(plan: MergePlan, sums: Tensor, weight: float) -> tuple[Integers, Tensor]:
    """round(Σ n·c / N · 2^FINE_BITS), halves up, and what these coefficients stand for, float64 [numel]."""
    assert plan.seeds is not None, "no scalars got in"
    assert plan.directions is not None, "init asks for them"
    whole = Fraction(weight)
    above, below = 2 * whole.denominator << FINE_BITS, 2 * whole.numerator
    fine = np.array([(s * above + whole.numerator) // below for s in sums.tolist()], np.int64)
    seeds = np.arange(plan.seeds.first, plan.seeds.first + plan.seeds.count)
    bits = plan.seeds.unit_bits + FINE_BITS + plan.directions.unit_bits
    return fine, torch.from_numpy(to_float32(plan.directions.combine(seeds, fine), bits)).double()


def _where_any(divisor: Tensor | float) -> Tensor | float:
    """``divisor`` with 1 where nobody trains a value: its sum is 0."""
    return divisor if isinstance(divisor, float) else torch.where(divisor > 0, divisor, 1.0)
