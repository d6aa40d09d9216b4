"""CorrelatedNoise: the noise of a mechanism in whole units, a round at a time.

C⁻¹Z of a discrete Gaussian Z is no whole number, and a sum with it no longer what
:mod:`headwater.privacy.noise` has a proof for. So a round's noise is N_t = Z_t − ⌊Σ_{s<t} C_ts·N_s⌉, of the
whole numbers that left before.

Formal guarantees, of releases R_t = G_t + N_t over all rounds together:

- They cost what *one* Gaussian does of multiplier z = σ/Δ, Δ = :attr:`CorrelatedNoise.sensitivity`. Why: with
  what left before given, N_s = R_s − G_s, and Z_t is R_t less a function of them. Let another database have
  G − D in place of G. The same releases need a Z_t there that is moved by a whole vector, no farther than
  2 · :meth:`CorrelatedNoise.slack` from (C·D)_t in each value: two roundings of half a unit, and float64's
  errors. So each round is a discrete Gaussian that is shifted by whole units, as its accounting wants, and
  all shifts together are no longer than Δ, whatever left before. Their Rényi divergences add up to those of
  one shift by Δ, also where each depends on what came before (Feldman and Zrnic 2021, arXiv 2008.11193;
  of continuous Gaussians, so do trade-off curves: Smith and Thakurta 2022, arXiv 2210.17520).
- Nothing of G is remembered. What is, tells G to whoever also has the releases: keep it as secret as sums.
- A position is drawn once: who draws the same step twice and lets both leave has told more than this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from headwater.errors import ConfigError
from headwater.privacy.correlated.mechanism import Mechanism, Memory, Participation
from headwater.privacy.noise import Integers, Randomness, discrete_gaussian

_BEYOND = 64
"""A value of the noise is at most so many σ, else nothing leaves. A row of a good C⁻¹ is no longer than 2 (a
tree's, √(2·log₂ n)), so that never happens."""
_COMPUTED = 1 + 2.0**-30
"""What float64 computes of a mechanism's sensitivity may be off by less."""


@dataclass(frozen=True)
class CorrelatedNoise:
    """Noise for the sums of a run.

    Args:
        mechanism: C.
        participation: in which rounds an owner can be; somebody else sees to that.
        values: d, of a sum.
        multiplier: z, over all rounds together.
        longest: of one owner's part of one sum, in units, L2.
    """

    mechanism: Mechanism
    participation: Participation
    values: int
    multiplier: float
    longest: float

    @cached_property
    def sensitivity(self) -> float:
        """Δ in units: C's, times the longest part, and what rounding adds over n·d values.

        Raises:
            ConfigError: rounding would more than double it: the unit is too coarse.
        """
        exact = self.mechanism.sensitivity(self.participation) * self.longest * _COMPUTED
        added = (
            2 * self.slack(2 * self.multiplier * exact) * math.sqrt(self.participation.rounds * self.values)
        )
        if not added <= exact:
            raise ConfigError(
                "correlated noise",
                expected=f"parts of at least {added:.3g} units, over which rounding counts little",
                got=f"{exact:.3g}",
                hint="Use smaller units, or fewer rounds.",
            )
        return exact + added

    @property
    def sigma(self) -> int:
        """σ of Z, in units."""
        return math.ceil(self.multiplier * self.sensitivity)

    def slack(self, sigma: float) -> float:
        """How far ⌊Σ C_ts·N_s⌉ is from the sum itself: half a unit, and what float64 rounds in n steps."""
        n = self.participation.rounds
        return 0.5 + n * n * _BEYOND * sigma * 2.0**-51

    def init(self) -> Memory:
        """Before the first round."""
        return self.mechanism.init(self.values)

    def next(self, memory: Memory, randomness: Randomness) -> tuple[Integers, Memory]:
        """The noise of the next round.

        Args:
            memory: after the round before.
            randomness: where bits come from.

        Returns:
            int64 [d], and the memory to store before the round's sum leaves.

        Raises:
            ConfigError: a memory of other sizes, or after the last round; or a mechanism whose inverse blows
                noise up.
        """
        shape = (self.mechanism.buffers, self.values)
        if memory.buffers.shape != shape or not 0 <= memory.step < self.participation.rounds:
            raise ConfigError(
                "correlated noise",
                expected=f"a memory {shape} of fewer than {self.participation.rounds} rounds",
                got=f"{memory.buffers.shape} after {memory.step}",
                hint="A run has as many rounds as its noise was planned for.",
            )
        drawn = discrete_gaussian(self.sigma, self.values, randomness)
        noise: Integers = drawn - np.rint(self.mechanism.earlier(memory)).astype(np.int64)
        if (largest := int(np.abs(noise).max(initial=0))) > _BEYOND * self.sigma:
            raise ConfigError(
                "correlated noise",
                expected=f"values of at most {_BEYOND} σ, for which its rounding is bounded",
                got=f"{largest / self.sigma:.3g} σ",
                hint="Use a mechanism from headwater.privacy.correlated.optimise, or a tree.",
            )
        return noise, self.mechanism.enter(memory, noise.astype(np.float64))
