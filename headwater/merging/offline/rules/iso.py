"""Isotropic merging: all directions of the sum get one singular value."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Common
from headwater.merging.offline.rule import Floats, MatrixRule
from headwater.merging.offline.rules.spectra import Spectral, nearest_orthogonal, together


class IsoC(MatrixRule):
    """σ̄·U·Vᵀ of Σ w_i·τ_i = U·S·Vᵀ, σ̄ the mean singular value, over the directions that the sum has.

    The paper's weights have full rank. Of LoRA the mean over all min(rows, columns) would shrink σ̄, and the
    directions without any change would get it.
    """

    name: ClassVar[str] = "iso_c"
    line: ClassVar[str] = "sum of the changes with all its singular values made equal"
    source: ClassVar[str] = "Marczak et al. 2025, arXiv 2502.04959; as FusionBench's iso_c"
    weighs: ClassVar[bool] = False
    of_sum: ClassVar[bool] = True

    def merge(self, stack: Floats, weights: Floats, side: int) -> Floats:  # noqa: D102 - inherited
        found = Spectral.of(np.tensordot(weights, stack, 1))
        if not found.values.size:
            return np.zeros(stack.shape[1:])
        return float(found.values.mean()) * (found.left @ found.right)


class IsoCts(MatrixRule, Common):
    """The sum's first directions, then each adapter's own first ones beside them, made orthogonal, equal.

    R is the number of directions that the adapters have together: the rank of [τ_1 … τ_T], or of the τ_i
    below each other if that is smaller. Each adapter adds ⌊(1 − common)·R/T⌉ directions, the sum the others.
    """

    name: ClassVar[str] = "iso_cts"
    line: ClassVar[str] = "iso_c with some directions of each adapter by itself"
    source: ClassVar[str] = "Marczak et al. 2025, arXiv 2502.04959; as FusionBench's iso_cts"
    weighs: ClassVar[bool] = False

    def merge(self, stack: Floats, weights: Floats, side: int) -> Floats:  # noqa: D102 - inherited
        matrices = weights[:, None, None] * stack
        shared = Spectral.of(matrices.sum(axis=0))
        size = min(_rank(np.concatenate(matrices, axis=1)), _rank(np.concatenate(matrices, axis=0)))
        own = round((size - int(size * self.common)) / len(stack))
        own = min(own, (size - 1) // len(stack)) if size else 0
        shared = shared.first(size - own * len(stack))
        parts = [shared]
        if own:
            floor = 1e-6 * max(float(np.linalg.norm(matrix)) for matrix in matrices)
            for matrix in matrices:
                rest = matrix - shared.left @ (shared.left.T @ matrix)
                parts.append(Spectral.of(rest, floor).first(own))
        all_ = together(parts)
        if not all_.values.size:
            return np.zeros(stack.shape[1:])
        merged = nearest_orthogonal(all_.left) @ nearest_orthogonal(all_.right)
        return float(all_.values.mean()) * merged


def _rank(matrix: Floats) -> int:
    return Spectral.of(matrix).values.size
