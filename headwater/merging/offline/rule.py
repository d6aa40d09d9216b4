"""Rule: how several adapters become one. Three families, by what a rule must see; a rule is one short file.

What is merged are *changes*: of a LoRA module the matrix s·B·A, of IA3 the distance of its vector from one,
of a weight that was trained as a whole its distance from the base's, where the base is given. τ_i is the
change by adapter i, T the number of adapters.

- :class:`LinearRule`: the result is Σ c_i·τ_i, and the rule says c, if need be from the inner products
  ⟨τ_i, τ_j⟩. It is exact for LoRA of any ranks.
- :class:`ValueRule`: value by value, one adapter after the other, as sums. Memory does not grow with T.
- :class:`StackRule`: value by value, or matrix by matrix, from all adapters at once, one weight at a time.

The settings of a rule are its fields; ``headwater merge`` takes each as an option of the command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from headwater.config.settings import Settings

Floats = npt.NDArray[np.float64]


class Rule(Settings, ABC):
    """What every rule says of itself.

    Attributes:
        name: what ``--rule`` takes.
        line: what it does, in one line.
        source: paper and equation.
        passes: how often each adapter is read after it was opened.
        memory: what it keeps, in words.
        weighs: whether weights are shares, so that only their ratios count. Where not, a weight is a factor.
        least: the smallest number of adapters.
        negative: whether a weight may be negative: an adapter is taken out.
    """

    name: ClassVar[str]
    line: ClassVar[str]
    source: ClassVar[str]
    passes: ClassVar[int] = 1
    memory: ClassVar[str] = "one weight"
    weighs: ClassVar[bool] = True
    least: ClassVar[int] = 1
    negative: ClassVar[bool] = False


class LinearRule(Rule):
    """Σ c_i·τ_i."""

    needs_products: ClassVar[bool] = False

    @abstractmethod
    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:
        """The c_i [T].

        Args:
            weights: [T]; they sum to one where the rule ``weighs``.
            products: ⟨τ_i, τ_j⟩ over all weights of the adapters together, [T, T]; None unless
                ``needs_products``.

        Raises:
            ConfigError: too few adapters, or ones that the rule cannot tell apart.
        """


class ValueRule(Rule):
    """Value by value, as sums over adapters; a second pass may see the first one's result."""

    trimmed: ClassVar[bool] = False
    """Whether the largest values of each adapter are kept, a fraction :attr:`kept`, before :meth:`prune`."""

    @property
    def kept(self) -> float:
        """The fraction, where the rule is ``trimmed``."""
        raise NotImplementedError

    def prune(self, values: Floats, draw: np.random.Generator) -> Floats:
        """An adapter's own change, dropped or rescaled: [n], may be ``values`` itself, changed.

        Args:
            values: one weight's change by one adapter, [n], trimmed.
            draw: random numbers of this adapter and weight.
        """
        return values

    @abstractmethod
    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:
        """What an adapter adds to each sum: arrays like ``values``."""

    @abstractmethod
    def result(self, sums: tuple[Floats, ...]) -> Floats:
        """What the sums come to: [n]."""

    def second_terms(self, first: tuple[Floats, ...], values: Floats, weight: float) -> tuple[Floats, ...]:
        """The same for a second pass, of a rule with ``passes = 2``; :meth:`result` is given its sums."""
        raise NotImplementedError


class StackRule(Rule):
    """All adapters at once."""

    memory: ClassVar[str] = "one weight of every adapter"
    matrices: ClassVar[bool] = False
    """Whether it works on matrices; what has no two dimensions is then added with the weights."""

    @abstractmethod
    def merge(self, stack: Floats, weights: Floats) -> Floats:
        """The result.

        Args:
            stack: [T, n], or [T, rows, columns] where the rule works on ``matrices``.
            weights: [T].

        Returns:
            [n] or [rows, columns].
        """


@dataclass(frozen=True, slots=True)
class Cut:
    """Which of an adapter's values are kept: those above a magnitude, and of those that equal it the first.

    Args:
        magnitude: the smallest that is kept.
        last: the position of the last one of that magnitude that is kept.
    """

    magnitude: float
    last: int

    @staticmethod
    def of(values: Floats, density: float) -> Cut:
        """To keep a fraction of ``values`` [n], and at least one: the largest; of equal ones the earlier."""
        count = max(1, int(density * values.size))
        if count >= values.size:
            return Cut(0.0, values.size)
        magnitudes = np.abs(values)
        value = float(np.partition(magnitudes, values.size - count)[values.size - count])
        equal = np.flatnonzero(magnitudes == value)
        return Cut(value, int(equal[count - np.count_nonzero(magnitudes > value) - 1]))

    def apply(self, values: Floats, at: int = 0) -> Floats:
        """Set to zero what is not kept, in place.

        Args:
            values: [n].
            at: the position of the first one in the adapter.
        """
        magnitudes = np.abs(values)
        values[magnitudes < self.magnitude] = 0.0
        equal = np.flatnonzero(magnitudes == self.magnitude)
        values[equal[equal + at > self.last]] = 0.0
        return values
