"""CoPA-Merging, later RobustMerge: factors are pruned, and B is scaled up for what A lost."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from headwater.config.rule_settings import Trimming
from headwater.merging.largest import Cut
from headwater.merging.offline.rule import FactorRule, Floats


class Copa(FactorRule, Trimming):
    """A = Σ p_i·Â_i and B = (Σ p_i·B̂_i·S_i)·(Σ p_i·S_i)⁻¹, with the form of the authors' code.

    Â and B̂ are A and B without all but their largest values, and S_i is diagonal: Σ|a| over Σ|â| of each row
    of A_i, those below the ``compensated`` largest raised to the least of these. The code's factor of 2 in
    both is ``--scale`` 4·T. Three departures: it keeps ⌈d·n⌉ + 1 values or more; a row of A of which nothing
    is left has S = ∞ there, and makes B nan, and has 1 here before it is raised; and by default the factors
    are balanced ones, so that the merge depends on the changes alone. ``--space factors`` takes the files'.
    """

    name: ClassVar[str] = "copa"
    line: ClassVar[str] = "factors without their small values, B scaled up for what A lost"
    source: ClassVar[str] = "Zeng et al. 2025, arXiv 2502.17159; code AuroraZengfh/RobustMerge, builder.py"
    compensated: float = Field(
        default=0.2, gt=0, le=1, description="fraction of the components, the largest S, that keep theirs"
    )

    def merge(self, ups: Floats, downs: Floats, weights: Floats) -> tuple[Floats, Floats]:  # noqa: D102 - inherited
        small_ups, small_downs = self._pruned(ups), self._pruned(downs)
        scales = weights[:, None] * self.scales(np.abs(downs).sum(axis=2), np.abs(small_downs).sum(axis=2))
        b: Floats = np.einsum("tnr,tr->nr", small_ups, scales) / scales.sum(axis=0)
        return b, np.tensordot(weights, small_downs, 1)

    def scales(self, before: Floats, after: Floats) -> Floats:
        """S [T, r] of Σ|a| and Σ|â| [T, r]."""
        found = np.divide(before, after, out=np.ones_like(before), where=after > 0)
        least = min(int((1 - self.compensated) * found.shape[1]), found.shape[1] - 1)
        raised: Floats = np.maximum(found, np.sort(found, axis=1)[:, least, None])
        return raised

    def _pruned(self, factors: Floats) -> Floats:
        pruned = factors.copy()
        for one in pruned:
            flat = one.reshape(-1)
            Cut.of(flat, self.density).apply(flat)
        return pruned
