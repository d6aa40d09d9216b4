"""TIES: trim, elect a sign, mean of those that agree."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from headwater.merging.offline.rule import Floats, ValueRule


class Ties(ValueRule):
    """The four sums of :mod:`headwater.merging.ties`, which says where tools differ; a tie gives 0."""

    name: ClassVar[str] = "ties"
    line: ClassVar[str] = "keep each adapter's largest values, elect signs, mean of the values that agree"
    source: ClassVar[str] = "Yadav et al. 2023, arXiv 2306.01708, section 4"
    trimmed: ClassVar[bool] = True
    density: float = Field(
        default=0.2, gt=0, le=1, description="fraction of an adapter's values that is kept"
    )

    @property
    def kept(self) -> float:  # noqa: D102 - inherited
        return self.density

    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:  # noqa: D102 - inherited
        up, down, share = values > 0, values < 0, weight * values
        mine = np.full_like(values, weight)
        zero = np.zeros_like(values)
        return (
            np.where(up, share, zero),
            np.where(down, -share, zero),
            np.where(up, mine, zero),
            np.where(down, mine, zero),
        )

    def result(self, sums: tuple[Floats, ...]) -> Floats:  # noqa: D102 - inherited
        positive, negative, for_positive, for_negative = sums
        total = np.where(positive > negative, positive, -negative)
        agreeing = np.where(positive > negative, for_positive, for_negative)
        mean = np.divide(total, agreeing, out=np.zeros_like(total), where=agreeing > 0)
        return np.where(positive == negative, 0.0, mean)
