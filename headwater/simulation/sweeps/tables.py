"""What a grid says: combinations over their seeds, the effect of each factor, the best combination."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from headwater.config.data import lower_is_better
from headwater.simulation.sweeps.outcome import Outcome
from headwater.simulation.sweeps.plan import Factor, Sweep

Levels = tuple[tuple[str, ...], ...]
"""One level of every factor that does not repeat, in the grid's order."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of some values, that of a sample (n - 1).

    Args:
        n: how many.
        mean: NaN of none.
        deviation: None of fewer than two.
    """

    n: int
    mean: float
    deviation: float | None

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Of those that are finite."""
        known = [v for v in values if math.isfinite(v)]
        if not known:
            return Spread(0, math.nan, None)
        return Spread(
            len(known), statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None
        )


@dataclass(frozen=True)
class Row:
    """A combination over its seeds.

    Args:
        labels: by axis, without those that repeat.
        levels: the same by factor.
        outcomes: of its points that are done.
        value: of the metric.
    """

    labels: Mapping[str, str]
    levels: Levels
    outcomes: tuple[Outcome, ...]
    value: Spread

    @property
    def reached(self) -> int:
        """How many of its points reached the target."""
        return sum(o.target is not None for o in self.outcomes)

    def mean(self, of: Callable[[Outcome], float | None]) -> float:
        """Over the points that have it; NaN if none has."""
        return Spread.of(v for o in self.outcomes if (v := of(o)) is not None).mean


@dataclass(frozen=True)
class Effect:
    """What a level of a factor does to the metric, all else equal.

    Args:
        level: its labels.
        value: over the means of the other factors' combinations of which every level is there.
        difference: to the first level, over the same combinations; its spread says whether it is one effect.
    """

    level: tuple[str, ...]
    value: Spread
    difference: Spread


@dataclass(frozen=True)
class Tables:
    """All that is said of a grid.

    Args:
        rows: in grid order, those with a point that is done.
        effects: by factor that does not repeat and has more than one level.
        best: the best mean among the rows with most seeds; None if nothing was measured.
        seeds: the most points of one row.
    """

    rows: tuple[Row, ...]
    effects: Mapping[Factor, tuple[Effect, ...]]
    best: Row | None
    seeds: int


def tables_of(sweep: Sweep, outcomes: Iterable[Outcome]) -> Tables:
    """The tables of the points that are done."""
    factors = [f for f in sweep.factors if not f.repeats]
    groups: dict[Levels, list[Outcome]] = {}
    for outcome in outcomes:
        levels = tuple(tuple(outcome.labels[axis] for axis in factor.axes) for factor in factors)
        groups.setdefault(levels, []).append(outcome)
    rows = []
    for levels, group in groups.items():
        labels = {
            a: x for f, level in zip(factors, levels, strict=True) for a, x in zip(f.axes, level, strict=True)
        }
        rows.append(Row(labels, levels, tuple(group), Spread.of(o.value for o in group)))
    rows.sort(key=lambda row: _place(factors, row.levels))
    effects = {f: _effects(rows, at, f) for at, f in enumerate(factors) if len(f.levels) > 1}
    return Tables(tuple(rows), effects, _best(sweep, rows), max((r.value.n for r in rows), default=0))


def _place(factors: Sequence[Factor], levels: Levels) -> tuple[int, ...]:
    return tuple(f.levels.index(level) for f, level in zip(factors, levels, strict=True))


def _effects(rows: Sequence[Row], at: int, factor: Factor) -> tuple[Effect, ...]:
    """Only over combinations of the others that have every level: else they would differ in more than it."""
    cells: dict[Levels, dict[tuple[str, ...], float]] = {}
    for row in rows:
        if row.value.n:
            others = row.levels[:at] + row.levels[at + 1 :]
            cells.setdefault(others, {})[row.levels[at]] = row.value.mean
    whole = [cell for cell in cells.values() if len(cell) == len(factor.levels)]
    first = factor.levels[0]
    return tuple(
        Effect(
            level,
            Spread.of(cell[level] for cell in whole),
            Spread.of(cell[level] - cell[first] for cell in whole),
        )
        for level in factor.levels
    )


def _best(sweep: Sweep, rows: Sequence[Row]) -> Row | None:
    """A mean over fewer seeds than others have may only be lucky."""
    most = max((row.value.n for row in rows), default=0)
    known = [row for row in rows if row.value.n == most and most]
    choose = min if lower_is_better(sweep.metric) else max
    return choose(known, key=lambda row: row.value.mean) if known else None
