"""Charts as inline SVG without scripts: :class:`Plot`, its scales, ticks and labels that do not overlap.

Colours come from the page's style sheet through classes, so that one drawing serves light and dark.
Everything that is text goes through :func:`node`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

Point = tuple[float, float | None]
"""(x, y) in data units; y is None where a line breaks."""


def node(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``."""
    shown = Markup("").join(
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    body = Markup("").join(escape(c) for c in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), shown, body)


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


@dataclass(frozen=True)
class Scale:
    """Data units to SVG units, linear or logarithmic; values outside ``lo`` … ``hi`` are clamped."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where ``value`` is drawn."""
        value = min(max(value, self.lo), self.hi)
        if self.log:
            share = math.log(value / self.lo) / math.log(self.hi / self.lo)
        else:
            share = (value - self.lo) / (self.hi - self.lo)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """About ``wanted`` round values within the scale."""
        return log_ticks(self.lo, self.hi, wanted) if self.log else linear_ticks(self.lo, self.hi, wanted)


def linear_ticks(lo: float, hi: float, wanted: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((hi - lo) / wanted))
    step *= min((f for f in (1, 2, 5, 10) if (hi - lo) / (step * f) <= wanted), default=10)
    return [i * step for i in range(math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9) + 1)]


def log_ticks(lo: float, hi: float, wanted: int) -> list[float]:
    """Powers of ten; with their 2 and 5 folds where there is room; linear ones within one decade."""
    low, high = math.floor(math.log10(lo)), math.ceil(math.log10(hi))
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        values = [f * 10.0**p for p in range(low, high + 1) for f in factors]
        inside = [v for v in values if lo * (1 - 1e-9) <= v <= hi * (1 + 1e-9)]
        if len(inside) <= wanted or not found:
            found = inside
    if len(found) > wanted:
        found = found[:: math.ceil(len(found) / wanted)]
    return found if len(found) >= 2 else linear_ticks(lo, hi, wanted)


def extent(values: Iterable[float], *, floor: float | None = None, ceiling: float | None = None) -> Scale:
    """A vertical scale (0 to 1) with 6 % air around ``values``; logarithmic beyond a factor of 30.

    The values are 0 or between 1e-30 and 1e30 in size, as ``report_text.finite`` gives them.
    """
    known = sorted(values) or [0.0, 1.0]
    lo, hi = known[0], known[-1]
    if lo > 0 and hi / lo > 30:
        air = (hi / lo) ** 0.06
        return Scale(lo / air, hi * air, 0.0, 1.0, log=True)
    air = 0.06 * (hi - lo) or max(abs(hi) * 0.1, 1e-6)
    lo, hi = lo - air, hi + air
    if floor is not None:
        lo = max(lo, floor)
    if ceiling is not None:
        hi = min(hi, ceiling)
    return Scale(lo, hi if hi > lo else lo + 1.0, 0.0, 1.0)


def spread(wanted: Sequence[float], gap: float, lo: float, hi: float) -> list[float]:
    """Positions at least ``gap`` apart, within ``lo`` … ``hi``, as near to ``wanted`` as that allows.

    Least squares under order constraints (pool adjacent violators). ``gap`` shrinks if there is no room.
    """
    if len(wanted) > 1:
        gap = min(gap, (hi - lo) / (len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = wanted[index] - rank * gap, 1
        while pools and pools[-1][0] >= mean:
            other, more = pools.pop()
            mean, size = (mean * size + other * more) / (size + more), size + more
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    top = hi - gap * max(len(wanted) - 1, 0)
    placed = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        placed[index] = min(max(flat[rank], lo), max(top, lo)) + rank * gap
    return placed


@dataclass
class Plot:
    """A drawing area with axes.

    Args:
        title: what a screen reader says.
        x: horizontal scale; its ends are set here.
        y: vertical scale; its ends are set here.
        width: of the whole drawing, in SVG units (about one pixel).
        height: of the whole drawing.
        right: room for labels at the right.
        left: room for the tick labels.
    """

    title: str
    x: Scale
    y: Scale
    width: float = 960
    height: float = 340
    right: float = 176
    left: float = 58
    parts: list[Markup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.top, self.bottom = 22.0, self.height - 38
        self.x = Scale(self.x.lo, self.x.hi, self.left, self.width - self.right, self.x.log)
        self.y = Scale(self.y.lo, self.y.hi, self.bottom, self.top, self.y.log)

    def axes(
        self,
        x_label: str,
        y_text: Sequence[tuple[float, str]],
        y_label: str,
        x_text: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """Grid, tick labels and axis names.

        Args:
            x_label: name of the horizontal axis.
            y_text: values and what stands beside them.
            y_label: name of the vertical axis.
            x_text: values and what stands below them; whole numbers if None.
        """
        for value, text in y_text:
            at = self.y(value)
            self.add("line", class_="grid", x1=self.x.start, x2=self.x.end, y1=at, y2=at)
            self.add("text", text, class_="tick", x=self.left - 8, y=at + 4, text_anchor="end")
        if x_text is None:
            ticks = linear_ticks(self.x.lo, self.x.hi, max(2, int((self.x.end - self.x.start) / 70)))
            x_text = [(value, f"{value:.0f}") for value in ticks if value == round(value)]
        for value, text in x_text:
            at = self.x(value)
            self.add("text", text, class_="tick", x=at, y=self.bottom + 17, text_anchor="middle")
        self.add("line", class_="axis", x1=self.x.start, x2=self.x.end, y1=self.bottom, y2=self.bottom)
        middle = (self.x.start + self.x.end) / 2
        self.add("text", x_label, class_="name", x=middle, y=self.height - 4, text_anchor="middle")
        self.add("text", y_label, class_="name", x=2.0, y=12.0)

    def add(self, name: str, *children: str | Markup, **attributes: object) -> None:
        """Draw an element."""
        self.parts.append(node(name, *children, **attributes))

    def line(self, points: Sequence[Point], class_: str, title: str = "", *, dots: bool = False) -> None:
        """A line that breaks where y is None; lone points become dots."""
        runs: list[list[tuple[float, float]]] = [[]]
        for x, y in points:
            if y is None:
                runs.append([])
            else:
                runs[-1].append((self.x(x), self.y(y)))
        path = "".join("M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in run) for run in runs if len(run) > 1)
        about = [node("title", title)] if title else []
        if path:
            self.add("path", *about, class_=f"line {class_}", d=path)
        for run in runs:
            for x, y in run if dots or len(run) == 1 else ():
                self.add("circle", *about, class_=f"dot {class_}", cx=x, cy=y, r=3 if dots else 2.5)

    def band(self, rows: Sequence[tuple[float, float, float]], class_: str) -> None:
        """The area between (x, low, high) and the next."""
        if len(rows) == 1:  # an area needs two columns; one becomes a bar
            x, low, high = rows[0]
            at, top, height = self.x(x), self.y(high), self.y(low) - self.y(high)
            self.add("rect", class_=f"band {class_}", x=at - 6, y=top, width=12, height=height)
            return
        there = [f"{self.x(x):.1f},{self.y(high):.1f}" for x, _, high in rows]
        back = [f"{self.x(x):.1f},{self.y(low):.1f}" for x, low, _ in reversed(rows)]
        if rows:
            self.add("path", class_=f"band {class_}", d="M" + "L".join(there + back) + "Z")

    def hover(self, texts: Sequence[tuple[float, str]]) -> None:
        """Invisible columns, one per x, that show a text under the pointer."""
        xs = [self.x(x) for x, _ in texts]
        edges = [self.x.start, *((a + b) / 2 for a, b in pairwise(xs)), self.x.end]
        for i, (_, text) in enumerate(texts):
            width = edges[i + 1] - edges[i]
            about = node("title", text)
            height = self.bottom - self.top
            self.add("rect", about, class_="hover", x=edges[i], y=self.top, width=width, height=height)

    def labels(self, rows: Sequence[tuple[float, str, str]]) -> None:
        """Labels (y, text, class) in the right margin, moved apart, each tied to its value."""
        placed = spread([self.y(y) for y, _, _ in rows], 16, self.top + 4, self.bottom - 2)
        for (y, text, class_), at in zip(rows, placed, strict=True):
            end, value = self.x.end, self.y(y)
            tie = f"M{end + 2:.1f},{value:.1f}L{end + 14:.1f},{at:.1f}h4"
            self.add("path", class_=f"tie {class_}", d=tie)
            self.add("text", text, class_=f"label {class_}", x=end + 22, y=at + 4)

    def svg(self) -> Markup:
        """The drawing."""
        box = f"0 0 {self.width:.0f} {self.height:.0f}"
        about = node("title", self.title)
        return node("svg", about, *self.parts, viewBox=box, role="img", aria_label=self.title)
