"""Singular vectors of changes, cut where only the rounding of the adapters' float32 is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.merging.offline.low_rank import EXACT
from headwater.merging.offline.rule import Floats


@dataclass(frozen=True)
class Spectral:
    """A matrix as Σ s_k·u_k·v_kᵀ.

    Args:
        left: u [rows, r].
        values: s [r], all positive, the largest first.
        right: v [r, columns].
    """

    left: Floats
    values: Floats
    right: Floats

    @staticmethod
    def of(matrix: Floats, floor: float = 0.0) -> Spectral:
        """Without singular values that are rounding: below ``floor``, or that part of the largest."""
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        rank = int(np.count_nonzero(values > max(floor, EXACT * float(values.max(initial=0.0)))))
        return Spectral(left[:, :rank], values[:rank], right[:rank])

    def first(self, count: int) -> Spectral:
        """The ``count`` largest."""
        return Spectral(self.left[:, :count], self.values[:count], self.right[:count])


def together(parts: list[Spectral]) -> Spectral:
    """The parts side by side; ``values`` need then be in no order."""
    return Spectral(
        np.concatenate([part.left for part in parts], axis=1),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.right for part in parts]),
    )


def nearest_orthogonal(matrix: Floats) -> Floats:
    """The polar factor P·Qᵀ of P·S·Qᵀ, over its own rank: the nearest orthogonal matrix.

    Where columns repeat, a full polar factor has arbitrary vectors in place of the repetitions.
    """
    found = Spectral.of(matrix)
    return found.left @ found.right
