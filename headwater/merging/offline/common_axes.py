"""CommonAxes: the axes and coordinates of :meth:`Basis.of_changes`, from inner products of factors alone.

With the factors side by side, S = [s_1·B_1 … s_T·B_T] and Z = [A_1ᵀ … A_Tᵀ], and SᵀS = V·Λ·Vᵀ, the columns
of S·V·Λ^-½ are orthonormal, and in them S is Λ^½·Vᵀ: no vector as long as the weight's side is projected, and
no basis of such vectors is made. What is rebuilt from coordinates, S·V·Λ^-½·Λ^½·Vᵀ, is as exact as V,
whatever Λ. Directions below 3·10⁻⁷ of the longest are lost in the squares; so that they are nobody's content,
the two vectors of each rank are made equally long first, which changes no product. Where an adapter's ranks
all but cancel, as those of a difference of two, its content is in such directions, and there are no axes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.low_rank import EXACT, Spectrum, Truncation, best_factors
from headwater.merging.offline.rule import Floats

_LEAST = 1e-13
"""Eigenvalues of SᵀS below this part of the largest are rounding."""
_CANCELS = 1e-4
"""A change shorter than this part of the lengths of its ranks is what they leave of each other."""


@dataclass(frozen=True)
class CommonAxes:
    """One weight's changes in the axes that they decide.

    Args:
        left: S [rows, R] and the turn [R, a] with which S·turn is U.
        right: Z [columns, R] and the turn [R, b] with which Z·turn is V.
        coordinates: Uᵀ·S [a, R] and Vᵀ·Z [b, R].
        starts: where each adapter's part of R begins, and the end.
    """

    left: tuple[Floats, Floats]
    right: tuple[Floats, Floats]
    coordinates: tuple[Floats, Floats]
    starts: tuple[int, ...]

    @staticmethod
    def of(adapters: Adapters, module: str, *, turned: bool = True) -> CommonAxes | None:
        """None where all ranks together reach a side of the weight, or where an adapter's ranks cancel.

        Args:
            adapters: whose changes.
            module: of which weight.
            turned: to the axes that the changes decide; else some that span them.
        """
        part = adapters.first.modules[module]
        ranks = [max(1, folder.modules[module].rank) for folder in adapters.folders]
        total = sum(ranks)
        if total >= min(part.rows, part.columns):
            return None
        starts = (0, *(int(end) for end in np.cumsum(ranks)))
        left, right = np.empty((part.rows, total)), np.empty((part.columns, total))
        for at, folder in zip(starts, adapters.folders, strict=False):
            b, a = folder.left(module), folder.right(module)
            left[:, at : at + len(a)] = b
            right[:, at : at + len(a)] = a.T
        _balance(left, right)
        parts = [slice(a, b) for a, b in itertools.pairwise(starts)]
        grams = _by_part(left.T, left, parts), _by_part(right.T, right, parts)
        if any(_cancels(*(gram[part, part] for gram in grams)) for part in parts):
            return None
        turns = tuple(_turn(own, other if turned else None, parts) for own, other in (grams, grams[::-1]))
        coordinates = tuple(_by_part(turn.T, gram, parts) for turn, gram in zip(turns, grams, strict=True))
        return CommonAxes((left, turns[0]), (right, turns[1]), (coordinates[0], coordinates[1]), starts)

    def core(self, index: int) -> Floats:
        """C [a, b] of an adapter's change."""
        own = slice(self.starts[index], self.starts[index + 1])
        core: Floats = self.coordinates[0][:, own] @ self.coordinates[1][:, own].T
        return core

    def factors(self, core: Floats, truncation: Truncation) -> tuple[Floats, Floats, Spectrum]:
        """As :meth:`Basis.factors`."""
        b, a, spectrum = best_factors(core, truncation)
        (stack, turn), (other, other_turn) = self.left, self.right
        return stack @ (turn @ b), (other @ (other_turn @ a.T)).T, spectrum


def _balance(left: Floats, right: Floats) -> None:
    """Make the two vectors of each rank equally long, in place; their product stays."""
    norms, others = (np.sqrt(np.einsum("ij,ij->j", side, side)) for side in (left, right))
    both = (norms > 0) & (others > 0)
    factor = np.sqrt(np.divide(others, norms, out=np.ones_like(norms), where=both))
    left *= np.where(both, factor, 0.0)  # a product with zero is zero
    right *= np.where(both, 1 / factor, 0.0)


def _cancels(left: Floats, right: Floats) -> bool:
    """Whether B·A is much shorter than its ranks' products together, from BᵀB and AAᵀ."""
    lengths = float(np.sqrt(np.diag(left) * np.diag(right)).sum())
    return float((left * right).sum()) < (_CANCELS * lengths) ** 2


def _by_part(left: Floats, right: Floats, parts: list[slice]) -> Floats:
    """Multiply left by the columns of one adapter at a time: those of equal adapters give equal bits."""
    product = np.empty((len(left), right.shape[1]))
    for part in parts:
        product[:, part] = left @ right[:, part]
    return product


def _turn(gram: Floats, other: Floats | None, parts: list[slice]) -> Floats:
    """The turn [R, a] of S to the eigenvectors of Σ τ_i·τ_iᵀ = Σ S_i·(Z_iᵀ·Z_i)·S_iᵀ, the largest first.

    Args:
        gram: SᵀS [R, R].
        other: ZᵀZ; None for the left singular vectors of S instead.
        parts: of each adapter.
    """
    values, vectors = np.linalg.eigh(gram)
    rank = max(1, int(np.count_nonzero(values > _LEAST * values[-1])))
    root = np.sqrt(np.maximum(values[::-1][:rank], np.finfo(np.float64).tiny))
    vectors = vectors[:, ::-1][:, :rank]
    orthonormal: Floats = vectors / root  # once S is multiplied with them
    if other is None:
        return orthonormal
    own = (vectors * root).T  # S in these
    scaled = np.concatenate([own[:, part] @ other[part, part] for part in parts], axis=1)
    values, turned = np.linalg.eigh(scaled @ own.T)
    rank = max(1, int(np.count_nonzero(values > EXACT**2 * values[-1])))
    turn: Floats = orthonormal @ turned[:, ::-1][:, :rank]
    return turn
