"""Rule: how several adapters become one. Seven families, by what a rule must see; a rule is one short file.

What is merged are *changes*: of a LoRA module the matrix s·B·A, of IA3 the distance of its vector from one,
of a weight that was trained as a whole its distance from the base's, where the base is given. τ_i is the
change by adapter i, T the number of adapters.

- :class:`LinearRule`: the result is Σ c_i·τ_i, and the rule says c, if need be from the inner products
  ⟨τ_i, τ_j⟩. It is exact for LoRA of any ranks.
- :class:`ValueRule`: value by value, one adapter after the other, as sums. Memory does not grow with T.
- :class:`StackRule`: value by value, from all adapters at once, one weight at a time.
- :class:`MatrixRule`: matrix by matrix, from all adapters at once, by what no rotation changes.
- :class:`FactorRule`: LoRA's factors, from all adapters at once.
- :class:`SequentialRule`: matrix by matrix, one adapter after the other, by what no rotation changes.
- :class:`DataRule`: by what rows say of the adapters, through the base model.

The settings of a rule are its fields; ``headwater merge`` takes each as an option of the command line.

A rule's weights are shares: its result is a weighted mean of some kind, T identical adapters stay what they
are, and a paper's θ_0 + λ·Σ τ_i is ``--scale`` λ·T. A rule that is a sum by nature says ``weighs = False``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from headwater.config.settings import Settings

Floats = npt.NDArray[np.float64]
Space = Literal["product", "core", "stack", "factors"]
"""In which a LoRA weight is merged: see :mod:`headwater.merging.offline.merge`."""
SPACES: tuple[Space, ...] = ("product", "core", "stack", "factors")

SLACK = 1e-6
"""By which sums of rounded terms may miss what sums of the terms keep to."""


class Rule(Settings, ABC):
    """What every rule says of itself.

    Attributes:
        name: what ``--rule`` takes.
        line: what it does, in one line.
        source: paper and equation.
        passes: how often it goes over the adapters, once their coordinates are known.
        memory: what it keeps, in words.
        weighs: whether weights are shares, so that only their ratios count. Where not, a weight is a factor.
        weighted: whether it looks at weights at all; where not, unequal ones are refused.
        least: the smallest number of adapters.
        most: the largest number; None for any.
        negative: whether a weight may be negative: an adapter is taken out.
        gives_back: whether it can give one adapter's own, ``--task``, beside the merged one.
    """

    name: ClassVar[str]
    line: ClassVar[str]
    source: ClassVar[str]
    passes: ClassVar[int] = 1
    memory: ClassVar[str] = "one weight"
    weighs: ClassVar[bool] = True
    weighted: ClassVar[bool] = True
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = None
    negative: ClassVar[bool] = False
    gives_back: ClassVar[bool] = False


class LinearRule(Rule):
    """Σ c_i·τ_i."""

    needs_products: ClassVar[bool] = False
    per_weight: ClassVar[bool] = False
    """Whether each weight has coefficients of its own, from its own inner products."""
    differences: ClassVar[bool] = False
    """Whether it looks at differences of adapters alone: then heads, prompts and all that has no place where
    nothing is changed is in the inner products too, as it is."""

    @abstractmethod
    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:
        """The c_i [T].

        Args:
            weights: [T]; they sum to one where the rule ``weighs``.
            products: ⟨τ_i, τ_j⟩ [T, T], over all weights of the adapters together, or of one weight where
                the rule is ``per_weight``; None unless ``needs_products``.

        Raises:
            ConfigError: too few adapters, or ones that the rule cannot tell apart.
        """


class ValueRule(Rule):
    """Value by value, as sums over adapters."""

    degrees: ClassVar[tuple[int, ...]] = (1,)
    """Of each sum, with which power of the values its terms grow: |term| ≤ weight·|value|^degree."""
    signed: ClassVar[tuple[bool, ...]] = (True,)
    """Of each sum, whether its terms may be below 0."""
    axes: ClassVar[Literal["core", "concatenation"]] = "core"
    """In which coordinates it sees LoRA: those of space ``core``, or Uᵀ·τ_i with the left singular vectors U
    of [τ_1 … τ_T]."""
    blockwise: ClassVar[bool] = False
    """Whether :meth:`terms` is value by value, so that a part of the values may be asked for; in one pass."""
    alone: ClassVar[bool] = False
    """Whether offline it changes the factors of each LoRA adapter, by :meth:`compressed`, and then adds up
    their products; of other weights, and of the updates of a round, it prunes the values."""
    saved: ClassVar[float] = 0.0
    """Nanoseconds a value of one adapter by which NumPy takes longer for :meth:`add` than compiled loops."""
    join: ClassVar[np.ufunc] = np.add
    """What makes one term of two: a sum, or another operation of which order and grouping change nothing, and
    zero leaves all as it is."""

    @property
    def kept(self) -> float | None:
        """The fraction of an adapter's values that stays before :meth:`prune`, the largest; None for all."""
        return None

    @property
    def gain(self) -> float:
        """What :meth:`prune` multiplies a value with, at most."""
        return 1.0

    def prune(self, values: Floats, draw: Callable[[], np.random.Generator]) -> Floats:
        """An adapter's own change, dropped or rescaled: like ``values``, may be them, changed.

        Args:
            values: one weight's change by one adapter, trimmed, in the shape in which it is merged.
            draw: gives random numbers of this adapter and weight, the same in both passes.
        """
        return values

    def compressed(self, b: Floats, a: Floats) -> tuple[Floats, Floats]:
        """An adapter's factors B [rows, r] and A [r, columns], changed, for a rule that is ``alone``."""
        return b, a

    @abstractmethod
    def terms(self, values: Floats, weight: float) -> tuple[Floats, ...]:
        """What an adapter adds to each sum, [n]: its weight times a function of its values.

        Args:
            values: [n].
            weight: its weight; of no account where the rule is not ``weighted``.
        """

    def add(
        self, sums: tuple[Floats, ...], values: Floats, weight: float, room: tuple[Floats, Floats]
    ) -> None:
        """Join the terms of an adapter to the sums, in place.

        A rule may do without :meth:`terms` here, to the same bits: fresh arrays cost more than sums.

        Args:
            sums: [n] each; zeros before the first adapter.
            values: [n].
            weight: as for :meth:`terms`.
            room: scratch, which a ``blockwise`` rule is given at least as long as the values.
        """
        for total, term in zip(sums, self.terms(values, weight), strict=True):
            self.join(total, term, out=total)

    def sound(self, sums: tuple[Floats, ...], count: int, bound: float) -> bool:
        """Whether sums of the first pass may stand beside each other: whether terms can add up to them.

        A stranger may have summed for others: this keeps the result to what those others could cause.

        Args:
            sums: with weights that sum to one where the rule is ``weighted``.
            count: of adapters.
            bound: of their values, once pruned.
        """
        return True

    @abstractmethod
    def result(self, sums: tuple[Floats, ...]) -> Floats:
        """What the sums of the last pass come to: [n]."""


class TwoPassRule(ValueRule):
    """A ValueRule that goes over the adapters again, with what the first pass found."""

    passes: ClassVar[int] = 2
    second_degrees: ClassVar[tuple[int, ...]]
    """As ``degrees``, of the second pass."""

    def between(self, sums: tuple[Floats, ...], count: int) -> tuple[Floats, ...]:
        """What the second pass is given of the first one's sums: arrays [n].

        Args:
            sums: of the terms, with weights that sum to one where the rule is ``weighted``.
            count: of adapters.
        """
        return sums

    @abstractmethod
    def second_terms(
        self, first: tuple[Floats, ...], values: Floats, weight: float, count: int
    ) -> tuple[Floats, ...]:
        """What an adapter adds to each sum of the second pass, [n].

        Args:
            first: of :meth:`between`.
            values: [n].
            weight: its weight; all of them sum to one.
            count: of adapters.
        """


class StackRule(Rule):
    """Value by value, from all adapters at once."""

    memory: ClassVar[str] = "one weight of every adapter"

    @abstractmethod
    def merge(self, stack: Floats, weights: Floats) -> Floats:
        """The result [n].

        Args:
            stack: [T, n].
            weights: [T].
        """


class MatrixRule(Rule):
    """Matrix by matrix, from all adapters at once.

    A rule must be the same for rotated matrices, merge(P·τ_i·Q) = P·merge(τ_i)·Q: of LoRA it is given the
    small cores and gives what it would give for the changes themselves. What is no matrix is averaged.
    """

    memory: ClassVar[str] = "one weight of every adapter"
    of_sum: ClassVar[bool] = False
    """Whether it looks at Σ w_i·τ_i alone."""

    @abstractmethod
    def merge(self, stack: Floats, weights: Floats, side: int) -> Floats:
        """The result [rows, columns].

        Args:
            stack: [T, rows, columns], a weight's changes or their cores.
            weights: [T].
            side: the smaller side of the weight itself.
        """

    def give_back(self, stack: Floats, weights: Floats, side: int, which: int) -> Floats:
        """What adapter ``which`` has of its own, for a rule that ``gives_back``: [rows, columns]."""
        raise NotImplementedError(self.name)


class FactorRule(Rule):
    """LoRA's factors, from all adapters at once; what has no factors is averaged.

    They are the balanced ones, U·√S and √S·Vᵀ of each change, which other factors of it do not alter, with
    zeros up to the largest rank. In the space ``factors`` they are those of the files, s in B.
    """

    memory: ClassVar[str] = "one weight of every adapter"

    @abstractmethod
    def merge(self, ups: Floats, downs: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """B [rows, R] and A [R, columns] of the merged change.

        Args:
            ups: B [T, rows, r].
            downs: A [T, r, columns].
            weights: [T].
        """

    def give_back(self, ups: Floats, downs: Floats, weights: Floats, which: int) -> tuple[Floats, Floats]:
        """B and A of adapter ``which``, for a rule that ``gives_back``."""
        raise NotImplementedError(self.name)


class SequentialRule(Rule):
    """Matrix by matrix, one adapter after the other: only what has been merged is kept.

    The longest adapter comes first, so that the order in which they are named changes nothing. What comes out
    is made as long as the adapters in the mean, over all LoRA weights. What is no LoRA weight is averaged.
    """

    passes: ClassVar[int] = 2
    weighted: ClassVar[bool] = False

    @abstractmethod
    def join(self, merged: Floats, change: Floats) -> Floats:
        """The next adapter's change [rows, columns] with what is merged so far, not yet scaled."""


class DataRule(Rule):
    """By rows, through the base model: :mod:`headwater.training.merging` measures what the merge goes by.

    Attributes:
        files: what several files of rows are: those of one adapter each, one heap, or an objective each.
        labelled: whether rows must have what is to be learnt, or their texts are enough.
        classifies: whether it is for classifiers alone.
        spaces: of LoRA weights, the default first.
    """

    files: ClassVar[Literal["adapters", "heap", "objectives"]]
    labelled: ClassVar[bool] = True
    classifies: ClassVar[bool] = False
    spaces: ClassVar[tuple[Space, ...]] = ("product", "stack")
    memory: ClassVar[str] = "the base model and all adapters"

    @abstractmethod
    def passes_per_row(self, blocks: int) -> tuple[int, int]:
        """How often the model reads a row, and how often gradients are asked of it, at most.

        Args:
            blocks: numbered layers with LoRA, one after the other.
        """

    def kept_values(self, columns: Sequence[int], ranks: Sequence[int], space: Space) -> int:
        """Numbers of 8 bytes that are kept beside the model and the adapters.

        Args:
            columns: the inputs of each LoRA module.
            ranks: of all adapters together, by module.
            space: in which it merges.
        """
        return 0
