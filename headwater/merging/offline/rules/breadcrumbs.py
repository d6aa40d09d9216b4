"""Breadcrumbs: neither the smallest values nor the outliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Sifting
from headwater.merging.largest import Cut
from headwater.merging.offline.rule import Floats, ValueRule
from headwater.merging.offline.rules.sums import ElectedSigns, WeightedSum


class _Sifted(ValueRule, Sifting):
    """Of each weight's n values ⌊γ·n⌋ outliers are dropped and the next ⌊d·n⌋, at least one, kept.

    Where the two are more than n, fewer outliers are dropped; where ⌊γ·n⌋ = 0, nothing is one (mergekit
    at a6e4028 then drops everything). mergekit 0.1.5 does the same, but keeps nothing where ⌊d·n⌋ = 0.
    """

    def prune(self, values: Floats, draw: Callable[[], np.random.Generator]) -> Floats:
        flat = values.reshape(-1)
        kept = max(1, int(self.density * flat.size))
        outliers = min(int(self.gamma * flat.size), flat.size - kept)
        out = Cut.largest(flat, outliers).apply(flat.copy()) if outliers else np.zeros_like(flat)
        Cut.largest(flat, outliers + kept).apply(flat)
        return np.where(out != 0, 0.0, flat).reshape(values.shape)


class Breadcrumbs(_Sifted, WeightedSum):
    """The weighted mean of what is left."""

    name: ClassVar[str] = "breadcrumbs"
    line: ClassVar[str] = "drop each weight's smallest values and its outliers, weighted mean"
    source: ClassVar[str] = "Davari & Belilovsky 2024, arXiv 2312.06795"


class BreadcrumbsTies(_Sifted, ElectedSigns):
    """Signs are elected on what is left."""

    name: ClassVar[str] = "breadcrumbs_ties"
    line: ClassVar[str] = "drop each weight's smallest values and its outliers, elect signs as TIES does"
    source: ClassVar[str] = "Davari & Belilovsky 2024, arXiv 2312.06795; mergekit, breadcrumbs_ties"
