"""Exact algebra of LoRA changes without their matrices: bases, cores, inner products, truncation.

Of T adapters with ranks r_i and R = Σ r_i, every change s_i·B_i·A_i of one weight lies in the span of the
columns of [B_1 … B_T] and of the rows of [A_1; …; A_T]: with orthonormal bases U and V of the two,
s_i·B_i·A_i = U·C_i·Vᵀ and C_i = (Uᵀ·s_i·B_i)(A_i·V) (Core Space, Panariello et al. 2025, arXiv 2509.17786).
Sums, singular values and truncations of the C_i are those of the changes; where R reaches a side of the
weight, that side's basis is the identity, and memory is never more than the weight's own.

The same change has many factors, B·R and R⁻¹·A. What a rotation does not touch is the same in any basis;
rules that look at single values get the axes of :meth:`Basis.of_changes`, which the factors do not decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from headwater.errors import ConfigError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.rule import Floats

EXACT = 1e-6
"""Singular values below this part of the largest are rounding of the adapters' float32, not their content."""
_AS_LARGE = 1 - 1e-9
"""Entries of so much of the largest are as large: which of them was rounded up says nothing."""
_COLUMNS_AT_ONCE = 2048
"""Rank of adapters together whose factors are in memory at a time, for inner products."""


@dataclass(frozen=True)
class Basis:
    """Orthonormal bases of one weight's changes.

    Args:
        left: U [rows, a], or None for the identity.
        right: V [columns, b], or None for the identity.
    """

    left: Floats | None
    right: Floats | None

    @staticmethod
    def of(adapters: Adapters, module: str) -> Basis:
        """By QR of the stacked factors and SVD of the triangle: the axes are the stack's singular vectors."""
        part = adapters.first.modules[module]
        total = sum(folder.modules[module].rank for folder in adapters.folders)
        left, right = total < part.rows, total < part.columns
        if not left and not right:
            return Basis(None, None)
        b_stack = np.empty((part.rows, total if left else 0))
        a_stack = np.empty((part.columns, total if right else 0))
        at = 0
        for folder in adapters.folders:
            b, a = folder.factors(module)
            if left:
                b_stack[:, at : at + b.shape[1]] = b
            if right:
                a_stack[:, at : at + b.shape[1]] = a.T
            at += b.shape[1]
        return Basis(_axes(b_stack) if left else None, _axes(a_stack) if right else None)

    @staticmethod
    def of_changes(adapters: Adapters, module: str, *, columns: bool = True) -> Basis:
        """With axes that the changes τ_i decide, whatever factors make them.

        U are the left singular vectors of [τ_1 … τ_T], and V the right ones of the τ_i below each other:
        eigenvectors of Σ C_i·C_iᵀ and Σ C_iᵀ·C_i in the coordinates of :meth:`of`. A side that is the
        identity there has the weight's own coordinates.

        Args:
            adapters: whose changes.
            module: of which weight.
            columns: whether V is that; else V is the identity, and U what it is on any side.
        """
        spans = Basis.of(adapters, module)
        turn_left, turn_right = spans.left is not None or not columns, spans.right is not None and columns
        if not turn_left and not turn_right:
            return spans
        rows_gram: Floats | float = 0.0
        columns_gram: Floats | float = 0.0
        for folder in adapters.folders:
            core = spans.core(*folder.factors(module))
            if turn_left:
                rows_gram = rows_gram + core @ core.T
            if turn_right:
                columns_gram = columns_gram + core.T @ core
        left = _turned(spans.left, rows_gram) if turn_left else None
        return Basis(left, _turned(spans.right, columns_gram) if turn_right else None)

    def core(self, b: Floats, a: Floats) -> Floats:
        """C [a, b] of the change B·A."""
        left = b if self.left is None else self.left.T @ b
        right = a if self.right is None else a @ self.right
        return left @ right

    def factors(self, core: Floats, truncation: Truncation) -> tuple[Floats, Floats, Spectrum]:
        """B [rows, r] and A [r, columns] whose product is U·C·Vᵀ, as :func:`best_factors` has them."""
        b, a, spectrum = best_factors(core, truncation)
        b = b if self.left is None else self.left @ b
        a = a if self.right is None else a @ self.right.T
        return b, a, spectrum


@dataclass(frozen=True)
class Truncation:
    """How many singular values a merged weight keeps.

    Args:
        rank: the most; None for no limit.
        energy: the fraction of the squared singular values that must be kept; 1 for all that is no rounding.
    """

    rank: int | None = None
    energy: float = 1.0

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError("--rank", expected="at least 1", got=str(self.rank))
        if not 0 < self.energy <= 1:
            raise ConfigError("--energy", expected="a fraction in (0, 1]", got=str(self.energy))

    def rank_of(self, singular: Floats) -> int:
        """How many of these are kept: at least one."""
        if not singular.size or singular[0] == 0:
            return 1
        kept = int(np.count_nonzero(singular > EXACT * singular[0]))
        if self.energy < 1:
            part = np.cumsum(np.square(singular[:kept]))
            kept = int(np.searchsorted(part, self.energy * part[-1])) + 1
        return max(1, min(kept, self.rank or kept))


@dataclass(frozen=True)
class Spectrum:
    """What a truncation did: the rank, and the squared norm of a weight's change before and after."""

    rank: int
    energy: float
    kept: float


def best_factors(core: Floats, truncation: Truncation) -> tuple[Floats, Floats, Spectrum]:
    """B [rows, r] and A [r, columns] whose product is the core, or the best of their rank.

    Both carry the square root of the singular values.
    """
    u, s, vt = np.linalg.svd(core, full_matrices=False)
    rank = truncation.rank_of(s)
    root = np.sqrt(s[:rank])
    spectrum = Spectrum(rank, float(np.square(s).sum()), float(np.square(s[:rank]).sum()))
    return u[:, :rank] * root, root[:, None] * vt[:rank], spectrum


def balanced(b: Floats, a: Floats, rank: int | None = None) -> tuple[Floats, Floats]:
    """U·√S and √S·Vᵀ of the decomposition of b·a, without what is rounding; of rank 0 if b·a is zero.

    They depend on the change and not on its factors. A pair of singular vectors has no sign of its own: the
    first of the largest entries of the left one is positive.

    Args:
        b: [rows, r].
        a: [r, columns].
        rank: to which zeros are added; None for none.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, vt = np.linalg.svd(r_b @ r_a.T)
    found = int(np.count_nonzero(s > EXACT * s[0])) if s[0] else 0
    root = np.sqrt(s[:found])
    left, right = (q_b @ u[:, :found]) * root, root[:, None] * (vt[:found] @ q_a.T)
    sign = _signs(left)
    left, right, missing = left * sign, right * sign[:, None], max(0, (rank or 0) - found)
    return np.pad(left, ((0, 0), (0, missing))), np.pad(right, ((0, missing), (0, 0)))


def truncated(b: Floats, a: Floats, truncation: Truncation) -> tuple[Floats, Floats, Spectrum]:
    """The factors of b·a, or of the best product of their rank, as :meth:`Basis.factors` gives them."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    return Basis(q_b, q_a).factors(r_b @ r_a.T, truncation)


def _axes(stack: Floats) -> Floats:
    """Orthonormal columns that span those of ``stack`` [n, R], R < n; the first ones matter most."""
    q, triangle = np.linalg.qr(stack)
    u, s, _ = np.linalg.svd(triangle)
    rank = max(1, int(np.count_nonzero(s > 1e-12 * s[0]))) if s[0] else 1
    return _one_sign(q @ u[:, :rank])


def _turned(axes: Floats | None, gram: Floats | float) -> Floats:
    """The eigenvectors of a Gram matrix in coordinates ``axes``, the largest first, no null space."""
    values, vectors = np.linalg.eigh(gram)
    rank = max(1, int(np.count_nonzero(values > EXACT**2 * values[-1])))
    vectors = vectors[:, ::-1][:, :rank]
    return _one_sign(vectors if axes is None else axes @ vectors)


def _one_sign(axes: Floats) -> Floats:
    """Columns whose largest entry is positive: a singular vector's sign is free."""
    return axes * _signs(axes)


def _signs(columns: Floats) -> Floats:
    """Of each column's largest entry; the first of those that are equally large but for rounding."""
    sizes = np.abs(columns)
    first = (sizes >= _AS_LARGE * sizes.max(axis=0)).argmax(axis=0)
    return np.where(columns[first, np.arange(columns.shape[1])] < 0, -1.0, 1.0)


def inner_products(adapters: Adapters, *, differences: bool = False) -> Floats:
    """⟨τ_i, τ_j⟩ over all weights that have a place where nothing is changed: [T, T].

    With ``differences`` over the others as well, by their values: then distances are right, and lengths not.
    """
    products = np.zeros((len(adapters), len(adapters)))
    for _, own in products_by_weight(adapters, differences=differences):
        products += own
    return products


def products_by_weight(adapters: Adapters, *, differences: bool = False) -> Iterator[tuple[str, Floats]]:
    """⟨τ_i, τ_j⟩ [T, T] of each of these weights, with the name of its module or tensor.

    Of two LoRA changes it is tr((B_jᵀB_i)(A_iA_jᵀ)), of cost R²·d and without a matrix [rows, columns].
    """
    for module in adapters.modules:
        products = np.zeros((len(adapters), len(adapters)))
        groups = list(_groups(adapters, module))
        for i, mine in enumerate(groups):
            b, a, starts = _stack(adapters, module, mine)
            for other in groups[i:]:
                b2, a2, starts2 = _stack(adapters, module, other) if other is not mine else (b, a, starts)
                cells = (b.T @ b2) * (a @ a2.T)
                block = np.add.reduceat(np.add.reduceat(cells, starts, axis=0), starts2, axis=1)
                products[np.ix_(mine, other)] += block
                if other is not mine:
                    products[np.ix_(other, mine)] += block.T
        yield module, products
    for name in adapters.plain:
        origin = adapters.origin(name)
        if origin is None and differences:
            origin = 0.0
        if origin is not None:
            changes = np.stack([(adapters.value(i, name) - origin).reshape(-1) for i in range(len(adapters))])
            yield name, changes @ changes.T


def _groups(adapters: Adapters, module: str) -> Iterator[list[int]]:
    """Adapters whose factors of a module are small enough to be in memory together."""
    group: list[int] = []
    total = 0
    for index, folder in enumerate(adapters.folders):
        rank = folder.modules[module].rank
        if group and total + rank > _COLUMNS_AT_ONCE:
            yield group
            group, total = [], 0
        group.append(index)
        total += rank
    yield group


def _stack(adapters: Adapters, module: str, group: list[int]) -> tuple[Floats, Floats, list[int]]:
    pairs = [adapters.folders[i].factors(module) for i in group]
    starts = [0, *itertools.accumulate(b.shape[1] for b, _ in pairs[:-1])]
    return np.concatenate([b for b, _ in pairs], axis=1), np.concatenate([a for _, a in pairs]), starts
