"""FLTrust: what some trusted clients learnt says which updates count, and how far each may go.

Cao et al. 2021 (arXiv 2012.13995, equations 2 to 4). With g_0 the mean update of the trusted clients, which
train on the paper's root set, an update has the trust score TS_i = max(0, cos(g_i, g_0)), is given the length
of g_0, and the result is Σ TS_i·(‖g_0‖/‖g_i‖)·g_i / Σ TS_i. The trusted are the measure and are not in the
sum themselves. Where no score is above 0, or no trusted client answered, nothing moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headwater.merging.offline.rule import Floats


@dataclass(frozen=True)
class FLTrust:
    """The rule, as coefficients.

    Args:
        trusted: names of the clients whose updates are the measure.
    """

    trusted: frozenset[str]

    def __call__(self, names: Sequence[str], shares: Floats, products: Floats) -> Floats:
        """The c_i [T]: 0 of the trusted themselves."""
        root = np.array([name in self.trusted for name in names])
        found: Floats = np.zeros(len(names))
        if not root.any():
            return found
        mean = root / root.sum()
        length = np.sqrt(max(0.0, float(mean @ products @ mean)))
        norms = np.sqrt(np.maximum(np.diag(products), 0))
        scores = trust_scores(products @ mean, norms, length)
        scores[root] = 0
        if scores.sum() > 0:
            there = norms > 0
            found[there] = scores[there] * (length / norms[there]) / scores.sum()
        return found


def trust_scores(along: Floats, norms: Floats, length: float) -> Floats:
    """max(0, cos(g_i, g_0)) [T].

    Args:
        along: ⟨g_i, g_0⟩ [T].
        norms: ‖g_i‖ [T].
        length: ‖g_0‖.
    """
    scale = norms * length
    cosines: Floats = np.divide(along, scale, out=np.zeros_like(along), where=scale > 0)
    return np.clip(cosines, 0.0, 1.0)
