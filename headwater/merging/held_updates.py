"""HeldUpdates: a few updates that TIES has cut and not added yet.

The four sums are eight times as long as an update, and what adding costs is to move them through the core.
Where loops are compiled, four updates wait for each other, and are added in one pass.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from headwater.kernels.gate import Kernels
from headwater.merging.largest import Edge, bits_of

Integers = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]
_TOGETHER = 4
_HEAVIEST = 1 << 27
"""A weight below which four together leave a product with a whole float32 exact in float64."""
_NONE = int(np.iinfo(np.int32).max)
"""No magnitude's bits are more."""


class HeldUpdates:
    """Updates, whose values must not change, and which of them count; nothing at first."""

    def __init__(self) -> None:
        self._kernels: Kernels | None = None
        self._rows = list[Singles]()
        self._edges, self._weights = list[int](), list[int]()
        self._spare = list[Integers]()  # places of each

    @staticmethod
    def can_hold(values: Singles, weight: int) -> bool:
        """Whether :meth:`hold` takes such an update."""
        return values.size > 0 and bool(values.flags.c_contiguous) and weight < _HEAVIEST

    def hold(self, kernels: Kernels, values: Singles, *, count: int, limit: int, weight: int) -> bool:
        """Keep an update.

        Args:
            kernels: to look with.
            values: [n].
            count: how many of them count, the largest, at least 1; of equal ones the earlier.
            limit: bits of the largest magnitude that is allowed.
            weight: of the update.

        Returns:
            False, and nothing is kept, if a value is beyond the limit.
        """
        if count < values.size:
            edge = Edge.of(values, count)
            least, spare, largest = edge.bits, edge.spare, cast(int, edge.largest)  # compiled loops look
        else:
            found, least, spare = np.empty(1, np.uint32), 0, 0
            _, _, largest = kernels.near(values.view(np.uint32), _NONE, _NONE, found)
        if largest > limit:
            return False
        places = np.empty(spare, np.int64)
        kernels.last_places(bits_of(values), least, places)
        self._kernels = kernels
        self._spare.append(places)
        self._rows.append(values)
        self._edges.append(least - 1)
        self._weights.append(weight)
        return True

    @property
    def full(self) -> bool:
        """Whether no other fits."""
        return len(self._rows) == _TOGETHER

    @property
    def empty(self) -> bool:
        """Whether none waits."""
        return not self._rows

    def add_to(self, sums: list[Integers], bits: int) -> None:
        """Add all to the four sums [n] of TIES in units of 2^-bits, and hold none."""
        if self._kernels is None or self.empty:
            return
        missing = _TOGETHER - len(self._rows)
        x0, x1, x2, x3 = self._rows + missing * self._rows[:1]
        edges: Integers = np.array(self._edges + missing * [_NONE])
        weights: Integers = np.array(self._weights + missing * [0])
        positive, negative, for_positive, for_negative = sums
        self._kernels.elect(
            positive, negative, for_positive, for_negative, x0, x1, x2, x3, edges, weights, 2.0**bits
        )
        for x, weight, places in zip(self._rows, self._weights, self._spare, strict=True):
            if places.size:
                _take_back(sums, x[places], weight, bits, places)
        self._rows, self._edges, self._weights, self._spare = [], [], [], []


def _take_back(sums: list[Integers], values: Singles, weight: int, bits: int, places: Integers) -> None:
    """Take out of the sums what was added at ``places``: of equal magnitudes the last, which do not count."""
    positive, negative, for_positive, for_negative = sums
    units = np.rint(values * np.float32(2.0**bits)).astype(np.int64) * weight
    positive[places] -= np.maximum(units, 0)
    negative[places] += np.minimum(units, 0)
    for_positive[places] -= weight * (units > 0)
    for_negative[places] -= weight * (units < 0)
