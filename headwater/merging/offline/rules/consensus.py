"""Consensus merging: only values that matter to several adapters, by their TALL masks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Masking
from headwater.merging.offline.rule import SLACK, Floats, TwoPassRule


class Consensus(TwoPassRule, Masking):
    """Two passes: M = Σ p_i·τ_i; then the masks |p_i·τ_i| ≥ λ·|M − p_i·τ_i|, of which k must hold.

    The paper's sum Στ_i is T·M; with equal weights its T stands on both sides. Of T adapters that are all the
    same the masks hold up to T ≤ 1 + 1/λ and then none does: the paper's masks look for what only a few need.
    """

    name: ClassVar[str] = "consensus"
    line: ClassVar[str] = "weighted mean of the values that are in the masks of several adapters"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2405.07813; code nik-dim/tall_masks"
    least: ClassVar[int] = 2
    second_degrees: ClassVar[tuple[int, ...]] = (1, 0)

    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:  # noqa: D102 - inherited
        return (weight * values,)

    def second_terms(  # noqa: D102 - inherited
        self, first: tuple[Floats, ...], values: Floats, weight: float, count: int
    ) -> tuple[Floats, ...]:
        mine = weight * values
        # values that are equal are so however the sum was rounded, which its order decides
        mask = np.abs(mine) >= self.strictness * (1 - SLACK) * np.abs(first[0] - mine)
        return mine, mask.astype(np.float64)

    def result(self, sums: tuple[Floats, ...]) -> Floats:  # noqa: D102 - inherited
        total, masks = sums
        return np.where(masks >= self.agreement, total, 0.0)
