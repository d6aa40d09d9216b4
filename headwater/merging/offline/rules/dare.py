"""DARE: drop values at random and scale up the others, so that the expectation stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Dropping
from headwater.merging.offline.rule import Floats, ValueRule
from headwater.merging.offline.rules.sums import ElectedSigns, WeightedSum


class _Dropped(ValueRule, Dropping):
    """τ̂ = m·τ/d, m ~ Bernoulli(d).

    E[τ̂] = τ and Var[τ̂] = τ²·(1 − d)/d. mergekit scales to the old sum of magnitudes instead, which is biased
    (golden vector F6).
    """

    @property
    def gain(self) -> float:
        return 1 / self.density

    def prune(self, values: Floats, draw: Callable[[], np.random.Generator]) -> Floats:
        if self.density == 1:
            return values
        kept = draw().random(values.shape) < self.density
        return np.where(kept, values / self.density, 0.0)


class DareLinear(_Dropped, WeightedSum):
    """The weighted mean of what is left."""

    name: ClassVar[str] = "dare_linear"
    line: ClassVar[str] = "drop values at random, scale up the others, weighted mean"
    source: ClassVar[str] = "Yu et al. 2024, arXiv 2311.03099"


class DareTies(_Dropped, ElectedSigns):
    """Signs are elected on what is left."""

    name: ClassVar[str] = "dare_ties"
    line: ClassVar[str] = "drop values at random, scale up the others, elect signs as TIES does"
    source: ClassVar[str] = "Yu et al. 2024, arXiv 2311.03099; TIES after DARE, as its authors do"
