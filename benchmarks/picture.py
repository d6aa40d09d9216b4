"""Pictures as SVG: :func:`bars`, one per row with a dot per repetition, and :func:`curve`, a line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

ROW, LEFT, WIDTH = 28, 150, 420


def bars(title: str, values: Mapping[str, Sequence[float]], unit: str = "") -> str:
    """The chart. Bars start at zero and show the mean; the longest is as wide as the picture."""
    top = max(max(v) for v in values.values()) or 1.0
    height = ROW * (len(values) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 110} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="20" font-weight="600">{escape(title)}</text>',
    ]
    for number, (name, samples) in enumerate(values.items()):
        y, mean = ROW * (number + 1.5), statistics.mean(samples)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 5}" text-anchor="end">{escape(name)}</text>')
        width = WIDTH * mean / top
        parts.append(f'<rect x="{LEFT}" y="{y - 9}" width="{width:.1f}" height="18" rx="2" fill="#7aa6c2"/>')
        dots = (LEFT + WIDTH * sample / top for sample in samples)
        parts += [f'<circle cx="{x:.1f}" cy="{y}" r="3" fill="#1f4e79"/>' for x in dots]
        shown = f"{mean:.3f}" if top < 10 else f"{mean:,.0f}"
        parts.append(f'<text x="{LEFT + WIDTH + 8}" y="{y + 5}">{shown}{escape(unit)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def curve(title: str, points: Sequence[tuple[float, float]], along: str) -> str:
    """A line from zero on both axes; the last value is written beside it."""
    left, bottom, height = 50, 30, 220
    right, top = max(x for x, _ in points) or 1.0, 1.1 * max(y for _, y in points) or 1.0
    low = height + 30

    def place(x: float, y: float) -> str:
        return f"{left + WIDTH * x / right:.1f},{low - height * y / top:.1f}"

    last_x, last_y = points[-1]
    x, y = place(last_x, last_y).split(",")
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + WIDTH + 70} {low + bottom}" '
                'font-family="system-ui, sans-serif" font-size="13" fill="#333">',
                '<rect width="100%" height="100%" fill="#fff"/>',
                f'<text x="8" y="20" font-weight="600">{escape(title)}</text>',
                f'<path d="M{left},{low - height} V{low} H{left + WIDTH}" fill="none" stroke="#999"/>',
                f'<text x="{left - 6}" y="{low}" text-anchor="end">0</text>',
                f'<text x="{left + WIDTH}" y="{low + 20}" text-anchor="end">'
                f"{right:,.0f} {escape(along)}</text>",
                f'<polyline points="{" ".join(place(*p) for p in points)}" fill="none" '
                'stroke="#1f4e79" stroke-width="2"/>',
                f'<text x="{float(x) + 6:.1f}" y="{float(y) + 5:.1f}">{last_y:,.0f}</text>',
                "</svg>",
            ]
        )
        + "\n"
    )


def curves(title: str, lines: Mapping[str, Sequence[float]]) -> str:
    """Lines over 1, 2, 3 …, both axes from zero to their largest; each line's name stands below."""
    left, bottom, height = 50, 26, 220
    right, top = max(len(v) for v in lines.values()), max(1e-9, *(max(v) for v in lines.values()))
    low, colours = height + 30, ("#1f4e79", "#c0504d", "#4f9153", "#8064a2", "#d08b2c")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + WIDTH + 70} '
        f'{low + bottom + 18 * len(lines)}" font-family="system-ui, sans-serif" font-size="13" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="20" font-weight="600">{escape(title)}</text>',
        f'<path d="M{left},{low - height} V{low} H{left + WIDTH}" fill="none" stroke="#999"/>',
        f'<text x="{left - 6}" y="{low - height + 5}" text-anchor="end">{top:.2f}</text>',
        f'<text x="{left - 6}" y="{low}" text-anchor="end">0</text>',
        f'<text x="{left + WIDTH}" y="{low + 18}" text-anchor="end">{right}</text>',
    ]
    for number, (name, values) in enumerate(lines.items()):
        colour, y = colours[number % len(colours)], low + bottom + 18 * number
        places = (
            f"{left + WIDTH * (i + 1) / right:.1f},{low - height * v / top:.1f}" for i, v in enumerate(values)
        )
        parts.append(
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{left}" y="{y}" fill="{colour}">{escape(name)}: {values[-1]:.3f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def scatter(title: str, points: Mapping[str, tuple[float, float]], along: str, up: str) -> str:
    """A dot with its name for each point, both axes logarithmic; a point with a 0 is left out."""
    shown = {name: (math.log10(x), math.log10(y)) for name, (x, y) in points.items() if x > 0 and y > 0}
    left, low, height, wide = 60, 420, 380, 640
    (least_x, most_x), (least_y, most_y) = ((min(v), max(v)) for v in zip(*shown.values(), strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 170} {low + 40}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="20" font-size="13" font-weight="600">{escape(title)}: {escape(up)}</text>',
        f'<path d="M{left},{low - height} V{low} H{left + wide}" fill="none" stroke="#999"/>',
        f'<text x="{left + wide}" y="{low + 30}" text-anchor="end">{escape(along)}, logarithmic</text>',
    ]
    for power in range(math.ceil(least_x), math.floor(most_x) + 1):
        x = left + wide * (power - least_x) / (most_x - least_x)
        parts.append(f'<text x="{x:.1f}" y="{low + 15}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(math.ceil(least_y), math.floor(most_y) + 1):
        y = low - height * (power - least_y) / (most_y - least_y)
        parts.append(f'<text x="{left - 6}" y="{y:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for name, (at_x, at_y) in shown.items():
        x = left + wide * (at_x - least_x) / (most_x - least_x)
        y = low - height * (at_y - least_y) / (most_y - least_y)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#1f4e79"/>')
        parts.append(f'<text x="{x + 5:.1f}" y="{y - 3:.1f}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
