"""Model Stock: as far from the base as the adapters agree."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.merging.offline.rule import Floats, LinearRule


class ModelStock(LinearRule):
    """c = t·p, t = T·cos φ / (1 + (T − 1)·cos φ), cos φ the mean over pairs, of each weight by itself.

    cos φ is held in [0, 1]: below 0 the formula turns the mean around, and at −1/(T − 1) it has a pole. One
    adapter has no pair and stays as it is.
    """

    name: ClassVar[str] = "model_stock"
    line: ClassVar[str] = "weighted mean, drawn to the base where the adapters' directions differ"
    source: ClassVar[str] = "Jang et al. 2024, arXiv 2403.19522"
    passes: ClassVar[int] = 2
    needs_products: ClassVar[bool] = True
    per_weight: ClassVar[bool] = True

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        assert products is not None
        count = len(weights)
        if count == 1:
            return weights
        norms = np.sqrt(np.maximum(np.diag(products), 0))
        lengths = np.outer(norms, norms)
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        return weights * self.drawn(float(cosines[np.triu_indices(count, 1)].mean()), count)

    @staticmethod
    def drawn(cosine: float, count: int) -> float:
        """T of ``count`` adapters, two or more, and the mean cosine of their pairs."""
        cosine = min(max(cosine, 0.0), 1.0)
        return count * cosine / (1 + (count - 1) * cosine)
