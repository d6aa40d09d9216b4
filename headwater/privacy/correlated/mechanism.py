"""Mechanism: a lower-triangular matrix C with ones on its diagonal, row by row, and its inverse.

The sums of all rounds are the rows of G. The matrix mechanism (Li et al. 2015; Denisov et al. 2022, arXiv
2202.08312) releases C·G + Z with independent noise Z, hence also G + C⁻¹Z, whose prefix sums err by A·C⁻¹Z, A
the matrix of ones on and below the diagonal. It costs what one Gaussian does whose noise is Z's and whose
sensitivity is C's: :meth:`Mechanism.sensitivity` times the longest part of one owner in one round.

Another kind is one subclass, how it remembers, its coefficients and its sensitivity, and a line in
:data:`headwater.privacy.correlated.kinds.KINDS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Participation:
    """In which rounds one owner can be.

    Args:
        rounds: n, of the whole run.
        separation: b: who is in round t is in none of t + 1, …, t + b − 1. 1 allows every round; n, only one.
        most: in how many rounds at most; as many as fit if None.

    Raises:
        ConfigError: a number below 1.
    """

    rounds: int
    separation: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if min(self.rounds, self.separation, self.most or 1) < 1 or self.most == 0:
            raise ConfigError("participation", expected="numbers of at least 1", got=str(self))

    @property
    def times(self) -> int:
        """k, in how many rounds an owner can be: ⌈n/b⌉, or ``most``."""
        fit = math.ceil(self.rounds / self.separation)
        return fit if self.most is None else min(fit, self.most)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a mechanism keeps of the rows before.

    Args:
        step: how many rows there were.
        buffers: float64 [buffers, values].
    """

    step: int
    buffers: Floats


class Mechanism(ABC):
    """C and C⁻¹, a row at a time. Both remember the same: the vectors that C is multiplied by.

    Attributes:
        kind: its name in a file.
    """

    kind: ClassVar[str]

    def init(self, values: int) -> Memory:
        """Before the first row.

        Args:
            values: how long a row's vector is.
        """
        return Memory(0, np.zeros((self.buffers, values)))

    def multiply(self, memory: Memory, x: Floats) -> tuple[Floats, Memory]:
        """The next row of C·X: x_t + Σ_{s<t} C_ts·x_s."""
        return x + self.earlier(memory), self.enter(memory, x)

    def solve(self, memory: Memory, y: Floats) -> tuple[Floats, Memory]:
        """The next row of C⁻¹·Y: y_t − Σ_{s<t} C_ts·x_s."""
        x = y - self.earlier(memory)
        return x, self.enter(memory, x)

    def rows(self, y: Floats) -> Iterator[Floats]:
        """All rows of C⁻¹·Y, for Y float64 [n, values]."""
        memory = self.init(y.shape[1])
        for row in y:
            x, memory = self.solve(memory, row)
            yield x

    def materialize(self, rounds: int) -> Floats:
        """C itself, float64 [n, n]: for tests and small n."""
        memory, out = self.init(rounds), []
        for row in np.eye(rounds):
            y, memory = self.multiply(memory, row)
            out.append(y)
        return np.stack(out)

    @property
    @abstractmethod
    def buffers(self) -> int:
        """How many vectors it remembers."""

    @abstractmethod
    def earlier(self, memory: Memory) -> Floats:
        """Σ_{s<t} C_ts·x_s, of the row that follows."""

    @abstractmethod
    def enter(self, memory: Memory, x: Floats) -> Memory:
        """The memory after x_t; the one before stays as it is."""

    @abstractmethod
    def sensitivity(self, participation: Participation) -> float:
        """How far C·G moves at most, in L2, when each part of one owner is of length 1 (an upper bound)."""

    @abstractmethod
    def prefix_errors(self, rounds: int) -> Floats:
        """Variance of the error of each prefix sum when Z has variance 1: the rows' squared norms of A·C⁻¹.

        Returns:
            float64 [n].
        """

    def max_error(self, participation: Participation) -> float:
        """Standard deviation of the worst prefix sum, at sensitivity 1: comparable between mechanisms."""
        errors = self.prefix_errors(participation.rounds)
        return self.sensitivity(participation) * math.sqrt(float(errors.max()))

    def mean_error(self, participation: Participation) -> float:
        """The root of the mean variance over the prefix sums, at sensitivity 1."""
        errors = self.prefix_errors(participation.rounds)
        return self.sensitivity(participation) * math.sqrt(float(errors.mean()))


def gram_bound(gram: Floats, participation: Participation) -> float:
    """An upper bound of the sensitivity of any C, from C⊤C.

    Choquette-Choo et al. 2023 (arXiv 2306.08153), algorithm 4. The best pattern is taken for
    each row and then over rows, so the two may differ. Exact where columns that one owner can be in do not
    overlap. Takes k·n² steps.

    Args:
        gram: C⊤C, float64 [n, n].
        participation: of n rounds.
    """
    by_row = _best_pattern(np.abs(gram), participation)
    return math.sqrt(float(_best_pattern(by_row[None], participation)[0]))


def _best_pattern(x: Floats, participation: Participation) -> Floats:
    """max_u ⟨x, u⟩ of every row, over the patterns u that the participation allows (ibid., algorithm 3)."""
    n, b = x.shape[1], participation.separation
    best = np.zeros((x.shape[0], n + b))
    for _ in range(participation.times):
        best[:, :n] = x + best[:, b:]
        best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    return best[:, 0].copy()
