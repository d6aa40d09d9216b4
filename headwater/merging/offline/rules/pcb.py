"""PCB-Merging: values compete by their own size and by how they go with the sum of all."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Competing
from headwater.merging.offline.rule import Floats, TwoPassRule

_TAIL = 1e-4
"""The fraction of magnitudes at each end that is clamped."""


class Pcb(TwoPassRule, Competing):
    """Two passes: S = Στ_i; then Σ p_i·β_i·c_i and Σ p_i·β_i, with the form of the authors' code.

    c is τ with its magnitudes clamped at both 1e-4 tails, and::

        β = minmax(clip(exp(T·minmax(|c|)²)·tanh(τ·S), from its 1 − d quantile up))

    The paper has softmax where the code has exp and tanh. Two departures from the code: minmax of equal
    values, there 0/0, makes them count the same; the upper clamp, which there cuts the largest value of any
    adapter, cuts only what lies beyond the tail. exp is divided by exp(T), which minmax does not see.
    """

    name: ClassVar[str] = "pcb"
    line: ClassVar[str] = "weighted mean of the values that are large and go with the sum of all"
    source: ClassVar[str] = "Du et al. 2024, arXiv 2410.02396; code duguodong7/pcb-merging, PCB_merge"
    second_degrees: ClassVar[tuple[int, ...]] = (1, 0)

    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:  # noqa: D102 - inherited
        return (weight * values,)

    def second_terms(  # noqa: D102 - inherited
        self, first: tuple[Floats, ...], values: Floats, weight: float, count: int
    ) -> tuple[Floats, ...]:
        (mean,) = first
        magnitudes = np.abs(values)
        tail = int(_TAIL * values.size)
        if tail:
            ends = np.partition(magnitudes, (tail, values.size - 1 - tail))
            np.clip(magnitudes, ends[tail], ends[values.size - 1 - tail], out=magnitudes)
        balance = np.exp(count * (np.square(_minmax(magnitudes, 0.0)) - 1)) * np.tanh(count * mean * values)
        lowest = min(int((1 - self.density) * values.size), values.size - 1)
        balance = np.maximum(balance, np.partition(balance, lowest)[lowest])
        share = weight * _minmax(balance, 1.0)
        return share * np.copysign(magnitudes, values), share

    def result(self, sums: tuple[Floats, ...]) -> Floats:  # noqa: D102 - inherited
        total, shares = sums
        return np.divide(total, shares, out=np.zeros_like(total), where=shares > 1e-12)


def _minmax(values: Floats, equal: float) -> Floats:
    """From 0 at the smallest to 1 at the largest; ``equal`` where these are one."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.full_like(values, equal)
