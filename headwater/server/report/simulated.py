"""What a report says of simulated time: the metric by time, time to a value, energy, one round's clients."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from headwater.server.report.data import Run
from headwater.server.report.svg import Plot, Point, Scale, extent, linear_ticks, node
from headwater.server.round_record import RoundRecord
from headwater.text import NOTHING, finite, human_joules, human_seconds, number, plain

MOST_BARS = 32
"""Clients of the pictured round; of more, every k-th in order of their ends."""
_BAR = 18.0


@dataclass(frozen=True, slots=True)
class Reached:
    """When a value of the deciding metric was first reached."""

    value: float
    round: int
    seconds: float
    joules: float


def is_simulated(run: Run) -> bool:
    """Whether the run has simulated devices."""
    return bool(run.rounds) and finite(run.rounds[-1].simulated.get("end_s")) is not None


def time_to(run: Run, value: float) -> Reached | None:
    """The first round whose evaluation is as good as ``value``, its end and the energy until then."""
    joules = 0.0
    for record in run.rounds:
        joules += finite(record.simulated.get("joules")) or 0.0
        found, ended = record.deciding(run.metric), finite(record.simulated.get("end_s"))
        good = found <= value if run.lower_is_better else found >= value
        if good and ended is not None:
            return Reached(value, record.round, ended, joules)
    return None


def reached(run: Run) -> list[tuple[str, str, str, str]]:
    """Round values between the first evaluation and the best: value, round, time, energy."""
    known = [v for r in run.rounds if (v := finite(r.deciding(run.metric))) is not None]
    if not known or not is_simulated(run):
        return []
    best = min(known) if run.lower_is_better else max(known)
    ticks = linear_ticks(min(known[0], best), max(known[0], best), 5) if best != known[0] else []
    wanted = sorted({*ticks, best}, reverse=run.lower_is_better)
    rows = [found for value in wanted if (found := time_to(run, value)) is not None]
    return [(number(r.value), str(r.round), human_seconds(r.seconds), human_joules(r.joules)) for r in rows]


def totals(run: Run) -> tuple[str, str]:
    """Simulated time and energy of the whole run."""
    seconds = run.rounds[-1].simulated.get("end_s") if run.rounds else None
    joules = sum(finite(r.simulated.get("joules")) or 0.0 for r in run.rounds)
    return human_seconds(seconds), human_joules(joules) if joules else NOTHING


def time_chart(run: Run) -> Markup | None:
    """The deciding metric by simulated time."""
    points: list[Point] = []
    for record in run.shown:
        value, ended = finite(record.deciding(run.metric)), finite(record.simulated.get("end_s"))
        if value is not None and ended is not None:
            points.append((ended, value))
    if len(points) < 2:
        return None
    unit, name = _unit(points[-1][0])
    points = [(x / unit, y) for x, y in points]
    y = extent([v for _, v in points if v is not None])
    x = Scale(0.0, max(points[-1][0], 1e-9), 0, 1)
    plot = Plot(f"{run.metric} by simulated time", x, y, height=280)
    plot.axes(f"simulated {name}", [(v, number(v)) for v in y.ticks(5)], run.metric)
    plot.hover([(at, f"{human_seconds(at * unit)}: {number(v)}") for at, v in points])
    plot.line(points, "main", dots=len(points) <= 40)
    return plot.svg()


def round_chart(run: Run) -> tuple[int, Markup] | None:
    """The last round that asked somebody: its number, and its clients, who waited and who was late."""
    record: RoundRecord | None = None
    for whole in run.whole():
        if any(row.simulated for row in whole.clients.values()):
            record = whole
    drawn = None if record is None else _picture(record)
    return None if record is None or drawn is None else (record.round, drawn)


def _picture(record: RoundRecord) -> Markup | None:
    """Of each client download, computation, upload, and the wait for the round's end."""
    start, end = (finite(record.simulated.get(key)) for key in ("start_s", "trained_s"))
    rows = [(finite(row.simulated.get("end_s")), name) for name, row in record.clients.items()]
    order = [name for ended, name in sorted((e, n) for e, n in rows if e is not None)]
    shown = order[:: -(-len(order) // MOST_BARS)]
    if start is None or end is None or not shown:
        return None
    start = min(start, *(finite(record.clients[n].simulated.get("asked_s")) or 0.0 for n in shown))
    unit, name = _unit(end - start)
    height = _BAR * len(shown) + 60
    x, y = Scale(0.0, max(end - start, 1e-9) / unit, 0, 1), Scale(0.0, float(len(shown)), 0, 1)
    plot = Plot(f"clients of round {record.round}", x, y, height=height, left=150, right=14)
    plot.axes(f"simulated {name} since the round began", [], "")
    for place, client in enumerate(reversed(shown)):
        _bar(plot, record, client, place + 0.5, (start, end, unit))
    return plot.svg()


def _bar(
    plot: Plot, record: RoundRecord, client: str, place: float, span: tuple[float, float, float]
) -> None:
    row, (start, end, unit) = record.clients[client], span
    times = {key: finite(value) or 0.0 for key, value in row.simulated.items()}
    at, middle, now = plot.y(place), _BAR * 0.3, times.get("asked_s", start)
    late = bool(row.failed)
    parts = [(k, times.get(f"{k}_s", 0.0)) for k in ("download", "compute", "upload")]
    told = ", ".join(f"{k} {human_seconds(s)}" for k, s in parts)
    why = f"; {plain(row.failed, 200)}" if late else ""
    rows = row.number("examples")
    had = f"; {rows:,.0f} rows" if rows is not None else ""
    about = f"{plain(client, 80)}: {told}{had}{why}"
    offline = max(0.0, times.get("end_s", now) - now - sum(s for _, s in parts))
    classes = {"download": "ghost", "compute": "bad" if late else "bar", "upload": "sent"}
    plot.add("text", plain(client, 20), class_="tick", x=plot.left - 8, y=at + 4, text_anchor="end")
    for kind, seconds in [("offline", offline), *parts]:
        left, right = plot.x((now - start) / unit), plot.x((now + seconds - start) / unit)
        now += seconds
        if kind != "offline" and right > left:
            box = {"x": left, "y": at - middle, "width": right - left, "height": 2 * middle}
            plot.add("rect", class_=classes[kind], **box)
    if end > now:
        y = {"y1": at, "y2": at}
        plot.add("line", class_="baseline", x1=plot.x((now - start) / unit), x2=plot.x.end, **y)
    whole = {"x": plot.x.start, "width": plot.x.end - plot.x.start, "y": at - _BAR / 2, "height": _BAR}
    plot.add("rect", node("title", about), class_="hover", **whole)


def _unit(seconds: float) -> tuple[float, str]:
    """The unit in which so long a time is drawn."""
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * size:
            return size, name
    return 1.0, "seconds"
