"""DELLA: drop values at random, the small ones more often, and scale up the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import RankedDropping
from headwater.merging.offline.rule import Floats, ValueRule
from headwater.merging.offline.rules.sums import ElectedSigns, WeightedSum


class _MagPrune(ValueRule, RankedDropping):
    """τ̂_j = m_j·τ_j/q_j, m_j ~ Bernoulli(q_j), q from d − ε for a row's smallest value to d + ε.

    A row is one of the weight's own, or of its core: one direction of its output. E[τ̂] = τ; mergekit scales
    to the old sum of magnitudes instead, which is biased.
    """

    @property
    def gain(self) -> float:
        return 1 / (self.density - self.epsilon)

    def prune(self, values: Floats, draw: Callable[[], np.random.Generator]) -> Floats:
        rows = values.reshape(1, -1) if values.ndim < 2 else values.reshape(values.shape[0], -1)
        width = rows.shape[1]
        keep = np.full(rows.shape, self.density)
        if width > 1 and self.epsilon:
            steps = self.density - self.epsilon + 2 * self.epsilon * np.arange(width) / (width - 1)
            order = np.argsort(np.abs(rows), axis=1, kind="stable")
            np.put_along_axis(keep, order, np.broadcast_to(steps, rows.shape), axis=1)
        kept = draw().random(rows.shape) < keep
        return np.where(kept, rows / keep, 0.0).reshape(values.shape)


class Della(_MagPrune, ElectedSigns):
    """MagPrune, then signs are elected on what is left."""

    name: ClassVar[str] = "della"
    line: ClassVar[str] = "drop values at random, small ones more often, scale up the others, elect signs"
    source: ClassVar[str] = "Deep et al. 2024, arXiv 2406.11617"


class DellaLinear(_MagPrune, WeightedSum):
    """MagPrune, then the weighted mean."""

    name: ClassVar[str] = "della_linear"
    line: ClassVar[str] = "drop values at random, small ones more often, scale up the others, weighted mean"
    source: ClassVar[str] = "Deep et al. 2024, arXiv 2406.11617, without the election"
