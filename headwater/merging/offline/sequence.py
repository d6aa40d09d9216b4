"""Sequence: the order of a SequentialRule, and the length that its result is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.rule import Floats, SequentialRule


@dataclass(frozen=True)
class Sequence:
    """One adapter after the other.

    Args:
        rule: joins each to those before it.
        order: of ``adapters.folders``, the longest change first.
        stretch: what makes the result as long as the adapters are in the mean.
    """

    rule: SequentialRule
    order: tuple[int, ...]
    stretch: float

    @staticmethod
    def of(rule: SequentialRule, adapters: Adapters) -> Sequence:
        """With one pass for the lengths and one for the result's."""
        squares, merged = np.zeros(len(adapters)), 0.0
        for _, read in _modules(adapters):
            squares += [float(np.square(read(i)).sum()) for i in range(len(adapters))]
        found = Sequence(rule, tuple(np.argsort(-squares, kind="stable").tolist()), 1.0)
        for _, read in _modules(adapters):
            merged += float(np.square(found.merge(read)).sum())
        mean = float(np.sqrt(squares).mean())
        return Sequence(rule, found.order, mean / merged**0.5 if merged else 1.0)

    def merge(self, read: Callable[[int], Floats]) -> Floats:
        """One weight; ``read(i)`` gives adapter i's change of it."""
        first, *others = self.order
        merged = read(first)
        for index in others:
            merged = self.rule.join(merged, read(index))
        return merged * self.stretch


def _modules(adapters: Adapters) -> Iterator[tuple[str, Callable[[int], Floats]]]:
    """Each LoRA module, and what reads the adapters' cores of it."""
    for module in adapters.modules:
        basis = Basis.of(adapters, module)

        def read(i: int, module: str = module, basis: Basis = basis) -> Floats:
            return basis.core(*adapters.folders[i].factors(module))

        yield module, read
