"""Merge rules that look at LoRA's factors, from their papers and their authors' code, plainly, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Pair = tuple[Matrix, Matrix]
"""B [rows, r] and A [r, columns]."""


def balanced(tau: Matrix, rank: int) -> Pair:
    """U·√S and √S·Vᵀ of a whole matrix, each column of U with its largest entry positive."""
    u, s, vt = np.linalg.svd(tau)
    b, a = np.zeros((len(u), rank)), np.zeros((rank, len(vt)))
    for k in range(rank):
        if k < len(s) and s[k] > 1e-6 * s[0]:
            sign = np.sign(u[np.argmax(np.abs(u[:, k])), k])
            b[:, k], a[k] = sign * np.sqrt(s[k]) * u[:, k], sign * np.sqrt(s[k]) * vt[k]
    return b, a


def twin(taus: Sequence[Matrix], shares: Sequence[float], fraction: float, task: int | None = None) -> Matrix:
    """Lu et al.: the mean, and of each difference from it a fraction of its singular triplets."""
    shared = sum(p * tau for p, tau in zip(shares, taus, strict=True))

    def own(tau: Matrix) -> Matrix:
        u, s, vt = np.linalg.svd(tau - shared)
        kept = max(1, int(fraction * int((s > 1e-6 * s[0]).sum())))
        return sum(s[k] * np.outer(u[:, k], vt[k]) for k in range(kept))

    if task is not None:
        return shared + own(taus[task])
    return shared + sum(p * own(tau) for p, tau in zip(shares, taus, strict=True))


def one_bit(taus: Sequence[Matrix], shares: Sequence[float], ranks: Sequence[int]) -> Matrix:
    """BitDelta's signs and mean magnitude, of each singular vector times the root of its value."""
    total = np.zeros_like(taus[0])
    for p, tau, rank in zip(shares, taus, ranks, strict=True):
        b, a = balanced(tau, rank)
        for k in range(rank):
            left, right = b[:, k], a[k]
            scale = np.abs(left).sum() / left.size * np.abs(right).sum() / right.size
            total += p * scale * np.outer(np.sign(left), np.sign(right))
    return total


def copa(pairs: Sequence[Pair], shares: Sequence[float], density: float, compensated: float) -> Matrix:
    """``load_and_merge_pretrained_model`` of RobustMerge, with exactly ⌊d·n⌋ values kept and weights p."""
    rank = pairs[0][0].shape[1]
    up, down, total = np.zeros_like(pairs[0][0]), np.zeros_like(pairs[0][1]), np.zeros(rank)
    for p, (b, a) in zip(shares, pairs, strict=True):
        small_b, small_a = largest(b, density), largest(a, density)
        ratios = np.array(
            [np.abs(a[k]).sum() / np.abs(small_a[k]).sum() if small_a[k].any() else 1.0 for k in range(rank)]
        )
        least = sorted(ratios)[min(int((1 - compensated) * rank), rank - 1)]
        scale = np.array([max(ratio, least) for ratio in ratios])
        for k in range(rank):
            up[:, k] += p * scale[k] * small_b[:, k]
        down += p * small_a
        total += p * scale
    return (up / total) @ down


def largest(factor: Matrix, density: float) -> Matrix:
    """A factor without all but its ⌊d·n⌋ largest values, at least one."""
    flat = factor.reshape(-1)
    order = sorted(range(flat.size), key=lambda j: (-abs(flat[j]), j))
    kept = np.zeros_like(flat)
    kept[order[: max(1, int(density * flat.size))]] = flat[order[: max(1, int(density * flat.size))]]
    return kept.reshape(factor.shape)


def rmm(pairs: Sequence[Pair], shares: Sequence[float], directions: int, task: int) -> Matrix:
    """Alipour and Amini: principal directions of every row of B and column of A, by eigenvectors."""

    def back(vectors: Sequence[Matrix]) -> Matrix:
        mean = sum(p * x for p, x in zip(shares, vectors, strict=True))
        covariance = sum(p * np.outer(x - mean, x - mean) for p, x in zip(shares, vectors, strict=True))
        _, axes = np.linalg.eigh(covariance)
        found = mean.copy()
        for axis in axes.T[::-1][:directions]:
            found += axis * (axis @ (vectors[task] - mean))
        return found

    rows, columns = pairs[0][0].shape[0], pairs[0][1].shape[1]
    b = np.stack([back([b[i] for b, _ in pairs]) for i in range(rows)])
    a = np.stack([back([a[:, j] for _, a in pairs]) for j in range(columns)], axis=1)
    return b @ a
