"""Means of directions: SLERP of two adapters, Karcher's mean of any number."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from headwater.errors import ConfigError
from headwater.merging.offline.rule import Floats, LinearRule

_PARALLEL = 0.9995
"""Above this |cosine| two adapters are interpolated on a line, as all implementations do."""
_OPPOSITE = 1e-9
"""Unit directions whose mean is shorter than this have none."""


class Slerp(LinearRule):
    """c_i = sin(p_i·Ω)/sin Ω, Ω the angle between the two, of each weight by itself."""

    name: ClassVar[str] = "slerp"
    line: ClassVar[str] = "two adapters on the arc between their directions, which keeps the length"
    source: ClassVar[str] = "Shoemake 1985, doi 10.1145/325165.325242; on changes and not on whole weights"
    passes: ClassVar[int] = 2
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    needs_products: ClassVar[bool] = True
    per_weight: ClassVar[bool] = True

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        assert products is not None
        length = float(np.sqrt(products[0, 0] * products[1, 1]))
        cosine = float(products[0, 1]) / length if length else 1.0
        if abs(cosine) > _PARALLEL:
            return weights
        angle = np.arccos(cosine)
        arc: Floats = np.sin(weights * angle) / np.sin(angle)
        return arc


class Karcher(LinearRule):
    """The mean direction on the sphere, of each weight by itself, times the mean length.

    With unit directions u_i and the mean u, which starts at their normalised weighted mean::

        t = Σ p_i·(a_i/sin a_i)·(u_i − cos a_i·u),  a_i = ∠(u, u_i),   u ← cos|t|·u + sin|t|·t/|t|

    All of it stays in the span of the u_i, so it runs on coefficients. A change of zero has no direction and
    counts in the length alone.
    """

    name: ClassVar[str] = "karcher"
    line: ClassVar[str] = "mean of the directions on the sphere, times the mean length"
    source: ClassVar[str] = "Karcher 1977, doi 10.1002/cpa.3160300502; of task vectors, as mergekit's karcher"
    passes: ClassVar[int] = 2
    needs_products: ClassVar[bool] = True
    per_weight: ClassVar[bool] = True
    iterations: int = Field(default=50, ge=1, le=10000, description="the most steps")
    tolerance: float = Field(
        default=1e-9, gt=0, lt=1, description="length of a step, in radians, that ends it"
    )

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        assert products is not None
        lengths = np.sqrt(np.maximum(np.diag(products), 0))
        moves = lengths > 0
        if not moves.any():
            return np.zeros_like(weights)
        shares = weights[moves] / weights[moves].sum()
        units = products[np.ix_(moves, moves)] / np.outer(lengths[moves], lengths[moves])
        mean = self._direction(shares, units)
        found = np.zeros_like(weights)
        found[moves] = float(weights @ lengths) * mean / lengths[moves]
        return found

    def _direction(self, shares: Floats, units: Floats) -> Floats:
        """The mean u in terms of the u_i, whose inner products are ``units``."""
        mean = shares / self._length(shares, units)
        for _ in range(self.iterations):
            cosines = np.clip(units @ mean, -1, 1)
            angles = np.arccos(cosines)
            slopes = shares / np.sinc(angles / np.pi)  # a/sin a, and 1 at 0
            step = slopes - (slopes @ cosines) * mean
            length = np.sqrt(max(float(step @ units @ step), 0.0))
            if length < self.tolerance:
                break
            mean = np.cos(length) * mean + np.sin(length) / length * step
            mean /= self._length(mean, units)
        return mean

    def _length(self, mean: Floats, units: Floats) -> float:
        length = float(np.sqrt(max(float(mean @ units @ mean), 0.0)))
        if length < _OPPOSITE:
            raise ConfigError(
                f"rule {self.name}",
                expected="adapters whose directions have a mean",
                got="ones that cancel out in one weight",
                hint="Use --rule mean, or other weights.",
            )
        return length
