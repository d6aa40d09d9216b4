"""What a sweep's tables say, as words: the same in a terminal and on the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headwater.config.data import lower_is_better
from headwater.simulation.sweeps.picture import level_name, name_of
from headwater.simulation.sweeps.plan import short_names
from headwater.simulation.sweeps.run import SweepResult
from headwater.simulation.sweeps.tables import Effect, Row, Spread, Tables
from headwater.text import NOTHING, human_bytes, human_seconds, number, plain, signed


@dataclass(frozen=True)
class Cells:
    """A table: its heads, and for each row its cells and whether it is the best one.

    Args:
        heads: of the columns.
        names: how many of them are labels; the others are numbers.
        rows: cells, and whether the row stands out.
    """

    heads: list[str]
    names: int
    rows: list[tuple[list[str], bool]]


def title(result: SweepResult) -> str:
    """``glosses: accuracy on the held-out test, last round``."""
    where = {"test": "on the held-out test", "clients": "on the clients' validation splits"}
    on = where.get(result.source, "")
    when = {"last": "last round", "best": "best round"}[result.sweep.compared.of]
    lower = ", lower is better" if lower_is_better(result.sweep.metric) else ""
    return f"{plain(result.sweep.name, 120)}: {result.sweep.metric} {on}, {when}{lower}".replace(" ,", ",")


def combinations(result: SweepResult, tables: Tables) -> Cells:
    """A row a combination, over its seeds."""
    sweep = result.sweep
    names = short_names([axis for f in sweep.factors for axis in f.axes])
    axes = [axis for f in sweep.factors if not f.repeats for axis in f.axes]
    target = sweep.compared.target
    to = [f"rounds to {target:g}", f"bytes to {target:g}", "reached"] if target is not None else []
    devices = ["simulated"] if any(o.simulated_s is not None for o in result.outcomes.values()) else []
    numbers = [sweep.metric, "seeds", "rounds", "up", "down", "time", *devices, *to]
    heads = [*(plain(names[a], 60) for a in axes), *numbers]
    rows = [([*(plain(row.labels[a], 60) for a in axes), *_numbers(row, bool(devices), bool(to))],
             row is tables.best) for row in tables.rows]  # fmt: skip
    return Cells(heads, len(axes), rows)


def effects(result: SweepResult, tables: Tables) -> Cells:
    """A row a level of each factor; the mean and spread over the combinations of the others."""
    heads = ["axis", "level", result.sweep.metric, "combinations", "against the first level"]
    rows = []
    for factor, levels in tables.effects.items():
        for effect in levels:
            cells = [name_of(factor, result.sweep), level_name(factor, effect.level), spread(effect.value)]
            rows.append(([*cells, f"{effect.value.n:,}", _difference(effect, levels[0])], False))
    return Cells(heads, 2, rows)


def best(result: SweepResult, tables: Tables) -> str:
    """The best combination in a sentence; empty where nothing was measured."""
    row = tables.best
    if row is None:
        return ""
    names = short_names([axis for f in result.sweep.factors for axis in f.axes])
    which = ", ".join(f"{names[axis]} = {label}" for axis, label in row.labels.items())
    repeated = f" over {row.value.n} seeds" if row.value.n > 1 else ""
    return (
        f"Best: {plain(which) or 'the one combination'}, {result.sweep.metric} {spread(row.value)}{repeated}."
    )


def remarks(result: SweepResult, tables: Tables) -> list[str]:
    """What a reader of the tables must know, a sentence each."""
    done, points = len(result.outcomes), len(result.sweep.points)
    said = []
    if done < points:
        failed = f", {len(result.failed):,} of the others failed" if result.failed else ""
        said.append(f"{done:,} of {points:,} points are done{failed}: the tables are of those.")
    if tables.seeds == 1:
        said.append("One seed: no spread is known, and a difference may be luck.")
    if tables.rows and not any(row.value.n for row in tables.rows):
        said.append(f"No point has a {result.sweep.metric}: nothing was evaluated, or nothing came of it.")
    elif any(e.value.n == 0 for levels in tables.effects.values() for e in levels):
        said.append("An effect is – where no combination of the other axes has every level of this one.")
    if lost := sum(o.lost > 0 for o in result.outcomes.values()):
        said.append(f"In {lost:,} points owners were lost on the way: the column lost of points.csv.")
    if result.strangers:
        said.append(
            f"{result.strangers:,} run folders are of no point of this file; they are left as they are."
        )
    return said


def spread(value: Spread) -> str:
    """``0.612 ± 0.011``."""
    if not value.n:
        return NOTHING
    more = "" if value.deviation is None else f" ± {number(value.deviation)}"
    return f"{number(value.mean)}{more}"


def _difference(effect: Effect, first: Effect) -> str:
    if effect is first or not effect.difference.n:
        return NOTHING
    more = effect.difference.deviation
    return signed(effect.difference.mean) + ("" if more is None else f" ± {number(more)}")


def _numbers(row: Row, devices: bool, target: bool) -> list[str]:
    found = [
        spread(row.value),
        f"{len(row.outcomes):,}",
        _count(row.mean(lambda o: o.rounds)),
        human_bytes(row.mean(lambda o: o.bytes_up)),
        human_bytes(row.mean(lambda o: o.bytes_down)),
        human_seconds(row.mean(lambda o: o.seconds)),
        *([human_seconds(row.mean(lambda o: o.simulated_s))] if devices else []),
    ]
    if not target:
        return found
    return [
        *found,
        _count(row.mean(lambda o: None if o.target is None else o.target.rounds)),
        human_bytes(row.mean(lambda o: None if o.target is None else o.target.bytes)),
        f"{row.reached:,} of {len(row.outcomes):,}",
    ]


def _count(value: float) -> str:
    return (
        NOTHING if not math.isfinite(value) else f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
    )
