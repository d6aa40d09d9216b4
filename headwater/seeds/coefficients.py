"""SeedCoefficients: an update as integer coefficients of seeds, and the plan that gives them meaning.

A client without gradients moves along random directions: w ← w + c·z_s, step by step. What it did is
the list of (s, c), a few hundred bytes however large the adapter. Coefficients are integers of the
unit ``2^-unit_bits`` and directions too (:mod:`headwater.seeds.directions`), so that replaying
somebody's steps gives what the steps gave, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from headwater.errors import UpdateRejected
from headwater.seeds.directions import Directions, Integers
from headwater.seeds.keys import Key

FINE_BITS = 8
"""The server's mean of coefficients is kept in units this many bits finer than the clients'."""


def directions_of(plan: SeedPlan, root: Key, size: int) -> Directions:
    """The federation's directions of a plan's distribution: the same in every round, for every client.

    Args:
        plan: says which distribution.
        root: the federation's root key.
        size: values of the adapter.
    """
    return Directions.of(root.child("seeds", plan.distribution), plan.distribution, size)


@dataclass(frozen=True, eq=False)
class SeedCoefficients:
    """Coefficients of seeds, one entry for each step that was taken.

    Args:
        plan: what they mean.
        seeds: int64 [n], ascending; a seed occurs as often as it was stepped along.
        coefficients: int64 [n], in units of 2^-plan.unit_bits.
    """

    plan: SeedPlan
    seeds: Integers
    coefficients: Integers

    @staticmethod
    def of(plan: SeedPlan, steps: list[tuple[int, int]]) -> SeedCoefficients:
        """From (seed, coefficient) of each step, in any order."""
        entries = np.array(sorted(steps), np.int64).reshape(-1, 2)
        return SeedCoefficients(plan, entries[:, 0].copy(), entries[:, 1].copy())

    @cached_property
    def sums(self) -> Integers:
        """int64 [plan.count]: Σ of the coefficients of each seed."""
        out = np.zeros(self.plan.count, np.int64)
        np.add.at(out, self.seeds - self.plan.first, self.coefficients)
        return out

    def require(self, plan: SeedPlan, who: str) -> None:
        """Check that these are coefficients of ``plan`` within its bounds.

        Raises:
            UpdateRejected: names ``who``.
        """
        n = len(self.seeds)
        wrong = ""
        if self.plan != plan:
            wrong = "scalars of another plan"
        elif any(a.shape != (n,) or a.dtype != np.int64 for a in (self.seeds, self.coefficients)):
            kinds = [(str(a.dtype), a.shape) for a in (self.seeds, self.coefficients)]
            wrong = f"arrays {kinds}"
        elif n > plan.entries:
            wrong = f"{n} coefficients"
        elif n and not (plan.first <= self.seeds.min() and self.seeds.max() < plan.first + plan.count):
            wrong = f"seeds {self.seeds.min()} to {self.seeds.max()}"
        elif plan.implied and not np.array_equal(self.seeds, np.arange(plan.first, plan.first + plan.count)):
            wrong = f"{n} coefficients, not one for each seed"
        elif n and not (self.coefficients.min() >= -32767 and self.coefficients.max() <= 32767):
            wrong = f"coefficients {self.coefficients.min()} to {self.coefficients.max()}"
        if wrong:
            raise UpdateRejected(
                f"{who}, scalars",
                expected=f"at most {plan.entries} coefficients within ±32767 of seeds {plan.first} to "
                f"{plan.first + plan.count - 1}",
                got=wrong,
                hint="The client is left out of this round.",
            )

    def expand(self, directions: Directions) -> npt.NDArray[np.float32]:
        """Σ c·z as float32 [size]: one rounding of the exact sum."""
        exact = directions.combine(self.seeds, self.coefficients)
        return to_float32(exact, self.plan.unit_bits + directions.unit_bits)

    def noise(self, size: int) -> float:
        """The update's noise (see ``Update``): Σ (c·2^-unit_bits)²·(size − 1), c the sum of a seed's steps.

        Of a direction's energy c²‖z‖², the share 1/size is the gradient's own (E‖ĝ‖² = size·‖∇‖² for ±1
        directions, size + 2 for Gaussian ones), and the rest is noise. A seed that was stepped along twice
        has twice the step and four times the noise. What nobody can understate: it is a function of what
        was sent.
        """
        return self._squares * (size - 1)

    def energy(self, directions: Directions) -> float:
        """‖Σ c·z‖², exactly: what the directions have in common is where the gradient shows."""
        touched = np.flatnonzero(self.sums)
        exact = directions.combine(self.plan.first + touched, self.sums[touched])
        values = exact.astype(np.float64) * 2.0 ** -(self.plan.unit_bits + directions.unit_bits)
        return float(np.sum(values * values))

    @cached_property
    def _squares(self) -> float:
        """Σ c² over the seeds."""
        steps = self.sums.astype(np.float64) * 2.0**-self.plan.unit_bits
        return float(np.sum(steps * steps))


def to_float32(exact: Integers, unit_bits: int) -> npt.NDArray[np.float32]:
    """exact·2^-unit_bits as float32, rounded once while |exact| < 2^53."""
    scaled: npt.NDArray[np.float32] = (exact.astype(np.float64) * 2.0**-unit_bits).astype(np.float32)
    return scaled


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """Which seeds a round's scalars may name, and what a coefficient of 1 is worth.

    Args:
        first: the first seed.
        count: seeds ``first`` … ``first + count − 1`` may be named.
        distribution: of the directions; see :mod:`headwater.seeds.directions`.
        unit_bits: a coefficient is an integer times 2^-unit_bits, ±32,767 at most.
        entries: at most so many coefficients in one update.
        implied: the update has exactly one coefficient for each seed, in order, and names none.
        odds: how often each seed should be drawn (:mod:`headwater.seeds.draw_weights`); empty: all alike.
    """

    first: int
    count: int
    distribution: Literal["rademacher", "gaussian"]
    unit_bits: int
    entries: int
    implied: bool = False
    odds: bytes = b""
