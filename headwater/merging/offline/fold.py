"""fold(): a ValueRule over the adapters' changes of one weight, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from headwater.merging.offline.rule import Floats, ValueRule


def fold(rule: ValueRule, read: Callable[[int], Floats], weights: Floats) -> Floats:
    """The rule on one weight, in one or two passes.

    Args:
        rule: which.
        read: adapter i's change [n], trimmed and pruned; the same each time.
        weights: [T].

    Returns:
        [n].
    """
    sums = _joined(rule.join, (rule.terms(read(i), float(w)) for i, w in enumerate(weights)))
    if rule.passes > 1:
        first = rule.between(sums)
        sums = _joined(
            rule.join, (rule.second_terms(first, read(i), float(w)) for i, w in enumerate(weights))
        )
    return rule.result(sums)


def _joined(join: np.ufunc, terms: Iterable[tuple[Floats, ...]]) -> tuple[Floats, ...]:
    """Sum by sum, in the order of the adapters."""
    sums: tuple[Floats, ...] = ()
    for term in terms:
        if sums:
            for total, value in zip(sums, term, strict=True):
                join(total, value, out=total)
        else:
            sums = tuple(np.array(value, np.float64) for value in term)
    return sums
