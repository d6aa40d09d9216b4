"""SeededState: a global adapter that is its origin plus coefficients of seeds, and nothing else.

Where every client sends coefficients, the server's state stays w₀ + Σ a_s·z_s for ever (FedKSeed, arXiv
2312.06353; DeComFL, 2405.15861). Then a few hundred coefficients say what changed, instead of the adapter.
All sums are integers, so a member that was away and one that followed every round hold the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from headwater.seeds.directions import Directions, Integers, require_summable
from headwater.state import AdapterState


@dataclass(frozen=True, eq=False)
class SeededState:
    """A state as coefficients.

    Args:
        origin: w₀.
        directions: z₀, z₁, ….
        unit_bits: coefficients are integers times 2^-unit_bits.
        sums: int64 [n]: the coefficients of seeds 0 … n − 1.
        exact: Σ a·z in units of 2^-(unit_bits + directions.unit_bits), int64 [numel]; computed if absent.
    """

    origin: AdapterState
    directions: Directions
    unit_bits: int
    sums: Integers
    exact: Integers | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.exact is None:
            seeds = np.arange(len(self.sums))
            object.__setattr__(self, "exact", self.directions.combine(seeds, self.sums))

    def plus(self, first: int, change: Integers) -> SeededState:
        """The state after ``change`` was added to the coefficients from seed ``first`` on.

        Only seeds that change are drawn, and the result is that of drawing all: sums of integers.

        Raises:
            ConfigError: coefficients too large for exact sums.
        """
        size = max(len(self.sums), first + len(change))
        sums = np.zeros(size, np.int64)
        sums[: len(self.sums)] = self.sums
        sums[first : first + len(change)] += change
        require_summable(sums)
        touched = np.flatnonzero(change)
        exact = self.total + self.directions.combine(first + touched, change[touched])
        return SeededState(self.origin, self.directions, self.unit_bits, sums, exact)

    @property
    def total(self) -> Integers:
        """:attr:`exact`, which is always there."""
        assert self.exact is not None
        return self.exact

    def state(self) -> AdapterState:
        """The adapter: float32(w₀ + Σ a·z), rounded once."""
        return shifted(self.origin, self.total, self.unit_bits + self.directions.unit_bits)


def shifted(origin: AdapterState, exact: Integers, unit_bits: int) -> AdapterState:
    """float32(origin + exact·2^-unit_bits), value by value in name order; exact: int64 [numel]."""
    if not exact.any():
        return origin
    moved = origin.vector().double().numpy() + exact.astype(np.float64) * 2.0**-unit_bits
    return AdapterState.from_vector(origin.spec, torch.from_numpy(moved.astype(np.float32)))
