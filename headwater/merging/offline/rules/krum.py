"""Krum and Multi-Krum: the adapters that have the most close neighbours."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Faulty, FaultySelected
from headwater.errors import ConfigError
from headwater.merging.offline.rule import Floats, LinearRule


class Krum(LinearRule, Faulty):
    """c = 1 for the adapter with the smallest sum of squared distances to its T − f − 2 nearest others.

    Distances are those of the whole changes, ⟨τ_i, τ_i⟩ − 2⟨τ_i, τ_j⟩ + ⟨τ_j, τ_j⟩: distances of factors
    would depend on their bases. Of equal scores the adapter whose contents sort first is taken.
    """

    name: ClassVar[str] = "krum"
    line: ClassVar[str] = "the one adapter that lies closest to most others"
    source: ClassVar[str] = "Blanchard et al. 2017, arXiv 1703.02757"
    passes: ClassVar[int] = 2
    weighted: ClassVar[bool] = False
    least: ClassVar[int] = 3
    needs_products: ClassVar[bool] = True
    differences: ClassVar[bool] = True

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        assert products is not None
        found = np.zeros_like(weights)
        found[int(self.scores(products).argmin())] = 1.0
        return found

    def scores(self, products: Floats) -> Floats:
        """The sums [T]; the smaller the better."""
        count = len(products)
        if count < 2 * self.faulty + 3:
            raise ConfigError(
                f"rule {self.name}",
                expected=f"at least {2 * self.faulty + 3} adapters with --faulty {self.faulty}",
                got=f"{count}",
                hint="Say a smaller --faulty if you trust more of them.",
            )
        squares = np.diag(products)
        distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
        np.fill_diagonal(distances, 0)
        nearest = np.sort(distances, axis=1)[:, 1 : count - self.faulty - 1]  # the first is its own
        sums: Floats = nearest.sum(axis=1)
        return sums


class MultiKrum(Krum, FaultySelected):
    """The mean of the adapters with the best scores of Krum."""

    name: ClassVar[str] = "multi_krum"
    line: ClassVar[str] = "mean of the adapters that lie closest to most others"
    source: ClassVar[str] = "Blanchard et al. 2017, arXiv 1703.02757; Multi-Krum"

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        assert products is not None
        count = self.selected or len(weights) - self.faulty
        if count > len(weights):
            raise ConfigError(
                "--selected of rule multi_krum", expected=f"at most {len(weights)}", got=f"{self.selected}"
            )
        best = np.argsort(self.scores(products), kind="stable")[:count]
        found = np.zeros_like(weights)
        found[best] = 1 / count
        return found
