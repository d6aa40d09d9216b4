"""Runs side by side as a picture and a page: :func:`picture`, :func:`render`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from headwater.config.data import is_rate, lower_is_better
from headwater.server.report.charts import number_ticks
from headwater.server.report.compared import Compared, differing
from headwater.server.report.drawing import alone
from headwater.server.report.page import template
from headwater.server.report.svg import Plot, Point, Scale, extent, log_ticks
from headwater.text import NOTHING, count, human_bytes, human_seconds, number, plain

MOST_LINES = 12
"""Runs that are drawn for each metric; the table has all."""
MOST_SETTINGS = 24
"""Settings that have a column on the page."""


def picture(runs: Sequence[Compared]) -> str:
    """The charts as one SVG file; empty where nothing was measured."""
    return alone(f"{len(runs)} runs", [plot for _, plots in charts(runs) for plot in plots])


def render(runs: Sequence[Compared], page: Path) -> str:
    """The page's HTML: one file without scripts; the template escapes names, which are hostile text.

    Args:
        runs: in the order in which they are listed.
        page: where it will lie: links to the runs' reports start there.
    """
    drawn = _drawn(runs)
    keys = differing(runs)
    return template("runs.html.jinja").render(
        count=len(runs),
        charts=[(metric, [plot.svg() for plot in plots]) for metric, plots in charts(runs)],
        left=sum(bool(run.points) for run in runs) - len(drawn),
        keys=keys[:MOST_SETTINGS],
        more_keys=max(0, len(keys) - MOST_SETTINGS),
        rows=[
            {
                "folder": run_name(run),
                "link": _report(run, page),
                "colour": drawn.get(run.folder),
                "cells": cells(run),
                "settings": [plain(run.settings.get(key, NOTHING), 60) for key in keys[:MOST_SETTINGS]],
            }
            for run in runs
        ],
        heads=HEADS,
    )


HEADS = ("federation", "state", "round", "best", "last", "clients", "failures", "up", "down", "time")
"""Of :func:`cells`."""


def cells(run: Compared) -> tuple[str, ...]:
    """A run's line in a table, without its folder."""
    best = f"{run.metric} {number(run.best)} (round {run.best_round})" if run.best is not None else NOTHING
    return (
        run.name,
        run.state,
        f"{max(run.round, 0):,}/{count(run.rounds)}",
        best,
        number(run.last),
        count(run.clients),
        count(run.failures),
        human_bytes(run.bytes_up),
        human_bytes(run.bytes_down),
        human_seconds(run.seconds),
    )


def run_name(run: Compared) -> str:
    """Its folder, as it was given."""
    return plain(run.folder, 300)


def charts(runs: Sequence[Compared]) -> list[tuple[str, list[Plot]]]:
    """By metric, two plots: by round, and by the bytes that clients had sent until then."""
    drawn = _drawn(runs)
    found: dict[str, list[Compared]] = {}
    for run in runs:
        if run.folder in drawn:
            found.setdefault(run.metric, []).append(run)
    return [(metric, _plots(metric, group, drawn)) for metric, group in found.items()]


def _drawn(runs: Sequence[Compared]) -> dict[Path, int]:
    """The colours of those that are drawn: of each metric the first few."""
    counts: dict[str, int] = {}
    colours: dict[Path, int] = {}
    for run in runs:
        place = counts.get(run.metric, 0)
        if place < MOST_LINES and any(value is not None for _, value in run.points):
            colours[run.folder], counts[run.metric] = place, place + 1
    return colours


def _plots(metric: str, runs: Sequence[Compared], colours: dict[Path, int]) -> list[Plot]:
    values = [v for run in runs for _, v in run.points if v is not None]
    y = extent(values, floor=None if min(values) < 0 else 0.0, ceiling=1.0 if is_rate(metric) else None)
    head = (
        metric + (", lower is better" if lower_is_better(metric) else "") + (" (log scale)" if y.log else "")
    )
    last = max(x for run in runs for x, _ in run.points)
    plots = [Plot(f"{metric} by round", Scale(0, max(last, 1), 0, 1), y, right=300)]
    plots[0].axes("round", number_ticks(y, 6), head)
    _lines(plots[0], runs, colours, lambda run: run.points)
    sizes = [x for run in runs for x, _ in run.sent]
    if sizes:
        low, high = min(sizes), max(sizes) if max(sizes) > min(sizes) else 2 * max(sizes)
        plot = Plot(f"{metric} by bytes sent", Scale(low, high, 0, 1, log=True), y, right=300)
        ticks = [(v, human_bytes(v)) for v in log_ticks(low, high, 6)]
        plot.axes("bytes that clients had sent (log scale)", number_ticks(y, 6), head, ticks)
        _lines(plot, runs, colours, lambda run: run.sent)
        plots.append(plot)
    return plots


def _lines(
    plot: Plot,
    runs: Sequence[Compared],
    colours: dict[Path, int],
    points: Callable[[Compared], Sequence[Point]],
) -> None:
    ends = []
    for run in runs:
        shown, class_ = points(run), f"c{colours[run.folder]}"
        plot.line(shown, class_, run_name(run), dots=len(shown) <= 40)
        known = [value for _, value in shown if value is not None]
        if known:
            name = plain(run.folder.name or run.folder, 28)
            ends.append((known[-1], f"{number(known[-1])} {name}", class_))
    plot.labels(ends)


def _report(run: Compared, page: Path) -> str:
    """Where its report lies, from the page; empty without one."""
    report = run.folder / "report.html"
    if not report.is_file():
        return ""
    return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())
