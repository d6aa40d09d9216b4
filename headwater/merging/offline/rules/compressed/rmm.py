"""Reversible Model Merging: a few directions from which each adapter's factors can be had back."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from headwater.merging.offline.rule import FactorRule, Floats


class Pieces(NamedTuple):
    """What is kept of a factor's n vectors of T adapters, in place of T·n·r values.

    Args:
        mean: [n, r].
        basis: [n, p, r], orthonormal.
        coefficients: [T, n, p].
    """

    mean: Floats
    basis: Floats
    coefficients: Floats

    def of(self, which: int) -> Floats:
        """A factor [n, r] as it is had back."""
        found: Floats = self.mean + np.einsum("np,npr->nr", self.coefficients[which], self.basis)
        return found


class Rmm(FactorRule):
    """x_i ≈ m + Q·c_i, for each row x of B and column x of A by itself.

    m = Σ p_i·x_i, and Q has the first principal directions of the x_i around it. With ``--task`` the result
    is one adapter's m + Q·c_i, without it that of the means m, which the paper does not propose as a model.
    The folder of a merge has m, Q and c in ``reversible.safetensors``: ``headwater merge DIR --task N`` gives
    the N-th adapter back from it alone. min(T − 1, r) directions give it whole. One departure: the factors
    are balanced ones, so that the result depends on the changes alone; ``--space factors`` takes the files'.
    """

    name: ClassVar[str] = "rmm"
    line: ClassVar[str] = "a few directions of all factors, from which --task gives each adapter back"
    source: ClassVar[str] = "Alipour and Amini 2025, arXiv 2510.14163"
    gives_back: ClassVar[bool] = True
    directions: int = Field(
        default=2, ge=1, le=1024, description="p: directions that are kept of each vector"
    )

    def merge(self, ups: Floats, downs: Floats, weights: Floats) -> tuple[Floats, Floats]:  # noqa: D102 - inherited
        up, down = self.pieces(ups, downs, weights)
        return up.mean, down.mean.T

    def give_back(self, ups: Floats, downs: Floats, weights: Floats, which: int) -> tuple[Floats, Floats]:  # noqa: D102 - inherited
        up, down = self.pieces(ups, downs, weights)
        return up.of(which), down.of(which).T

    def pieces(self, ups: Floats, downs: Floats, weights: Floats) -> tuple[Pieces, Pieces]:
        """Of B [T, rows, r] and A [T, r, columns]."""
        return self._reduced(ups, weights), self._reduced(downs.transpose(0, 2, 1), weights)

    def _reduced(self, vectors: Floats, weights: Floats) -> Pieces:
        mean = np.tensordot(weights, vectors, 1)
        around = (vectors - mean).transpose(1, 0, 2)
        _, _, axes = np.linalg.svd(np.sqrt(weights)[:, None] * around, full_matrices=False)
        basis = axes[:, : self.directions]
        return Pieces(mean, basis, np.einsum("ntr,npr->tnp", around, basis))
