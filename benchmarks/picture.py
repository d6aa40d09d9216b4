"""bars: a horizontal bar chart as SVG, one bar per row, a dot per repetition."""

from __future__ import annotations

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
