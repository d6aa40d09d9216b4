"""Coordinate by coordinate: the median, and the mean without the ends."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Dropped
from headwater.errors import ConfigError
from headwater.merging.offline.rule import Floats, StackRule


class Median(StackRule):
    """The median of each value; of an even number the mean of the two in the middle."""

    name: ClassVar[str] = "median"
    line: ClassVar[str] = "median of each value"
    source: ClassVar[str] = "Yin et al. 2018, arXiv 1803.01498, definition 1"
    weighted: ClassVar[bool] = False

    def merge(self, stack: Floats, weights: Floats) -> Floats:  # noqa: D102 - inherited
        merged: Floats = np.median(stack, axis=0, overwrite_input=True)
        return merged


class TrimmedMean(StackRule, Dropped):
    """The mean of each value without its largest and its smallest ones."""

    name: ClassVar[str] = "trimmed_mean"
    line: ClassVar[str] = "mean of each value without the largest and the smallest"
    source: ClassVar[str] = "Yin et al. 2018, arXiv 1803.01498, definition 2"
    weighted: ClassVar[bool] = False

    def merge(self, stack: Floats, weights: Floats) -> Floats:  # noqa: D102 - inherited
        count = len(stack)
        if count < self.fewest:
            raise ConfigError(
                f"rule {self.name}",
                expected=f"at least {self.fewest} adapters with --drop {self.drop}",
                got=f"{count}",
            )
        stack.sort(axis=0)
        merged: Floats = stack[self.drop : count - self.drop].mean(axis=0)
        return merged
