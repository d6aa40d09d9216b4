"""Numbers and hostile text as a person reads them. Shared by the report and the progress lines; no torch."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"
MOST_NAMED = 6
_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # scripts and emoji need them, and they reorder nothing


def plain(value: object, limit: int = 300) -> str:
    """``value`` as one line without control, surrogate or direction-changing characters.

    It says nothing about markup: HTML and terminals escape that themselves.
    """
    text = " ".join(str(value).split())
    return visible(text if len(text) <= limit else text[: limit - 1] + "…")


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many there are beside them."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def visible(text: str) -> str:
    """``text`` with every control, surrogate or direction-changing character replaced."""
    return "".join(
        c if c in _JOINERS or unicodedata.category(c) not in _HIDDEN else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def finite(value: object) -> float | None:
    """``value`` as a float that can be drawn and summed: 0 below 1e-30; None beyond 1e30 or if no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -1e30 <= value <= 1e30:  # NaN is not within either
        return None
    return 0.0 if abs(value) < 1e-30 else float(value)


def number(value: object) -> str:
    """Three decimals below 10, fewer above, exponents where that would lose it; – for no number."""
    known = finite(value)
    if known is None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            return NOTHING
        return "∞" if value > 0 else "−∞"
    size = abs(known)
    if size and (size < 5e-4 or size >= 1e7):
        mantissa, exponent = f"{known:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{known:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"
    return text.replace("-", "−")


def signed(value: object) -> str:
    """:func:`number` with its sign."""
    known = finite(value)
    return f"+{number(known)}" if known is not None and known > 0 else number(value)


def percent(value: object) -> str:
    """A fraction in percent; – for no number."""
    known = finite(value)
    return number(value) if known is None else f"{number(known * 100)} %"


def count(value: object) -> str:
    """An integer with thousands apart; – for no number."""
    known = finite(value)
    return NOTHING if known is None else f"{round(known):,}"


def human_bytes(value: object) -> str:
    """Bytes in decimal units with three digits: ``12.3 KB``; – for no number."""
    known = finite(value)
    if known is None:
        return NOTHING
    unit = 0
    while abs(known) >= 999.5 and unit < len(_UNITS) - 1:
        known, unit = known / 1000, unit + 1
    digits = 0 if not unit or abs(known) >= 99.95 else 1 if abs(known) >= 9.995 else 2
    return f"{known:.{digits}f} {_UNITS[unit]}"


def human_seconds(value: object) -> str:
    """Seconds as ``2.1 s``, ``3 min 20 s`` or ``2 h 05 min``; – for no number."""
    known = finite(value)
    if known is None or known < 0:
        return NOTHING
    if known < 99.95:
        return f"{known:.1f} s" if known < 9.95 else f"{known:.0f} s"
    minutes, seconds = divmod(round(known), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def human_joules(value: object) -> str:
    """Energy with three digits: ``12.3 kJ``; – for no number."""
    known = finite(value)
    if known is None:
        return NOTHING
    units, unit = ("J", "kJ", "MJ", "GJ", "TJ"), 0
    while abs(known) >= 999.5 and unit < len(units) - 1:
        known, unit = known / 1000, unit + 1
    digits = 0 if abs(known) >= 99.95 else 1 if abs(known) >= 9.995 else 2
    return f"{known:.{digits}f} {units[unit]}"


def times(more: object, less: object) -> str:
    """How many times ``less`` fits in ``more``: ``48×``; – where that is no number."""
    above, below = finite(more), finite(less)
    if above is None or not below or below < 0:
        return NOTHING
    ratio = above / below
    return f"{ratio:,.0f}×" if ratio >= 20 else f"{ratio:.1f}×"


def json_safe(content: Any) -> Any:  # noqa: ANN401 - JSON is any of six types, nested
    """``content`` with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(content, Mapping):
        return {key: json_safe(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [json_safe(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
