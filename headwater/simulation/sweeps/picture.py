"""A sweep's picture: the metric by one factor, a line a level of another, panels for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from headwater.config.data import is_rate, lower_is_better
from headwater.server.report.charts import number_ticks
from headwater.server.report.drawing import alone
from headwater.server.report.svg import Plot, Scale, extent
from headwater.simulation.sweeps.plan import Factor, Sweep, short_names
from headwater.simulation.sweeps.tables import Row, Tables
from headwater.text import number, plain

MOST_LINES = 12
MOST_PANELS = 12
"""Panels that are drawn; the table has all."""
_DODGE = 0.035


def panels(sweep: Sweep, tables: Tables) -> list[Markup]:
    """A drawing a panel; none where nothing was measured."""
    return [plot.svg() for plot in _plots(sweep, tables)]


def picture(sweep: Sweep, tables: Tables) -> str:
    """All panels as one SVG file with its own style sheet; empty where nothing was measured."""
    return alone(_title(sweep), _plots(sweep, tables))


def roles(sweep: Sweep) -> tuple[Factor | None, Factor | None, tuple[Factor, ...]]:
    """Which factor goes along x, which has the lines, and those that make panels.

    Along x goes what is numbers, with most levels; of what is left, lines are what has most levels.
    """
    left = [f for f in sweep.factors if not f.repeats and len(f.levels) > 1]
    if not left:
        return None, None, ()
    x = max(left, key=lambda f: (_numbers(f) is not None, len(f.levels)))
    left.remove(x)
    drawable = [f for f in left if len(f.levels) <= MOST_LINES]
    lines = max(drawable, key=lambda f: len(f.levels)) if drawable else None
    return x, lines, tuple(f for f in left if f is not lines)


def name_of(factor: Factor, sweep: Sweep) -> str:
    """``alpha``, or of zipped axes ``alpha + clients``."""
    names = short_names([axis for f in sweep.factors for axis in f.axes])
    return plain(" + ".join(names[axis] for axis in factor.axes), 80)


def level_name(factor: Factor, level: Sequence[str]) -> str:
    """A level's labels in one; of zipped axes the first's alone, where that tells levels apart."""
    first = {other[0] for other in factor.levels}
    return plain(level[0] if len(first) == len(factor.levels) else " + ".join(level), 60)


def _title(sweep: Sweep) -> str:
    return f"{plain(sweep.name, 120)}: {sweep.metric}"


def _numbers(factor: Factor) -> list[float] | None:
    """Its levels as numbers, if they are."""
    if len(factor.axes) > 1:
        return None
    try:
        return [float(label) for (label,) in factor.levels]
    except ValueError:
        return None


def _plots(sweep: Sweep, tables: Tables) -> list[Plot]:
    measured = [row for row in tables.rows if row.value.n]
    if not measured:
        return []
    x, lines, rest = roles(sweep)
    factors = [f for f in sweep.factors if not f.repeats]
    groups: dict[tuple[tuple[str, ...], ...], list[Row]] = {}
    for row in measured:
        groups.setdefault(tuple(row.levels[factors.index(f)] for f in rest), []).append(row)
    ends = [v for r in measured for v in _ends(r)]
    y = extent(ends, floor=None if min(ends) < 0 else 0.0, ceiling=1.0 if is_rate(sweep.metric) else None)
    found = []
    for levels, rows in list(groups.items())[:MOST_PANELS]:
        where = ", ".join(
            f"{name_of(f, sweep)} = {level_name(f, v)}" for f, v in zip(rest, levels, strict=True)
        )
        found.append(_panel(sweep, rows, (x, lines), where, y))
    return found


def _panel(
    sweep: Sweep, rows: list[Row], drawn: tuple[Factor | None, Factor | None], where: str, y: Scale
) -> Plot:
    x, lines = drawn
    factors = [f for f in sweep.factors if not f.repeats]
    levels = x.levels if x is not None else ((),)
    numbers = None if x is None else _numbers(x)
    if numbers is not None:
        levels = tuple(level for _, level in sorted(zip(numbers, levels, strict=True)))
    places = {level: float(at) for at, level in enumerate(levels)}
    plot = Plot(f"{_title(sweep)} {where}".strip(), Scale(-0.5, len(levels) - 0.5, 0, 1), y, height=330)
    arrow = ", lower is better" if lower_is_better(sweep.metric) else ""
    head = f"{sweep.metric}{arrow}{' (log scale)' if y.log else ''}{f': {where}' if where else ''}"
    ticks = [] if x is None else [(place, level_name(x, level)) for level, place in places.items()]
    plot.axes("" if x is None else name_of(x, sweep), number_ticks(y, 6), head, ticks)
    ends = []
    line_levels = lines.levels if lines is not None else ((),)
    for index, level in enumerate(line_levels):
        own = [r for r in rows if lines is None or r.levels[factors.index(lines)] == level]
        class_ = f"c{index}" if lines is not None else "main"
        shift = (index - (len(line_levels) - 1) / 2) * _DODGE
        points = sorted((places[r.levels[factors.index(x)] if x is not None else ()] + shift, r) for r in own)
        _draw(plot, points, class_, joined=numbers is not None)
        if points:
            last = points[-1][1].value.mean
            name = "" if lines is None else level_name(lines, level)
            ends.append((last, f"{name} {number(last)}".strip(), class_))
    plot.labels(ends)
    return plot


def _draw(plot: Plot, points: Sequence[tuple[float, Row]], class_: str, *, joined: bool) -> None:
    """Dots at the means, joined where the axis is numbers, with a whisker of one deviation to both sides."""
    for at, row in points:
        low, high = _ends(row)[0], _ends(row)[-1]
        if high > low:
            place = plot.x(at)
            plot.add("line", class_=f"whisker {class_}", x1=place, x2=place, y1=plot.y(low), y2=plot.y(high))
    line = [(at, row.value.mean) for at, row in points]
    for run in [line] if joined else [[point] for point in line]:
        plot.line(run, class_, dots=True)


def _ends(row: Row) -> list[float]:
    value, deviation = row.value.mean, row.value.deviation or 0.0
    return [v for v in (value - deviation, value + deviation) if math.isfinite(v)]
