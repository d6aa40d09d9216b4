"""MagMax: of all adapters the value that is furthest from zero."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.merging.offline.rule import Floats, ValueRule


class MagMax(ValueRule):
    """The value of the largest magnitude; where +x and −x are the largest, 0, so that no order decides."""

    name: ClassVar[str] = "magmax"
    line: ClassVar[str] = "value by value the one of the largest magnitude"
    source: ClassVar[str] = "Marczak et al. 2024, arXiv 2407.06322; code danielm1405/magmax, merge_max_abs"
    weighted: ClassVar[bool] = False
    blockwise: ClassVar[bool] = True
    degrees: ClassVar[tuple[int, ...]] = (1, 1)
    signed: ClassVar[tuple[bool, ...]] = (False, False)
    join: ClassVar[np.ufunc] = np.maximum

    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:  # noqa: D102 - inherited
        return np.maximum(values, 0), np.maximum(-values, 0)

    def result(self, sums: tuple[Floats, ...]) -> Floats:  # noqa: D102 - inherited
        positive, negative = sums
        return np.where(positive > negative, positive, np.where(negative > positive, -negative, 0.0))
