"""MethodSums: what the updates of each method of a round add up to, deltas and coefficients of seeds apart.

Where methods are weighed against each other, the sums of each are kept apart until the round ends; else there
is one sum. A client's coefficients are kept as coefficients and expanded once, in :func:`expanded`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from headwater.merging.coverage import divisors
from headwater.merging.fixed_point import from_fixed, zeros
from headwater.merging.method_weights import MethodWeight
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan
from headwater.merging.update_moments import UpdateNorm, UpdateSums
from headwater.seeds.coefficients import FINE_BITS, to_float32
from headwater.seeds.directions import Integers
from headwater.seeds.slopes import SeedUse


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
        return MethodSums(zeros(plan.spec.numel), zeros(seeds))

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
        norms: of each update that is in, by client.
        use: steps along each seed, where the plan asks for it.
    """

    participants: Participants
    bits: int
    methods: dict[str, MethodSums] = field(default_factory=dict)
    norms: dict[str, UpdateNorm] = field(default_factory=dict)
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


def by_method(acc: MeanSums) -> dict[str, UpdateSums]:
    """What the clients of each method add up to, as they sent it."""
    plan, norms, found = acc.participants.plan, dict[str, dict[str, UpdateNorm]](), dict[str, UpdateSums]()
    for client, row in acc.norms.items():
        norms.setdefault(acc.method(client), {})[client] = row
    for name, sums in sorted(acc.methods.items()):
        total, whole = (
            from_fixed(sums.total, acc.bits),
            float(sum(row.weight for row in norms[name].values())),
        )
        if sums.scalars:
            total += expanded(plan, [(sums, 1.0)], whole)[1] * whole
        weights = divisors(plan, {client: row.weight for client, row in norms[name].items()})
        by_value = torch.as_tensor(weights, dtype=torch.float64).expand(plan.spec.numel)
        found[name] = UpdateSums(norms[name], total.numpy(), by_value.numpy(), sums.coefficients.numpy())
    return found


def weighted(
    methods: Mapping[str, UpdateSums], shares: Mapping[str, MethodWeight], divisor: Tensor | float, size: int
) -> Tensor:
    """Σ f·Σ w·δ / divisor, float64 [size]; zeros without methods."""
    values = torch.zeros(size, dtype=torch.float64)
    for name, method in sorted(methods.items()):
        values += torch.from_numpy(method.total) * shares[name].weight
    return values.div_(divisor if isinstance(divisor, float) else torch.where(divisor > 0, divisor, 1.0))


def expanded(
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
