"""Rules run on values, and through folders, for the tests of rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headwater.merging.largest import Cut
from headwater.merging.offline.fold import fold
from headwater.merging.offline.rule import Rule, ValueRule
from tests.laws.offline_rule_laws import Bench, Floats, bench

TAUS = [
    np.array([1.0, -0.5, 0.2, 0.0, 0.6, -0.1]),
    np.array([-0.4, 0.5, -0.3, 0.8, 0.1, -0.2]),
    np.array([0.7, -0.9, 0.1, -0.2, 0.5, 0.3]),
]
"""Of golden vectors F2 and F2b."""
GENERATOR = np.random.default_rng(0)
ONE, WIDE, SQUARE = "m.q", (9, 7), (5, 4)
SHARES = [0.5, 0.3, 0.2]


def folded(rule: ValueRule, taus: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The rule on values that are already coordinates."""

    def read(i: int) -> Floats:
        values = taus[i].copy()
        if rule.kept is not None:
            Cut.of(values, rule.kept).apply(values)
        return rule.prune(values, lambda: GENERATOR)

    return fold(rule, read, np.array(weights))


def adapters(
    on: Bench, shape: tuple[int, int], ranks: Sequence[int], seed: int = 0
) -> list[tuple[Path, Floats]]:
    """Folders of one module each, and what they change."""
    rng, found = np.random.default_rng(seed), []
    for rank in ranks:
        b = rng.normal(size=(shape[0], rank)).astype(np.float32)
        a = rng.normal(size=(rank, shape[1])).astype(np.float32)
        found.append((on.adapter({ONE: (b, a)}), b.astype(np.float64) @ a.astype(np.float64)))
    return found


def merged(
    rule: Rule,
    shape: tuple[int, int],
    ranks: Sequence[int],
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Floats, list[Floats]]:
    """Through folders and their cores: the result as a matrix, and the changes that went in."""
    with bench() as on:
        made = adapters(on, shape, ranks, seed)
        result = on.merge(rule, [folder for folder, _ in made], weights)
        return result[f"base_model.model.{ONE}"], [tau for _, tau in made]


def close(got: Floats, expected: Floats, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max()))
    )


class Fixed(np.random.Generator):
    """Numbers that are said beforehand, instead of drawn ones."""

    def __init__(self, numbers: Floats) -> None:
        super().__init__(np.random.PCG64(0))
        self.numbers = numbers

    def __call__(self) -> Fixed:
        return self

    def random(self, *args: object, **kwargs: object) -> Floats:  # type: ignore[override]  # one use
        return self.numbers
