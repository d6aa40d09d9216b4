"""LoRE-Merging: what the adapters share, plus what each has in few directions of its own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Shared
from headwater.merging.offline.rule import Floats, MatrixRule


class Lore(MatrixRule, Shared):
    """min Σ p_i·(‖c + δ_i − τ_i‖² + 2μ·‖δ_i‖_*) by turns; the result is c + λ·T·Σ p_i·δ_i.

    c = Σ p_i·(τ_i − δ_i), and δ_i = SVT_μ(τ_i − c): its singular values less μ, those below it dropped. With
    λ = 1/T this is the plain mean, whatever μ is: c + Σ p_i·δ_i = Σ p_i·τ_i.
    """

    name: ClassVar[str] = "lore"
    line: ClassVar[str] = "what the adapters share, plus each one's own few directions, added up"
    source: ClassVar[str] = "Liu et al. 2025, arXiv 2502.10749"

    def merge(self, stack: Floats, weights: Floats, side: int) -> Floats:  # noqa: D102 - inherited
        own = np.zeros_like(stack)
        shared = np.tensordot(weights, stack, 1)
        for _ in range(self.iterations):
            left, values, right = np.linalg.svd(stack - shared, full_matrices=False)
            own = (left * np.maximum(values - self.threshold, 0)[:, None, :]) @ right
            shared = np.tensordot(weights, stack - own, 1)
        merged: Floats = shared + self.amplify * len(stack) * np.tensordot(weights, own, 1)
        return merged
