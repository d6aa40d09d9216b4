"""Merge rules written from their papers and their authors' code on whole matrices, plainly, in float64.

``taus`` are the changes of one weight by each adapter, ``shares`` sum to one. Nothing here knows of factors,
bases or passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def model_stock(taus: Sequence[Matrix], shares: Sequence[float]) -> Matrix:
    """Jang et al., with cos φ held in [0, 1]."""
    cosines = [
        float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in itertools.combinations(taus, 2)
    ]
    cosine, count = min(max(float(np.mean(cosines)), 0.0), 1.0), len(taus)
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * sum(p * tau for p, tau in zip(shares, taus, strict=True))


def slerp(first: Matrix, second: Matrix, t: float) -> Matrix:
    """Shoemake's formula on the two as they are."""
    angle = np.arccos((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


def karcher(taus: Sequence[Matrix], shares: Sequence[float], steps: int = 500) -> Matrix:
    """Gradient steps on the sphere of the whole, flat changes."""
    lengths = [np.linalg.norm(tau) for tau in taus]
    units = [tau / length for tau, length in zip(taus, lengths, strict=True)]
    mean = sum(p * u for p, u in zip(shares, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    for _ in range(steps):
        step = np.zeros_like(mean)
        for p, unit in zip(shares, units, strict=True):
            angle = np.arccos(np.clip((mean * unit).sum(), -1, 1))
            if angle > 1e-12:
                step += p * angle / np.sin(angle) * (unit - np.cos(angle) * mean)
        length = np.linalg.norm(step)
        if length > 1e-15:
            mean = np.cos(length) * mean + np.sin(length) * step / length
    return mean * sum(p * length for p, length in zip(shares, lengths, strict=True))


def krum_scores(points: Sequence[Matrix], faulty: int) -> list[float]:
    """Blanchard et al.: to the n − f − 2 nearest others."""
    scores = []
    for i, point in enumerate(points):
        others = sorted(float(np.square(point - q).sum()) for j, q in enumerate(points) if j != i)
        scores.append(sum(others[: len(points) - faulty - 2]))
    return scores


def geometric_median(points: Sequence[Matrix], shares: Sequence[float], steps: int = 2000) -> Matrix:
    """Weiszfeld's steps."""
    z = sum(p * x for p, x in zip(shares, points, strict=True))
    for _ in range(steps):
        pulls = [p / max(1e-12, float(np.linalg.norm(z - x))) for p, x in zip(shares, points, strict=True)]
        z = sum(b * x for b, x in zip(pulls, points, strict=True)) / sum(pulls)
    return z


def trimmed(tau: Matrix, density: float) -> Matrix:
    """The largest ⌊d·n⌋ magnitudes, at least one, the earlier of equal ones."""
    flat = tau.reshape(-1)
    order = sorted(range(flat.size), key=lambda j: (-abs(flat[j]), j))
    kept = np.zeros_like(flat)
    for j in order[: max(1, int(density * flat.size))]:
        kept[j] = flat[j]
    return kept.reshape(tau.shape)


def elected(taus: Sequence[Matrix], shares: Sequence[float]) -> Matrix:
    """TIES' second and third step, value by value."""
    result = np.zeros(taus[0].size)
    for j in range(result.size):
        values = [(p, float(tau.reshape(-1)[j])) for p, tau in zip(shares, taus, strict=True)]
        up = sum(p * v for p, v in values if v > 0)
        down = -sum(p * v for p, v in values if v < 0)
        if up != down:
            agreeing = [(p, v) for p, v in values if (v > 0 if up > down else v < 0)]
            result[j] = sum(p * v for p, v in agreeing) / sum(p for p, _ in agreeing)
    return result.reshape(taus[0].shape)


def sifted(tau: Matrix, density: float, gamma: float) -> Matrix:
    """Breadcrumbs' mask: the first ⌊γ·n⌋ by magnitude dropped, the next ⌊d·n⌋ kept."""
    flat = tau.reshape(-1)
    order = sorted(range(flat.size), key=lambda j: (-abs(flat[j]), j))
    first = int(gamma * flat.size)
    kept = np.zeros_like(flat)
    for j in order[first : first + int(density * flat.size)]:
        kept[j] = flat[j]
    return kept.reshape(tau.shape)


def sce(taus: Sequence[Matrix], density: float) -> Matrix:
    """FuseChat's three steps, as mergekit has them."""
    stack = np.stack([tau.reshape(-1) for tau in taus])
    variance = stack.var(axis=0)
    best = np.argsort(-variance, kind="stable")[: int(density * np.count_nonzero(variance))]
    mask = np.zeros(stack.shape[1])
    mask[best] = 1
    stack = stack * mask
    energies = np.square(stack).mean(axis=1)
    energies = energies / energies.sum()
    signs = np.sign(stack.sum(axis=0))
    agrees = (np.sign(stack) == signs) * energies[:, None]
    total = agrees.sum(axis=0)
    total[total == 0] = 1
    return ((agrees * stack).sum(axis=0) / total).reshape(taus[0].shape)


def consensus(taus: Sequence[Matrix], strictness: float, agreement: int) -> Matrix:
    """Wang et al. with equal weights: masks against the sum of all, then the mean where enough hold."""
    total = sum(taus)
    masks = sum((np.abs(tau) >= strictness * np.abs(total - tau)).astype(int) for tau in taus)
    return np.where(masks >= agreement, total, 0) / len(taus)


def pcb(taus: Sequence[Matrix], density: float) -> Matrix:
    """``PCB_merge`` of the authors' code, without its clamp of the ends."""
    stack = np.stack([tau.reshape(-1) for tau in taus])
    count, size = stack.shape

    def minmax(x: Matrix) -> Matrix:
        low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        return (x - low) / (high - low)

    balance = np.exp(count * minmax(np.abs(stack)) ** 2) * np.tanh(stack * stack.sum(axis=0))
    lowest = np.sort(balance, axis=1)[:, int(size * (1 - density))][:, None]
    scale = minmax(np.maximum(balance, lowest))
    return ((stack * scale).sum(axis=0) / np.maximum(scale.sum(axis=0), 1e-12)).reshape(taus[0].shape)


def tsv_m(taus: Sequence[Matrix], ranks: Sequence[int]) -> Matrix:
    """Gargiulo et al.: the first triplets of each, side by side, both sides whitened."""
    parts = [np.linalg.svd(tau, full_matrices=False) for tau in taus]
    u = np.concatenate([p[0][:, :r] for p, r in zip(parts, ranks, strict=True)], axis=1)
    s = np.concatenate([p[1][:r] for p, r in zip(parts, ranks, strict=True)])
    v = np.concatenate([p[2][:r] for p, r in zip(parts, ranks, strict=True)])
    return polar(u) @ np.diag(s) @ polar(v)


def polar(matrix: Matrix) -> Matrix:
    """P·Qᵀ of the thin SVD."""
    p, _, q = np.linalg.svd(matrix, full_matrices=False)
    return p @ q


def iso_c(taus: Sequence[Matrix], rank: int) -> Matrix:
    """Marczak et al., over ``rank`` directions."""
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    return s[:rank].mean() * u[:, :rank] @ v[:rank]


def iso_cts(taus: Sequence[Matrix], fraction: float) -> Matrix:
    """Marczak et al. for weights of full rank, as FusionBench has it."""
    side, count = min(taus[0].shape), len(taus)
    specific = round((side - int(side * fraction)) / count)
    common = side - specific * count
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    us, ss, vs = [u[:, :common]], [s[:common]], [v[:common]]
    for tau in taus:
        rest = tau - us[0] @ us[0].T @ tau
        u, s, v = np.linalg.svd(rest, full_matrices=False)
        us.append(u[:, :specific])
        ss.append(s[:specific])
        vs.append(v[:specific])
    return np.concatenate(ss).mean() * polar(np.concatenate(us, axis=1)) @ polar(np.concatenate(vs))


def lore(taus: Sequence[Matrix], threshold: float, amplify: float, turns: int) -> Matrix:
    """Liu et al. by turns, equal weights, on whole matrices."""
    own = [np.zeros_like(tau) for tau in taus]
    for _ in range(turns):
        shared = sum(tau - d for tau, d in zip(taus, own, strict=True)) / len(taus)
        for i, tau in enumerate(taus):
            u, s, v = np.linalg.svd(tau - shared, full_matrices=False)
            own[i] = u @ np.diag(np.maximum(s - threshold, 0)) @ v
    shared = sum(tau - d for tau, d in zip(taus, own, strict=True)) / len(taus)
    return shared + amplify * sum(own)


def opcm(taus: Sequence[Matrix], alpha: float) -> Matrix:
    """Tang et al.: λ_t at every step as their code has it; ``taus`` in their order, of one weight alone."""
    merged, before, lengths = taus[0], 1.0, [float(np.linalg.norm(taus[0]))]
    for tau in taus[1:]:
        u, s, vt = np.linalg.svd(merged, full_matrices=True)
        rank = int((s > 1e-9 * s[0]).sum())
        leading = next(k for k in range(len(s)) if s[: k + 1].sum() / s.sum() > alpha)
        added = np.zeros_like(tau)
        for i in range(len(u)):
            for j in range(len(vt)):
                if not (i == j < rank or (i < leading and j < leading)):
                    added += (u[:, i] @ tau @ vt[j]) * np.outer(u[:, i], vt[j])
        lengths.append(float(np.linalg.norm(tau)))
        total = before * merged + added
        before = float(np.linalg.norm(total)) / float(np.mean(lengths))
        merged = total / before
    return merged
