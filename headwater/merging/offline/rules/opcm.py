"""OPCM: each adapter adds what is orthogonal to the leading directions of those before it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from headwater.merging.offline.low_rank import EXACT
from headwater.merging.offline.rule import Floats, SequentialRule


class Opcm(SequentialRule):
    """S_t = S_{t−1} + U·P·Vᵀ with S_{t−1} = U·Σ·Vᵀ; P is Uᵀ·τ_t·V without its diagonal and first r×r block.

    r is the number of leading directions of S_{t−1} whose singular values sum to no more than α of all. The
    paper's λ_t keeps the merged change as long as the mean adapter at every step, and only scales the last S.
    Its changes have full rank; of LoRA the diagonal is that of the directions that S_{t−1} has: beyond them U
    and V are any.
    """

    name: ClassVar[str] = "opcm"
    line: ClassVar[str] = "one adapter after the other, each by what is orthogonal to those before it"
    source: ClassVar[str] = "Tang et al. 2025, arXiv 2501.09522; as FusionBench's opcm"
    alpha: float = Field(
        default=0.5, ge=0, lt=1, description="α: of the singular values' sum, the part that is kept free"
    )

    def join(self, merged: Floats, change: Floats) -> Floats:  # noqa: D102 - inherited
        left, values, right = np.linalg.svd(merged, full_matrices=True)
        rank = int(np.count_nonzero(values > EXACT * float(values.max(initial=0.0))))
        if not rank:
            return merged + change
        free = int(np.argmax(np.cumsum(values) / values.sum() > self.alpha))
        part = left.T @ change @ right.T
        part[range(rank), range(rank)] = 0.0
        part[:free, :free] = 0.0
        found: Floats = merged + left @ part @ right
        return found
