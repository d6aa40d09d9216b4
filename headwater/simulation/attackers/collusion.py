"""What colluders send: one update that is as far off as it can be without standing out.

Both attacks know no update but the colluders' own, as they would have been: what the honest ones send they
take to be spread alike.
"""

from __future__ import annotations

import statistics

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def alie(updates: Floats, clients: int, deviations: float | None = None) -> Floats:
    """A little is enough (Baruch et al. 2019, arXiv 1902.06156, algorithm 3): μ − z·σ, value by value [n].

    Args:
        updates: what the colluders learnt [m, n].
        clients: of the federation, n.
        deviations: z; by default the largest at which so many honest ones, s = ⌊n/2 + 1⌋ − m, are further
            out that the colluders and they are the majority: Φ(z) < (n − m − s)/(n − m).
    """
    mean, spread = updates.mean(axis=0), updates.std(axis=0)
    z = largest_deviations(clients, len(updates)) if deviations is None else deviations
    found: Floats = mean - z * spread
    return found


def largest_deviations(clients: int, colluders: int) -> float:
    """The z of :func:`alie`; 0 where the formula has none above."""
    honest = clients - colluders
    share = (honest - (clients // 2 + 1 - colluders)) / honest if honest > 0 else 0.0
    return max(0.0, statistics.NormalDist().inv_cdf(share)) if 0 < share < 1 else 0.0


def min_max(updates: Floats) -> Floats:
    """Min-Max (Shejwalkar and Houmansadr, NDSS 2021, equation 9), with the deviation −μ/‖μ‖: [n].

    μ − γ·μ/‖μ‖ with the largest γ at which it is no further from any update than two of them are apart.

    Args:
        updates: what the colluders learnt [m, n].
    """
    mean: Floats = updates.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if not length:
        return mean
    way = -mean / length
    grams = updates @ updates.T
    squares = np.diag(grams)
    most = float((squares[:, None] + squares[None, :] - 2 * grams).max())
    # ‖μ + γ·w − x‖² = γ² + 2γ·⟨w, μ − x⟩ + ‖μ − x‖² ≤ most, for every x
    apart = mean - updates
    along, rest = apart @ way, np.square(apart).sum(axis=1) - most
    gamma = float((-along + np.sqrt(np.maximum(along**2 - rest, 0))).min())
    found: Floats = mean + max(0.0, gamma) * way
    return found
