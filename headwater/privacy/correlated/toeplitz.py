"""Toeplitz matrices: C_ts = c_{t−s}, with c₀ = 1 ≥ c₁ ≥ … ≥ 0. Banded ones, and what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.errors import ConfigError
from headwater.privacy.correlated.mechanism import Floats, Mechanism, Memory, Participation


class Toeplitz(Mechanism):
    """A mechanism that is told by its coefficients."""

    @abstractmethod
    def coefficients(self, rounds: int) -> Floats:
        """c₀ … c_{n−1}, which never rise and are not below 0."""

    def sensitivity(self, participation: Participation) -> float:
        """Exact.

        As coefficients never rise, the worst pattern is k rounds from the first on, each b after the last
        (Kalinin and Lampert 2024, arXiv 2405.13763, theorem 2).
        """
        n, b = participation.rounds, participation.separation
        padded = np.concatenate([self.coefficients(n), np.zeros(-n % b)])
        column = padded.reshape(-1, b).cumsum(axis=0).ravel()  # of all rounds that are b apart
        most = participation.times * b
        column[most:] -= column[:-most].copy()  # less those beyond k
        return float(np.linalg.norm(column[:n]))

    def prefix_errors(self, rounds: int) -> Floats:
        """Of 1/((1−x)·c(x)): sums of the inverse's coefficients, squared, summed."""
        impulse = np.zeros((rounds, 1))
        impulse[0] = 1
        inverse = np.concatenate(list(self.rows(impulse)))
        return np.cumsum(np.square(np.cumsum(inverse)))


@dataclass(frozen=True, slots=True)
class Banded(Toeplitz):
    """So many coefficients, then zeros (2306.08153): remembers as many vectors, less one.

    ``Banded((1.0,))`` is independent noise.

    Args:
        bands: c₀ = 1, c₁, …

    Raises:
        ConfigError: coefficients that do not begin with 1, rise, or are below 0.
    """

    kind: ClassVar[str] = "banded"
    bands: tuple[float, ...]

    def __post_init__(self) -> None:
        c = np.array(self.bands)
        if c.size == 0 or c[0] != 1 or not (np.diff(c) <= 0).all() or c[-1] < 0:
            raise ConfigError(
                "bands",
                expected="coefficients from 1 on that never rise and are not below 0",
                got=str(self.bands),
            )

    @property
    def buffers(self) -> int:
        """One for each coefficient but the first."""
        return len(self.bands) - 1

    def coefficients(self, rounds: int) -> Floats:
        """The bands, then zeros."""
        out = np.zeros(rounds)
        out[: len(self.bands)] = self.bands[:rounds]
        return out

    def earlier(self, memory: Memory) -> Floats:
        """Σ c_j·x_{t−j}."""
        total: Floats = np.array(self.bands[1:]) @ memory.buffers
        return total

    def enter(self, memory: Memory, x: Floats) -> Memory:
        """The latest first; the oldest is forgotten."""
        return Memory(memory.step + 1, np.concatenate([x[None], memory.buffers])[: self.buffers])


def best_coefficients(rounds: int) -> Floats:
    """Of 1/√(1−x): the best Toeplitz matrix for the worst prefix sum, an owner in one round (2404.16706).

    Args:
        rounds: n.

    Returns:
        float64 [n], from 1 on: its squared norm is what :meth:`Mechanism.max_error` can come to at least.
    """
    k = np.arange(1, rounds)
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])
