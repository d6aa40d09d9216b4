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
_TOGETHER = 4
_HEAVIEST = 1 << 27
"""A weight below which four together leave a product with a whole float32 exact in float64."""
_NONE = int(np.iinfo(np.int32).max)
"""No magnitude's bits are more."""


class HeldUpdates:
    """Copies of updates, and which of their values count; nothing at first.

    Memory: 16 bytes a value from the first update on.
    """

    def __init__(self) -> None:
        self._rows: npt.NDArray[np.float32] | None = None
        self._kernels: Kernels | None = None
        self._edges, self._weights = list[int](), list[int]()

    @staticmethod
    def can_hold(values: npt.NDArray[np.float32], weight: int) -> bool:
        """Whether :meth:`hold` takes such an update."""
        return values.size > 0 and bool(values.flags.c_contiguous) and weight < _HEAVIEST

    def hold(
        self, kernels: Kernels, values: npt.NDArray[np.float32], *, count: int, limit: int, weight: int
    ) -> bool:
        """Keep a copy of an update.

        Args:
            kernels: to copy with.
            values: [n].
            count: how many of them count, the largest, at least 1; of equal ones the earlier.
            limit: bits of the largest magnitude that is allowed.
            weight: of the update.

        Returns:
            False, and nothing is kept, if a value is beyond the limit.
        """
        if self._rows is None:
            self._rows, self._kernels = np.empty((_TOGETHER, values.size), np.float32), kernels
        row = self._rows[len(self._weights)]
        if count < values.size:
            edge = Edge.of(values, count, bits_of(row))
            least, largest = edge.bits, cast(int, edge.largest)  # whoever copies looks
            kernels.drop_last(bits_of(row), edge.bits, edge.spare)
        else:
            found, least = np.empty(1, np.uint32), 0
            _, _, largest = kernels.near(values.view(np.uint32), _NONE, _NONE, found, row.view(np.uint32))
        if largest > limit:
            return False
        self._edges.append(least - 1)
        self._weights.append(weight)
        return True

    @property
    def full(self) -> bool:
        """Whether no other fits."""
        return len(self._weights) == _TOGETHER

    @property
    def empty(self) -> bool:
        """Whether none waits."""
        return not self._weights

    def add_to(self, sums: list[Integers], bits: int) -> None:
        """Add all to the four sums [n] of TIES in units of 2^-bits, and hold none."""
        if self._rows is None or self._kernels is None or self.empty:
            return
        missing = _TOGETHER - len(self._weights)
        edges: Integers = np.array(self._edges + missing * [_NONE])
        weights: Integers = np.array(self._weights + missing * [0])
        raw = self._rows.view(np.int32)
        positive, negative, for_positive, for_negative = sums
        self._kernels.elect(
            positive, negative, for_positive, for_negative, self._rows, raw, edges, weights, 2.0**bits
        )
        self._edges, self._weights = [], []
