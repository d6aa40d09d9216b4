"""TSV-Merge: singular vectors of all tasks, made orthogonal to each other."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.merging.offline.rule import Floats, MatrixRule
from headwater.merging.offline.rules.spectra import Spectral, nearest_orthogonal, together


class TsvM(MatrixRule):
    """U⊥·Σ·V⊥ᵀ, with U⊥ and V⊥ the polar factors of all adapters' singular vectors side by side.

    The paper keeps the first side/T triplets of each adapter, so that all have room. Adapters whose ranks sum
    to no more than the side have room as they are, and are kept whole.
    """

    name: ClassVar[str] = "tsv_m"
    line: ClassVar[str] = "sum of the adapters' singular triplets, their vectors made orthogonal"
    source: ClassVar[str] = "Gargiulo et al. 2025, arXiv 2412.00081; as FusionBench's task_singular_vector"
    weighs: ClassVar[bool] = False

    def merge(self, stack: Floats, weights: Floats, side: int) -> Floats:  # noqa: D102 - inherited
        parts = [Spectral.of(matrix) for matrix in stack]
        if sum(part.values.size for part in parts) > side:
            parts = [part.first(max(1, side // len(parts))) for part in parts]
        all_ = together(
            [Spectral(p.left, w * p.values, p.right) for p, w in zip(parts, weights, strict=True)]
        )
        if not all_.values.size:
            return np.zeros(stack.shape[1:])
        return (nearest_orthogonal(all_.left) * all_.values) @ nearest_orthogonal(all_.right)
