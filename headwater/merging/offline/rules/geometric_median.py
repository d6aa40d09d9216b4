"""The geometric median: the point with the smallest weighted sum of distances to the adapters."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Weiszfeld
from headwater.merging.offline.rule import Floats, LinearRule


class GeometricMedian(LinearRule, Weiszfeld):
    """Smoothed Weiszfeld steps c_i ∝ p_i / max(ν, ‖z − τ_i‖), z = Σ c_i·τ_i, from z = Σ p_i·τ_i.

    ‖z − τ_i‖² comes from inner products alone. The paper's ν is a length; here it is a part of the median
    length, so that the rule does not depend on the scale of the adapters, nor on a few huge ones.
    """

    name: ClassVar[str] = "geometric_median"
    line: ClassVar[str] = "the point with the smallest sum of distances; less than half may be hostile"
    source: ClassVar[str] = "Pillutla et al. 2022, arXiv 1912.13445, smoothed Weiszfeld"
    passes: ClassVar[int] = 2
    needs_products: ClassVar[bool] = True
    differences: ClassVar[bool] = True

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        assert products is not None
        squares = np.diag(products)
        moves = squares > 0
        if not moves.any():
            return weights
        floor = self.smoothing * float(np.median(np.sqrt(squares[moves])))
        point = weights
        for _ in range(self.iterations):
            apart = squares - 2 * products @ point + point @ products @ point
            pulls = weights / np.maximum(np.sqrt(np.maximum(apart, 0)), floor)
            new = pulls / pulls.sum()
            if np.abs(new - point).max() < 1e-12:
                break
            point = new
        return point
