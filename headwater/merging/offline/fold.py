"""fold(): a ValueRule over the adapters' changes of one weight, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from headwater.merging.largest import BLOCK
from headwater.merging.offline.rule import Floats, TwoPassRule, ValueRule


def fold(rule: ValueRule, read: Callable[[int], Floats], weights: Floats) -> Floats:
    """The rule on one weight, in one or two passes.

    Args:
        rule: which.
        read: adapter i's change [n], trimmed and pruned; the same each time.
        weights: [T].

    Returns:
        [n].
    """
    sums = _joined(rule, read, weights, rule.terms)
    if isinstance(rule, TwoPassRule):
        count = len(weights)
        first = rule.between(sums, count)
        sums = _joined(rule, read, weights, lambda values, w: rule.second_terms(first, values, w, count))
    return rule.result(sums)


def _joined(
    rule: ValueRule,
    read: Callable[[int], Floats],
    weights: Floats,
    terms: Callable[[Floats, float], tuple[Floats, ...]],
) -> tuple[Floats, ...]:
    """Sum by sum, in the order of the adapters."""
    sums: tuple[Floats, ...] = ()
    for i, weight in enumerate(weights):
        values = read(i)
        for part in _parts(values.size) if rule.blockwise else (slice(None),):
            found = terms(values[part], float(weight))
            if not sums:
                sums = tuple(np.empty(values.size) for _ in found)
            for total, term in zip(sums, found, strict=True):
                if i == 0:
                    total[part] = term
                else:
                    rule.join(total[part], term, out=total[part])
    return sums


def _parts(size: int) -> Iterator[slice]:
    """Stretches that stay in a core's cache with what a rule makes of them; one if there is nothing."""
    return (slice(at, at + BLOCK) for at in range(0, max(size, 1), BLOCK))
