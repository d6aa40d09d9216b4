"""MeanAggregator: the weighted mean of the updates, deltas and coefficients of seeds in one sum.

FedAvg (McMahan et al. 2017, arXiv 1602.05629): Δ = Σ w_i·δ_i / Σ w_i. A delta adds to Σ w·δ; coefficients
add to Σ w·a, one number for each seed (FedKSeed, arXiv 2312.06353), and are expanded once, when the round
ends: Σ_i w_i Σ_s a_is·z_s = Σ_s (Σ_i w_i·a_is)·z_s. Where methods are weighed against each other
(:mod:`.method_weights`), each method's sums are kept apart until the round ends, and a client's
coefficients are also expanded once, for how long its update is. A value's divisor depends on who trained it
(:mod:`headwater.merging.coverage`). The server's optimiser is the business of the strategy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from headwater.errors import ConfigError, EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.coverage import divisors, require_covered
from headwater.merging.fixed_point import blocks, from_fixed, require_bounded, to_fixed
from headwater.merging.method_weights import MethodWeight, completed, estimate, longest, shares_of, smoothed
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.merging.update_moments import UpdateNorm, UpdateSums, energy_of, require_noise
from headwater.seeds.coefficients import FINE_BITS, SeedCoefficients, to_float32
from headwater.seeds.directions import Integers
from headwater.seeds.slopes import SeedUse
from headwater.state import AdapterState


@dataclass
class MethodSums:
    """What the clients of one method add up to.

    Args:
        total: int64 [numel], Σ w·δ.
        coefficients: int64 [plan.seeds.count], Σ w·a; empty if the plan has no seeds.
        values: how many clients sent a delta.
        scalars: how many sent coefficients.
    """

    total: Tensor
    coefficients: Tensor
    values: int = 0
    scalars: int = 0

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
        self.scalars += other.scalars


@dataclass
class MeanSums:
    """What a round adds up.

    Args:
        participants: who is in.
        bits: totals are in units of 2^-bits.
        methods: by method, where methods are weighed against each other; else all under "".
        seen: those who are in.
        use: steps along each seed, where the plan asks for it.
    """

    participants: Participants
    bits: int
    methods: dict[str, MethodSums] = field(default_factory=dict)
    seen: dict[str, UpdateNorm] = field(default_factory=dict)
    use: SeedUse | None = None

    def method(self, client: str) -> str:
        """Whose sums ``client`` adds to."""
        plan = self.participants.plan
        return plan.groups.get(client, "") if plan.weighs else ""

    def of(self, client: str) -> MethodSums:
        """The sums that ``client`` adds to."""
        name = self.method(client)
        if name not in self.methods:
            self.methods[name] = MethodSums.none(self.participants.plan)
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
        return MeanSums(Participants(plan), plan.scale_bits(), use=SeedUse.none(seeds) if plan.use else None)

    def add(self, acc: MeanSums, update: Update) -> MeanSums:
        """Add w·δ, or w·a.

        Raises:
            UpdateRejected: also scalars of another plan, values outside what the client trains, or a
                noise that is not a number ≥ 0.
        """
        plan, who = acc.participants.plan, f"client {update.client}"
        weight, energy = acc.participants.weight_of(update), 0.0
        require_noise(update.noise, update.client)
        if isinstance(update.delta, SeedCoefficients):
            if plan.seeds is None or plan.directions is None:
                raise UpdateRejected(who, expected="a delta", got="coefficients of seeds")
            if update.client in plan.tensors or update.client in plan.ranks:
                raise UpdateRejected(
                    who, expected="a delta: its plan names tensors or a rank", got="coefficients of seeds"
                )
            update.delta.require(plan.seeds, who)
            sums = acc.of(update.client)
            sums.coefficients.add_(torch.from_numpy(update.delta.sums), alpha=weight)
            sums.scalars += 1
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
        seeded = isinstance(update.delta, SeedCoefficients) and update.noise == update.delta.noise(
            plan.spec.numel
        )
        acc.seen[update.client] = UpdateNorm(weight, energy, min(update.noise, energy), seeded)
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: MeanSums, right: MeanSums) -> MeanSums:
        """Add the sums of two groups."""
        left.participants.require_disjoint(right.participants)
        for name, sums in right.methods.items():
            if name in left.methods:
                left.methods[name].add(sums)
            else:
                left.methods[name] = sums
        left.seen |= right.seen
        if left.use is not None and right.use is not None:
            left.use.join(right.use)
        left.participants.join(right.participants)
        return left

    def finalize(self, acc: MeanSums) -> Merged:
        """The mean, value by value.

        The report has ``delta_norm`` (L2), ``resolution`` (the unit), and where methods are weighed against
        each other ``between`` (a squared norm), ``shortened`` (what the mean was multiplied by, below 1 if it
        was too long), and ``noise_METHOD``, ``progress_METHOD`` and ``weight_METHOD``, the fraction of the
        planned weight that its clients have.
        """
        participants, plan = acc.participants, acc.participants.plan
        if not participants.clients:
            raise EmptyRound("mean", expected="at least one accepted update", got="none")
        names, methods = sorted(acc.methods), dict[str, UpdateSums]()
        only_scalars = not any(sums.values for sums in acc.methods.values())
        if plan.weighs or not only_scalars:
            methods = _by_method(acc)
        told = estimate(plan, methods) if plan.weighs else None
        shares = shares_of(completed(plan.noise, told) if plan.weighs else None, names)
        by_client = {client: shares[acc.method(client)] for client in acc.seen}
        weights = {client: row.weight * by_client[client].weight for client, row in acc.seen.items()}
        divisor = divisors(plan, weights, {client: share.progress for client, share in by_client.items()})
        values, coefficients = _weighted(methods, shares, divisor, plan.spec.numel), None
        shortened = 1.0
        if plan.weighs:
            shortened = min(1.0, longest(plan, methods, shares) / max(math.sqrt(energy_of(values)), 1e-300))
        if only_scalars:
            assert isinstance(divisor, float), "whoever sends scalars trains all"
            parts = [(acc.methods[name], shares[name].weight) for name in names]
            coefficients, values = _expanded(plan, parts, divisor / shortened)
        else:
            values *= shortened
        delta = AdapterState.from_vector(plan.spec, values.float())
        report = {"delta_norm": delta.norm(), "resolution": 2.0**-acc.bits}
        noise = smoothed(plan.noise, told) if plan.weighs else None
        if noise is not None:
            report["between"] = noise.between
            report["shortened"] = shortened
            report |= {f"noise_{name}": noise.noises[name] for name in names if name in noise.noises}
            report |= {f"progress_{name}": shares[name].progress for name in names}
            report |= {f"weight_{name}": shares[name].weight for name in names}
        return Merged(
            delta,
            tuple(sorted(participants.clients)),
            participants.weight,
            report,
            coefficients=coefficients,
            noise=noise,
            use=acc.use,
        )


def _by_method(acc: MeanSums) -> dict[str, UpdateSums]:
    """What the clients of each method add up to, as they sent it."""
    plan, seen, found = acc.participants.plan, dict[str, dict[str, UpdateNorm]](), dict[str, UpdateSums]()
    for client, row in acc.seen.items():
        seen.setdefault(acc.method(client), {})[client] = row
    for name, sums in sorted(acc.methods.items()):
        total, whole = from_fixed(sums.total, acc.bits), float(sum(row.weight for row in seen[name].values()))
        if sums.scalars:
            total += _expanded(plan, [(sums, 1.0)], whole)[1] * whole
        weights = divisors(plan, {client: row.weight for client, row in seen[name].items()})
        by_value = torch.as_tensor(weights, dtype=torch.float64).expand(plan.spec.numel)
        found[name] = UpdateSums(seen[name], total.numpy(), by_value.numpy(), sums.coefficients.numpy())
    return found


def _weighted(
    methods: Mapping[str, UpdateSums], shares: Mapping[str, MethodWeight], divisor: Tensor | float, size: int
) -> Tensor:
    """Σ f·Σ w·δ / divisor, float64 [size]; zeros without methods."""
    values = torch.zeros(size, dtype=torch.float64)
    for name, method in sorted(methods.items()):
        values += torch.from_numpy(method.total) * shares[name].weight
    return values.div_(divisor if isinstance(divisor, float) else torch.where(divisor > 0, divisor, 1.0))


def _expanded(
    plan: MergePlan, parts: Sequence[tuple[MethodSums, float]], divisor: float
) -> tuple[Integers, Tensor]:
    """The mean coefficients, and what they stand for.

    Args:
        plan: with seeds.
        parts: Σ w·a, and what it is multiplied by.
        divisor: what their sum is divided by.

    Returns:
        round(Σ f·Σ w·a / divisor · 2^FINE_BITS), halves up, int64 [seeds]; float64 [numel].
    """
    assert plan.seeds is not None, "no scalars got in"
    assert plan.directions is not None, "init asks for them"
    factors = [Fraction(factor) for _, factor in parts]
    unit = max(factor.denominator for factor in factors)  # powers of two, as of all floats
    rows = [(sums.coefficients.tolist(), int(f * unit)) for (sums, _), f in zip(parts, factors, strict=True)]
    exact = [sum(values[s] * factor for values, factor in rows) for s in range(plan.seeds.count)]
    whole = Fraction(divisor) * unit
    above, below = 2 * whole.denominator << FINE_BITS, 2 * whole.numerator
    fine = np.array([(value * above + whole.numerator) // below for value in exact], np.int64)
    seeds = np.arange(plan.seeds.first, plan.seeds.first + plan.seeds.count)
    bits = plan.seeds.unit_bits + FINE_BITS + plan.directions.unit_bits
    return fine, torch.from_numpy(to_float32(plan.directions.combine(seeds, fine), bits)).double()
