"""Weighing: what the updates of each method count in a round, and how long their mean may be.

The formulas and where they come from: :mod:`headwater.merging.method_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from headwater.merging.method_weights import MethodWeight, completed, estimate, longest, shares_of, smoothed
from headwater.merging.plan import MergePlan, NoisePlan
from headwater.merging.update_moments import UpdateSums, energy_of


@dataclass(frozen=True, slots=True)
class Weighing:
    """How methods are weighed against each other in one round.

    Args:
        shares: by method, the factor of its clients' weights, and its progress.
        longest: the L2 norm that the mean may have; infinite where nothing bounds it.
        noise: what this round and the rounds before tell of the methods; None where they are not weighed.
    """

    shares: Mapping[str, MethodWeight]
    longest: float = math.inf
    noise: NoisePlan | None = None

    def shortening(self, mean: Tensor) -> float:
        """What a mean, float64 [numel], is multiplied by: 1, or less if it is too long."""
        if math.isinf(self.longest):
            return 1.0
        return min(1.0, self.longest / max(math.sqrt(energy_of(mean)), 1e-300))

    def report(self, shortened: float) -> dict[str, float]:
        """Numbers for people; none where methods are not weighed."""
        if self.noise is None:
            return {}
        noises, names = self.noise.noises, sorted(self.shares)
        return {
            "between": self.noise.between,
            "shortened": shortened,
            **{f"noise_{name}": noises[name] for name in names if name in noises},
            **{f"progress_{name}": self.shares[name].progress for name in names},
            **{f"weight_{name}": self.shares[name].weight for name in names},
        }


def weigh(plan: MergePlan, names: Iterable[str], methods: Mapping[str, UpdateSums]) -> Weighing:
    """The weighing of these methods; each counts as planned where the plan does not weigh methods.

    Args:
        plan: of the round.
        names: of the methods that are in.
        methods: their updates; read only where the plan weighs methods.
    """
    if not plan.weighs:
        return Weighing(shares_of(None, names))
    told = estimate(plan, methods)
    shares = shares_of(completed(plan.noise, told), names)
    return Weighing(shares, longest(plan, methods, shares), smoothed(plan.noise, told))
