"""The four charts of a report: metric, bytes, gap and training loss by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from markupsafe import Markup

from headwater.config.data import is_rate
from headwater.server.report.data import Run
from headwater.server.report.svg import Plot, Point, Scale, extent, log_ticks
from headwater.server.report.tally import MOST_LINES
from headwater.server.round_record import RoundRecord
from headwater.text import finite, human_bytes, number, plain, times

_LOG_BEYOND = 12
"""A dense update this many times larger than the sent one leaves no linear bar to see."""


def metric_chart(run: Run) -> Markup | None:
    """The deciding metric: test, clients together, clients one by one or as quantiles, baselines."""
    title = f"{run.metric} by round"
    drawn = [("test", "main", run.measured("test")), ("clients", "pooled", run.measured("clients_pooled"))]
    if run.source == "clients_pooled":
        drawn = [(name, "main" if name == "clients" else "pooled", points) for name, _, points in drawn]
    marks = [(value, f"{name} {number(value)}", "base") for name, value in run.baselines.items()]
    if run.alone:
        middle = statistics.median(run.alone.values())
        marks.append((middle, f"alone, median {number(middle)}", "base"))
    values = [y for _, _, points in drawn for _, y in points if y is not None]
    values += [v for s in run.spreads("metric") for v in (s.least, s.greatest)]
    if not values:
        return None
    rates = is_rate(run.metric)
    y = extent([*values, *(m[0] for m in marks)], floor=0.0, ceiling=1.0 if rates else None)
    plot = Plot(title, _x(run), y)
    arrow = ", lower is better" if run.lower_is_better else ""
    plot.axes("round", number_ticks(y, 6), run.metric + arrow + _log_note(y))
    plot.hover([(r.round, _tip(run, r)) for r in run.shown])
    exported = finite(run.get("adapter_round"))
    if exported is not None:
        at = plot.x(exported)
        plot.add("line", class_="exported", x1=at, x2=at, y1=plot.top, y2=plot.bottom)
        left = at > (plot.x.start + plot.x.end) / 2
        end = "end" if left else "start"
        text = f"adapter of round {exported:.0f}"
        plot.add("text", text, class_="tick", x=at - 6 if left else at + 6, y=plot.top - 8, text_anchor=end)
    _client_lines(plot, run, "metric")
    for value, _, _ in marks:
        at = plot.y(value)
        plot.add("line", class_="baseline", x1=plot.x.start, x2=plot.x.end, y1=at, y2=at)
    few = len(run.shown) <= 40
    for _, class_, points in reversed(drawn):
        plot.line(points, class_, dots=few)
    ends = [(name, class_, _last(points)) for name, class_, points in drawn]
    plot.labels([(v, f"{name} {number(v)}", class_) for name, class_, v in ends if v is not None] + marks)
    return plot.svg()


def loss_chart(run: Run) -> Markup | None:
    """The clients' mean training loss by round."""
    spreads = run.spreads("loss")
    if not spreads:
        return None
    y = extent([v for s in spreads for v in (s.least, s.greatest)], floor=0.0)
    plot = Plot("training loss by round", _x(run), y, height=280)
    plot.axes("round", number_ticks(y, 7), "mean training loss of the round" + _log_note(y))
    tips = [
        f"round {s.round}: median {number(s.median)}, {number(s.least)} to {number(s.greatest)}"
        for s in spreads
    ]
    plot.hover([(s.round, tip) for s, tip in zip(spreads, tips, strict=True)])
    _client_lines(plot, run, "loss")
    plot.line([(s.round, s.median) for s in spreads], "main", dots=len(spreads) <= 40)
    plot.labels([(spreads[-1].median, f"median {number(spreads[-1].median)}", "main")])
    return plot.svg()


def bytes_charts(run: Run) -> list[Markup]:
    """Bytes up and bytes down by round, each before what dense fp32 states would take."""
    return [c for d, title in (("up", "Up: clients to server"), ("down", "Down: server to clients"))
            if (c := _bytes_chart(run, d, title)) is not None]  # fmt: skip


def _bytes_chart(run: Run, direction: str, title: str) -> Markup | None:
    rows = [
        (
            r.round,
            float(getattr(r.bytes, direction) or 0),
            float(getattr(r.bytes, f"{direction}_dense") or 0),
        )
        for r in run.shown
    ]
    rows = [row for row in rows if row[1] > 0]
    if not rows:
        return None
    top = max(max(sent, dense) for _, sent, dense in rows)
    typical = [row for row in rows if row[0] > 0] or rows
    log = statistics.median(dense / sent for _, sent, dense in typical) > _LOG_BEYOND
    low = 10.0 ** math.floor(math.log10(min(sent for _, sent, _ in typical) / 1.5))
    y = Scale(low, top * 1.4, 0, 1, log=True) if log else Scale(0.0, top * 1.08, 0, 1)
    plot = _half(title, _x(run, room=0.6), y)
    ticks = [v for v in log_ticks(low, top * 1.4, 6) if v >= low] if log else y.ticks(5)
    note = f"{title}, bytes a round" + (" (log scale)" if log else "")
    plot.axes("round", [(v, human_bytes(v).replace(".00 ", " ").replace(".0 ", " ")) for v in ticks], note)
    step = (plot.x.end - plot.x.start) / (plot.x.hi - plot.x.lo) * run.every
    width = step if step < 4 else min(26.0, step * 0.72)
    for number_, sent, dense in rows:
        at = plot.x(number_) - width / 2
        for class_, size in (("ghost", dense), ("bar", sent)):
            height = max(plot.bottom - plot.y(size), 1.5)
            plot.add("rect", class_=class_, x=at, y=plot.bottom - height, width=width, height=height)
    tip = "round {}: {} instead of {} dense ({} less)"
    plot.hover([(n, tip.format(n, human_bytes(s), human_bytes(d), times(d, s))) for n, s, d in rows])
    return plot.svg()


def gap_charts(run: Run) -> list[Markup]:
    """The merge's gap, relative to the product's norm and absolute; nothing if it is exact throughout."""
    charts = []
    for key, title, unit, factor in (
        ("relative", "Relative gap, %", " %", 100.0),
        ("absolute", "Absolute gap, Frobenius norm", "", 1.0),
    ):
        points: list[Point] = []
        for record in run.shown:
            value = finite(record.gap.get(key))
            if record.gap:
                points.append((record.round, None if value is None else value * factor))
        known = [y for _, y in points if y is not None]
        if not known or gap_is_exact(run):
            continue
        scale = extent([0.0, *known], floor=0.0)
        plot = _half(f"{title} by round", _x(run), scale)
        plot.axes("round", number_ticks(scale, 5), title)
        plot.hover([(x, f"round {x}: {number(y)}{unit}") for x, y in points])
        plot.line(points, "main", dots=len(points) <= 40)
        charts.append(plot.svg())
    return charts


def gap_is_exact(run: Run) -> bool:
    """Whether every merge of the run was exact by construction."""
    flags = [r.gap.get("exact") for r in run.rounds if r.gap]
    return bool(flags) and all(flags)


def gap_unmeasured(run: Run) -> set[int]:
    """The rounds whose clients sent coefficients of seeds: no products could be compared."""
    return {r.round for r in run.rounds if r.gap_unmeasured}


def _client_lines(plot: Plot, run: Run, what: str) -> None:
    """Clients one by one if there are few, else the bands of their quartiles and extremes."""
    spreads = run.spreads(what)
    plot.band([(s.round, s.least, s.greatest) for s in spreads], "whole")
    lines = run.by_client(what)
    if len(lines) <= MOST_LINES:
        for index, (client, points) in enumerate(lines.items()):
            last = number(_last(points))
            plot.line(points, f"client c{colour_of(run, client, index)}", f"{plain(client, 80)}: last {last}")
        return
    plot.band([(s.round, s.lower, s.upper) for s in spreads], "half")
    if what == "metric":
        plot.line([(s.round, s.median) for s in spreads], "median", "median of the clients")


def colour_of(run: Run, client: str, otherwise: int = 0) -> int:
    """A client's colour, 0 to 11: its place among all clients, so that all charts agree."""
    places = {c.name: i for i, c in enumerate(run.clients)}
    return places.get(plain(client, 80), otherwise) % MOST_LINES


def _half(title: str, x: Scale, y: Scale) -> Plot:
    """A plot for half the page's width, without labels at the right."""
    return Plot(title, x, y, width=470, height=250, right=14, left=66)


def _x(run: Run, room: float = 0.0) -> Scale:
    first = min((r.round for r in run.rounds), default=0)
    last = max((r.round for r in run.rounds), default=1)
    return Scale(first - room, max(last, first + 1) + room, 0, 1)


def _tip(run: Run, record: RoundRecord) -> str:
    parts = [("test", record.test.get(run.metric)), ("clients", record.pooled.get(run.metric))]
    known = [f"{name} {number(value)}" for name, value in parts if value is not None]
    return f"round {record.round}: {', '.join(known) or 'not evaluated'}"


def number_ticks(scale: Scale, wanted: int) -> list[tuple[float, str]]:
    """Ticks with as many decimals as their step needs."""
    values = scale.ticks(wanted)
    if scale.log or len(values) < 2:
        return [(v, f"{v:g}" if 1e-3 <= v < 1e5 else number(v)) for v in values]
    step = values[1] - values[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits > 4 or values[-1] >= 1e7:
        return [(v, number(v) if v else "0") for v in values]
    return [
        (v, f"{v:,.{digits}f}".replace("-", "−")) for v in (0.0 if abs(v) < step / 2 else v for v in values)
    ]


def _log_note(scale: Scale) -> str:
    return " (log scale)" if scale.log else ""


def _last(points: Sequence[Point]) -> float | None:
    return next((y for _, y in reversed(points) if y is not None), None)
