"""A chart as a file of its own: :func:`alone`."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from headwater.server.report.page import template
from headwater.server.report.svg import Plot, node

_FONT = 'svg { font-family: system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }'
"""What a drawing has from the page where it is not alone."""


def alone(title: str, plots: Sequence[Plot]) -> str:
    """All plots, one below the other, as one SVG file with its own style sheet; empty where there is none."""
    if not plots:
        return ""
    height, parts = 0.0, []
    for plot in plots:
        parts.append(node("g", *plot.parts, transform=f"translate(0,{height:.0f})"))
        height += plot.height + 12
    css = template("report.css").render() + _FONT
    style = node("style", Markup(css.replace("&", "&amp;").replace("<", "&lt;")))
    back = node("rect", width="100%", height="100%", style="fill: var(--card)")
    about = node("title", title)
    box = f"0 0 {plots[0].width:.0f} {height:.0f}"
    drawing = node("svg", about, style, back, *parts, viewBox=box, xmlns="http://www.w3.org/2000/svg")
    return f"{drawing}\n"
