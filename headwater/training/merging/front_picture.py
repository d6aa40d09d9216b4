"""front_svg(): a Pareto front as a picture, each objective against the next."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from headwater.merging.offline.rule import Floats

_SIDE, _MARGIN = 260, 60


def front_svg(
    losses: Floats, on_front: Sequence[int], chosen: int, mean: Floats, names: Sequence[str]
) -> str:
    """An SVG file.

    Args:
        losses: [n, objectives], of all candidates.
        on_front: rows that none beats.
        chosen: the row that is taken.
        mean: [objectives], of the adapters' mean.
        names: of the objectives.
    """
    pairs = [(k, k + 1) for k in range(len(names) - 1)] or [(0, 0)]
    width = len(pairs) * (_SIDE + 2 * _MARGIN)
    body = "".join(
        f'<g transform="translate({at * (_SIDE + 2 * _MARGIN) + _MARGIN},{_MARGIN // 2})">'
        f"{_panel(losses[:, pair], on_front, chosen, mean[list(pair)], [names[k] for k in pair])}</g>"
        for at, pair in enumerate(pairs)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_SIDE + 2 * _MARGIN}" '
        f'font-family="sans-serif" font-size="11">{body}</svg>\n'
    )


def _panel(losses: Floats, on_front: Sequence[int], chosen: int, mean: Floats, names: Sequence[str]) -> str:
    shown = np.concatenate([losses[on_front], mean[None]])
    low, high = shown.min(axis=0), shown.max(axis=0)
    span = np.where(high > low, high - low, 1.0)

    def place(point: Floats) -> tuple[float, float]:
        x, y = (point - low) / span
        return round(float(x) * _SIDE, 1), round((1 - float(y)) * _SIDE, 1)

    def dot(point: Floats, colour: str, size: int, title: str) -> str:
        x, y = place(point)
        values = ", ".join(f"{value:.4g}" for value in point)
        return (
            f'<circle cx="{x}" cy="{y}" r="{size}" fill="{colour}"><title>{title}: {values}</title></circle>'
        )

    inside = [point for point in losses if (point >= low).all() and (point <= high).all()]
    marks = [dot(point, "#bbb", 2, "candidate") for point in inside]
    marks += [dot(losses[i], "#2a6fdb", 4, "front") for i in on_front]
    marks += [dot(mean, "#d9822b", 5, "mean"), dot(losses[chosen], "#c22", 6, "taken")]
    frame = f'<rect width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#888"/>'
    bounds = (
        f'<text y="{_SIDE + 14}">{low[0]:.4g}</text>'
        f'<text x="{_SIDE}" y="{_SIDE + 14}" text-anchor="end">{high[0]:.4g}</text>'
        f'<text x="{_SIDE / 2}" y="{_SIDE + 32}" text-anchor="middle">loss on {escape(names[0])}</text>'
        f'<text x="-4" y="{_SIDE}" text-anchor="end">{low[1]:.4g}</text>'
        f'<text x="-4" y="10" text-anchor="end">{high[1]:.4g}</text>'
        f'<text x="0" y="-6">loss on {escape(names[1])}; red: taken, orange: the mean</text>'
    )
    return frame + bounds + "".join(marks)
