"""KeptAggregator: a rule of ``headwater merge`` that must see all adapters at once, in a federated round.

The updates of a round are kept until it is merged (:mod:`headwater.merging.buffered_rule`), then the rule
takes them in order of name. Weights are shares. Inner products and singular vectors come from BLAS and
LAPACK: on one machine the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.merging.buffered_rule import BufferedRule, BufferedUpdates
from headwater.merging.largest import Cut
from headwater.merging.offline.fold import fold
from headwater.merging.offline.rule import (
    Floats,
    LinearRule,
    MatrixRule,
    Rule,
    StackRule,
    TwoPassRule,
    ValueRule,
)
from headwater.merging.offline.rules.spectra import Spectral
from headwater.merging.rule_sums import of_matrices
from headwater.state import TensorSpec

_AT_ONCE = 2**20
"""Values of all clients together that are float64 at a time."""


class KeptAggregator(BufferedRule):
    """A rule over all updates.

    Args:
        rule: with its settings: a StackRule, a MatrixRule, a LinearRule over all weights together, or a
            ValueRule of one pass in the coordinates of all changes' left singular vectors (KnOTS).
        most_bytes: that the updates of one round may take in memory.
    """

    def __init__(self, rule: Rule, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self.rule, self.name = rule, rule.name

    def identity(self) -> Mapping[str, Any]:
        """The rule and its settings."""
        return {"rule": self.rule.name, **self.rule.model_dump()}

    def merged(self, acc: BufferedUpdates) -> npt.NDArray[np.float64]:
        """The rule on the updates in order of name.

        Raises:
            ConfigError: too few updates for these settings.
        """
        kept, rule = _Kept(acc), self.rule
        if isinstance(rule, LinearRule):
            return kept.sum(rule.coefficients(kept.shares, kept.products() if rule.needs_products else None))
        if isinstance(rule, StackRule):
            merged = np.empty(kept.size)
            for part, stack in kept.blocks():
                merged[part] = rule.merge(stack, kept.shares)
            return merged
        mean = kept.sum(kept.shares)
        return of_matrices(kept.spec, mean, lambda tensor, part, shape: _matrix(rule, kept, tensor, part))


class _Kept:
    """The updates in order of name, and their weights as shares."""

    def __init__(self, acc: BufferedUpdates) -> None:
        plan, names = acc.participants.plan, sorted(acc.values)
        self.spec, self.size = plan.spec, plan.spec.numel
        self.rows = [acc.values[name].numpy() for name in names]
        weights = np.array([plan.weights[name] for name in names], np.float64)
        self.shares: Floats = weights / weights.sum()

    def stack(self, part: slice) -> Floats:
        """Some values of every update: float64 [T, n]."""
        return np.stack([row[part] for row in self.rows]).astype(np.float64)

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """All values of every update, some at a time."""
        size = max(1, _AT_ONCE // len(self.rows))
        for start in range(0, self.size, size):
            part = slice(start, min(start + size, self.size))
            yield part, self.stack(part)

    def products(self) -> Floats:
        """⟨δ_i, δ_j⟩ [T, T]."""
        found = np.zeros((len(self.rows), len(self.rows)))
        for _, stack in self.blocks():
            found += stack @ stack.T
        return found

    def sum(self, coefficients: Floats) -> Floats:
        """Σ c_i·δ_i [numel]."""
        total = np.zeros(self.size)
        for c, row in zip(coefficients, self.rows, strict=True):
            if c:
                total += c * row
        return total


def _matrix(rule: Rule, kept: _Kept, tensor: TensorSpec, part: slice) -> Floats:
    """The rule on one matrix."""
    stack = kept.stack(part).reshape(-1, *tensor.shape)
    if isinstance(rule, MatrixRule):
        return rule.merge(stack, kept.shares, min(tensor.shape))
    assert isinstance(rule, ValueRule)
    assert not isinstance(rule, TwoPassRule)
    left = Spectral.of(np.concatenate(list(stack), axis=1)).left
    turned = np.matmul(left.T, stack)

    def read(index: int) -> Floats:
        values: Floats = turned[index].reshape(-1).copy()
        if rule.kept is not None:
            Cut.of(values, rule.kept).apply(values)
        return values

    if not left.shape[1]:
        return np.zeros(tensor.shape)
    return left @ fold(rule, read, kept.shares).reshape(left.shape[1], -1)
