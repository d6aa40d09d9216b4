"""SCE: select values that vary, calculate an adapter's weight by its energy there, erase minority signs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Selecting
from headwater.merging.largest import Cut
from headwater.merging.offline.rule import SLACK, Floats, TwoPassRule

_ROUNDING = 1e-13
"""A variance below this part of the mean square is the rounding of its two sums."""


class Sce(TwoPassRule, Selecting):
    """Two passes: Στ and Στ²; then, where selected, ΣE_i·τ_i and ΣE_i of those that agree in sign.

    The d·v values of the largest population variance are selected, v the number that vary at all, at least
    one; where none varies there is nothing to select by, and all stay. E_i is the mean of the squares of
    adapter i's selected values; the sign is that of Στ, and where that is 0 the result is.
    """

    name: ClassVar[str] = "sce"
    line: ClassVar[str] = "keep the values that vary most, weigh by energy, mean of the values that agree"
    source: ClassVar[str] = "Wan et al. 2024 (FuseChat), arXiv 2408.07990; mergekit, sce"
    weighted: ClassVar[bool] = False
    degrees: ClassVar[tuple[int, ...]] = (1, 2)
    signed: ClassVar[tuple[bool, ...]] = (True, False)
    second_degrees: ClassVar[tuple[int, ...]] = (1, 0)

    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:  # noqa: D102 - inherited
        return values, np.square(values)

    def sound(self, sums: tuple[Floats, ...], count: int, bound: float) -> bool:
        """The square of a sum is at most the sum of squares times their number."""
        total, squares = sums
        return bool((np.square(total) <= count * squares * (1 + SLACK) + bound**2 * _ROUNDING).all())

    def between(self, sums: tuple[Floats, ...], count: int) -> tuple[Floats, ...]:
        """The elected sign: 1, −1, or 0 where nothing counts; and the selection.

        What is selected is a power of two and not 1, so that all energies together are at most 1: they count
        only relative to each other, and sums in fixed point must hold those of any updates.
        """
        total, squares = sums
        squares = squares / count
        variance = squares - np.square(total / count)
        variance[variance <= _ROUNDING * squares] = 0.0
        signs = np.sign(total)
        varying = int(np.count_nonzero(variance))
        if varying and self.density < 1:
            Cut.largest(variance, max(1, int(self.density * varying))).apply(variance)
            signs[variance == 0] = 0.0
            selected = (variance > 0).astype(np.float64)
        else:
            selected = np.ones_like(signs)
        energy = count * float(np.mean(squares * selected))
        return signs, selected * 2.0 ** -np.ceil(np.log2(energy) / 2) if energy else selected

    def second_terms(  # noqa: D102 - inherited
        self, first: tuple[Floats, ...], values: Floats, weight: float, count: int
    ) -> tuple[Floats, ...]:
        signs, selected = first
        energy = float(np.square(values * selected).mean())
        agrees = energy * ((np.sign(values) == signs) & (signs != 0))
        return agrees * values, agrees

    def result(self, sums: tuple[Floats, ...]) -> Floats:  # noqa: D102 - inherited
        total, agreeing = sums
        return np.divide(total, agreeing, out=np.zeros_like(total), where=agreeing > 0)
