"""fold(): a ValueRule over the adapters' changes of one weight, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from headwater.merging.largest import BLOCK
from headwater.merging.offline.rule import Floats, TwoPassRule, ValueRule
from headwater.merging.offline.tensor_file import Array

MOST_TOGETHER, MOST_BYTES = 4, 32 << 20
"""Adapters whose changes of one weight are held at once, and the bytes that these may take."""

Add = Callable[[tuple[Floats, ...], Floats, float], None]
"""Adds an adapter's values [n], with its weight, to the sums [n]."""


def fold(rule: ValueRule, read: Callable[[int], Array], weights: Floats) -> Floats:
    """The rule on one weight, in one or two passes.

    Args:
        rule: which.
        read: adapter i's change [n], trimmed and pruned, float32 or float64; the same each time.
        weights: [T].

    Returns:
        [n].
    """
    room = np.empty(BLOCK), np.empty(BLOCK)

    def add(sums: tuple[Floats, ...], values: Floats, weight: float) -> None:
        rule.add(sums, values, weight, room)

    sums = _summed(rule, read, weights, len(rule.degrees), add)
    if isinstance(rule, TwoPassRule):
        count = len(weights)
        first = rule.between(sums, count)

        def add_again(sums: tuple[Floats, ...], values: Floats, weight: float) -> None:
            for total, term in zip(sums, rule.second_terms(first, values, weight, count), strict=True):
                total += term

        sums = _summed(rule, read, weights, len(rule.second_degrees), add_again)
    if not rule.blockwise:
        return rule.result(sums)
    merged = np.empty(sums[0].size)
    for part in _parts(merged.size):
        merged[part] = rule.result(tuple(total[part] for total in sums))
    return merged


def _summed(
    rule: ValueRule, read: Callable[[int], Array], weights: Floats, count: int, add: Add
) -> tuple[Floats, ...]:
    """Sum by sum, in the order of the adapters.

    Sums are longer than a core's cache, and moving them through it costs more than adding to them: a few
    adapters are read first, and then added one stretch after the other.
    """
    sums: tuple[Floats, ...] = ()
    at = 0
    while at < len(weights):
        group = [(read(at), float(weights[at]))]
        size = group[0][0].size
        while len(group) < _together(size) and at + len(group) < len(weights):
            group.append((read(at + len(group)), float(weights[at + len(group)])))
        sums = sums or tuple(np.zeros(size) for _ in range(count))
        for part in _parts(size) if rule.blockwise else (slice(None),):
            of_part = tuple(total[part] for total in sums)
            for values, weight in group:
                add(of_part, values[part].astype(np.float64, copy=False), weight)
        at += len(group)
    return sums


def _together(size: int) -> int:
    """How many adapters' changes [size] are held at once."""
    return min(MOST_TOGETHER, max(1, MOST_BYTES // (8 * max(size, 1))))


def _parts(size: int) -> Iterator[slice]:
    """Stretches that stay in a core's cache with what a rule makes of them; one if there is nothing."""
    return (slice(at, at + BLOCK) for at in range(0, max(size, 1), BLOCK))
