"""How steep losses are along each seed: what a round adds up (:class:`SeedUse`), what rounds make of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.directions import Integers


@dataclass
class SeedUse:
    """The steps of a round's accepted updates; integers, so that any order adds up to the same.

    Args:
        lengths: int64 [K], Σ |c| of the steps along each seed.
        counts: int64 [K], how many there were.
    """

    lengths: Integers
    counts: Integers

    @staticmethod
    def none(count: int) -> SeedUse:
        """Of ``count`` seeds, no step."""
        return SeedUse(np.zeros(count, np.int64), np.zeros(count, np.int64))

    def add(self, scalars: SeedCoefficients) -> None:
        """One client's steps, whatever it weighs, as in the paper."""
        where = scalars.seeds - scalars.plan.first
        np.add.at(self.lengths, where, np.abs(scalars.coefficients))
        np.add.at(self.counts, where, 1)

    def join(self, other: SeedUse) -> None:
        """Other clients' steps."""
        self.lengths += other.lengths
        self.counts += other.counts


@dataclass(frozen=True, eq=False)
class SeedSlopes:
    """Of all rounds.

    Args:
        sums: float64 [K], Σ of the slopes' magnitudes along each seed, in the first round's unit of steps.
        counts: int64 [K], how many slopes.
    """

    sums: npt.NDArray[np.float64]
    counts: Integers

    def after(self, use: SeedUse, rate: float) -> SeedSlopes:
        """After one round more.

        Args:
            use: its steps.
            rate: its learning rate relative to that of the first: a step is rate times a slope.
        """
        if rate <= 0:
            return self
        return SeedSlopes(self.sums + use.lengths / rate, self.counts + use.counts)

    def means(self) -> npt.NDArray[np.float64]:
        """float64 [K]; NaN where a seed was never used."""
        return np.where(self.counts == 0, np.nan, self.sums / np.maximum(self.counts, 1))
