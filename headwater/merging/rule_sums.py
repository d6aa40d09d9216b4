"""RuleSums: what of a rule of ``headwater merge`` is a sum over clients, so that a round can add it up.

Four of them: :class:`ValueSums` of rules that go value by value, :class:`TwoPassSums`, :class:`MatrixOfSum`
of rules that look at the sum alone, :class:`ModelStockSums`. :func:`sums_of` finds the one of a rule.
:mod:`headwater.merging.summed` adds them in int64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from headwater.merging.largest import Cut
from headwater.merging.offline.rule import SLACK, Floats, MatrixRule, Rule, TwoPassRule, ValueRule
from headwater.merging.offline.rules.model_stock import ModelStock
from headwater.state import StateSpec, TensorSpec

Draw = Callable[[str], np.random.Generator]
"""Random numbers of one client and tensor, by the tensor's name."""
Term = tuple[int, slice, Floats]
"""The number of a sum, which of its values, and what is added to them."""
AnyRule = TypeVar("AnyRule", bound=Rule)


@dataclass(frozen=True, slots=True)
class Sum:
    """One sum.

    Args:
        size: how many values it has.
        bound: of the magnitude of what a client of weight 1 adds.
        weighted: whether what a client adds is multiplied with its weight.
        signed: whether it may be below 0.
        degree: the power of the update's L2 norm that bounds the norm of what it adds; 0 where none does.
        fine: whether it takes a second int64 for what the rounding of the first leaves: the bound of a square
            leaves too few digits to those of small values.
    """

    size: int
    bound: float
    weighted: bool
    signed: bool = True
    fine: bool = False
    degree: int = 0


class RuleSums(ABC, Generic[AnyRule]):
    """What each client adds, and what the sums come to.

    Args:
        rule: with its settings.
    """

    join: np.ufunc = np.add

    def __init__(self, rule: AnyRule) -> None:
        self.rule = rule

    @abstractmethod
    def sums(self, spec: StateSpec, bound: float) -> tuple[Sum, ...]:
        """Which ones there are, of values of at most ``bound``."""

    @abstractmethod
    def terms(self, spec: StateSpec, values: Floats, draw: Draw) -> Iterator[Term]:
        """What a client of weight 1 adds, a tensor at a time.

        Args:
            spec: of the update.
            values: [numel]; may be changed.
            draw: of this client.
        """

    def sound(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int, bound: float) -> bool:
        """Whether sums that are within their bounds may stand beside each other.

        Args:
            spec: of the update.
            sums: as for :meth:`result`.
            clients: that are in, one or more.
            bound: of values.
        """
        return True

    @abstractmethod
    def result(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int) -> Floats:
        """The merged update [numel].

        Args:
            spec: of the update.
            sums: with weights that sum to one where they are weighted.
            clients: that are in.
        """


def sums_of(rule: Rule) -> RuleSums[Any] | None:
    """What of a rule is a sum, or None where it must see all updates at once."""
    found: RuleSums[Any] | None = None
    if isinstance(rule, TwoPassRule):
        found = TwoPassSums(rule)
    elif isinstance(rule, ValueRule) and rule.axes == "core":
        found = ValueSums(rule)
    elif isinstance(rule, MatrixRule) and rule.of_sum:
        found = MatrixOfSum(rule)
    elif isinstance(rule, ModelStock):
        found = ModelStockSums(rule)
    return found


def parts(spec: StateSpec) -> Iterator[tuple[TensorSpec, slice]]:
    """Each tensor, and where its values are in the vector of all."""
    end = 0
    for tensor in spec:
        start, end = end, end + tensor.numel
        yield tensor, slice(start, end)


def by_tensor(spec: StateSpec, make: Callable[[slice], tuple[Floats, ...]]) -> tuple[Floats, ...]:
    """Vectors [numel] of what ``make`` gives for each tensor."""
    pieces = [make(part) for _, part in parts(spec)]
    return tuple(np.concatenate(of_one) for of_one in zip(*pieces, strict=True))


def _at(part: slice, terms: tuple[Floats, ...]) -> Iterator[Term]:
    return ((number, part, term) for number, term in enumerate(terms))


def of_matrices(
    spec: StateSpec, mean: Floats, merge: Callable[[TensorSpec, slice, tuple[int, ...]], Floats]
) -> Floats:
    """The mean [numel], with each matrix of more than one row and column replaced by what ``merge`` gives."""
    merged = mean.copy()
    for tensor, part in parts(spec):
        if len(tensor.shape) == 2 and min(tensor.shape) > 1:
            merged[part] = merge(tensor, part, tensor.shape).reshape(-1)
    return merged


class ValueSums(RuleSums[ValueRule]):
    """The terms of a rule, tensor by tensor, once the client's own change is trimmed and pruned.

    Trimmed is the update as a whole, as in TIES' paper; pruned each tensor by itself.
    """

    def __init__(self, rule: ValueRule) -> None:
        super().__init__(rule)
        self.join = rule.join

    def sums(self, spec: StateSpec, bound: float) -> tuple[Sum, ...]:  # noqa: D102 - inherited
        largest = bound * self.rule.gain
        return tuple(
            Sum(spec.numel, largest**degree, self.rule.weighted, signed, fine=degree > 1, degree=degree)
            for degree, signed in zip(self.rule.degrees, self.rule.signed, strict=True)
        )

    def sound(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int, bound: float) -> bool:  # noqa: D102 - inherited
        return self.rule.sound(sums, clients, bound * self.rule.gain)

    def terms(self, spec: StateSpec, values: Floats, draw: Draw) -> Iterator[Term]:  # noqa: D102 - inherited
        if (kept := self.rule.kept) is not None:
            Cut.of(values, kept).apply(values)
        for tensor, part in parts(spec):
            change = values[part].reshape(tensor.shape)
            pruned = self.rule.prune(change, partial(draw, tensor.name)).reshape(-1)
            yield from _at(part, self.rule.terms(pruned, 1.0))

    def result(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int) -> Floats:  # noqa: D102 - inherited
        (merged,) = by_tensor(spec, lambda part: (self.rule.result(tuple(s[part] for s in sums)),))
        return merged


class TwoPassSums(ValueSums):
    """A rule of two passes."""

    rule: TwoPassRule

    def between(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int) -> tuple[Floats, ...]:
        """What the second pass must know of the first: vectors [numel]."""
        return by_tensor(spec, lambda part: self.rule.between(tuple(s[part] for s in sums), clients))

    def second_sums(self, spec: StateSpec, bound: float) -> tuple[Sum, ...]:
        """Which sums the second pass has. Terms hold the weights already, since these sum to one."""
        degrees = self.rule.second_degrees
        return tuple(Sum(spec.numel, bound**degree, weighted=False) for degree in degrees)

    def second_terms(
        self, spec: StateSpec, first: tuple[Floats, ...], values: Floats, weight: float, clients: int
    ) -> Iterator[Term]:
        """What a client adds in the second pass, a tensor at a time.

        Args:
            spec: of the update.
            first: of :meth:`between`.
            values: [numel].
            weight: of the client; all of them sum to one.
            clients: that are in.
        """
        for _, part in parts(spec):
            known = tuple(f[part] for f in first)
            yield from _at(part, self.rule.second_terms(known, values[part], weight, clients))


class MatrixOfSum(RuleSums[MatrixRule]):
    """Σ δ; the rule is applied to the matrices of the mean. What is no matrix is the mean."""

    def sums(self, spec: StateSpec, bound: float) -> tuple[Sum, ...]:  # noqa: D102 - inherited
        return (Sum(spec.numel, bound, weighted=True, degree=1),)

    def terms(self, spec: StateSpec, values: Floats, draw: Draw) -> Iterator[Term]:  # noqa: D102 - inherited
        for _, part in parts(spec):
            yield 0, part, values[part]

    def result(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int) -> Floats:  # noqa: D102 - inherited
        mean = sums[0]

        def merge(tensor: TensorSpec, part: slice, shape: tuple[int, ...]) -> Floats:
            return self.rule.merge(mean[part].reshape(1, *shape), np.ones(1), min(shape))

        return of_matrices(spec, mean, merge)


class ModelStockSums(RuleSums[ModelStock]):
    """Σ w·δ, and of each tensor Σ δ/‖δ‖ and how many δ are not zero.

    With u = δ/‖δ‖ and n of N clients that have one, the mean cosine over pairs is (‖Σu‖² − n)/(N·(N − 1)).
    """

    def sums(self, spec: StateSpec, bound: float) -> tuple[Sum, ...]:  # noqa: D102 - inherited
        return (
            Sum(spec.numel, bound, weighted=True, degree=1),
            Sum(spec.numel, 1.0, weighted=False),
            Sum(len(spec), 1.0, weighted=False, signed=False),
        )

    def sound(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int, bound: float) -> bool:
        """No sum of unit vectors is longer than there are."""
        _, units, moved = sums
        lengths = np.array([float(np.linalg.norm(units[part])) for _, part in parts(spec)])
        return bool((lengths <= moved * (1 + SLACK) + SLACK).all())

    def terms(self, spec: StateSpec, values: Floats, draw: Draw) -> Iterator[Term]:  # noqa: D102 - inherited
        for i, (_, part) in enumerate(parts(spec)):
            yield 0, part, values[part]
            largest = float(np.abs(values[part]).max(initial=0.0))
            if largest:
                scaled = values[part] / largest  # squares of denormals are zero
                yield 1, part, scaled / float(np.sqrt(np.square(scaled).sum()))
                yield 2, slice(i, i + 1), np.ones(1)

    def result(self, spec: StateSpec, sums: tuple[Floats, ...], clients: int) -> Floats:  # noqa: D102 - inherited
        mean, units, moved = sums
        if clients == 1:
            return mean
        merged = mean.copy()
        for i, (_, part) in enumerate(parts(spec)):
            cosine = (float(np.square(units[part]).sum()) - moved[i]) / (clients * (clients - 1))
            merged[part] *= self.rule.drawn(cosine, clients)
        return merged
