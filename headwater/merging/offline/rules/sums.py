"""What value rules do with values once each adapter has dropped some of its own: add, or elect signs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.kernels import gate
from headwater.merging.offline.rule import SLACK, Floats, ValueRule


class WeightedSum(ValueRule):
    """Σ p_i·τ̂_i."""

    blockwise: ClassVar[bool] = True

    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:  # noqa: D102 - inherited
        return (weight * values,)

    def result(self, sums: tuple[Floats, ...]) -> Floats:  # noqa: D102 - inherited
        return sums[0]


class ElectedSigns(ValueRule):
    """The mean of the values that have the elected sign, which is that of Σ p_i·τ̂_i; a tie gives 0.

    The four sums of :mod:`headwater.merging.ties`, which says where tools differ.
    """

    blockwise: ClassVar[bool] = True
    degrees: ClassVar[tuple[int, ...]] = (1, 1, 0, 0)
    signed: ClassVar[tuple[bool, ...]] = (False, False, False, False)
    saved: ClassVar[float] = 4.0

    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:  # noqa: D102 - inherited
        share = weight * values
        positive: Floats = np.maximum(share, 0.0)
        up: Floats = np.multiply(weight, values > 0)
        down: Floats = np.multiply(weight, values < 0)
        return positive, positive - share, up, down

    def add(  # noqa: D102 - inherited
        self, sums: tuple[Floats, ...], values: Floats, weight: float, room: tuple[Floats, Floats]
    ) -> None:
        positive, negative, up, down = sums
        if (compiled := gate.GATE.after(self.saved * values.size)) is not None:
            compiled.elect_shares(positive, negative, up, down, values, weight)
            return
        share, part = room[0][: values.size], room[1][: values.size]
        np.multiply(values, weight, out=share)
        np.maximum(share, 0.0, out=part)
        np.add(positive, part, out=positive)
        np.subtract(part, share, out=part)
        np.add(negative, part, out=negative)
        for compare, total in ((np.greater, up), (np.less, down)):
            compare(values, 0.0, out=part)
            np.multiply(part, weight, out=part)
            np.add(total, part, out=total)

    def sound(self, sums: tuple[Floats, ...], count: int, bound: float) -> bool:
        """No mean of the values that agree is above the bound, and each adapter has one sign."""
        positive, negative, up, down = sums
        most = bound * (1 + SLACK)
        fits = (positive <= most * up) & (negative <= most * down) & (up + down <= 1 + SLACK)
        return bool(fits.all())

    def result(self, sums: tuple[Floats, ...]) -> Floats:  # noqa: D102 - inherited
        positive, negative, for_positive, for_negative = sums
        total = np.where(positive > negative, positive, -negative)
        agreeing = np.where(positive > negative, for_positive, for_negative)
        mean = np.divide(total, agreeing, out=np.zeros_like(total), where=agreeing > 0)
        return np.where(positive == negative, 0.0, mean)
