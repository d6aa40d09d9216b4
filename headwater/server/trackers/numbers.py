"""What of a round is a number of the whole federation: :func:`scalars`, :func:`quantiles`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headwater.server.round_record import RoundRecord
from headwater.text import finite, plain

LEAST_CLIENTS = 4
"""Of fewer, quartiles would be single clients' values."""
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_/-]")


def scalars(record: RoundRecord) -> dict[str, float]:
    """What of a round is a number of the whole federation, by tag; nothing of single clients."""
    groups = {"test": record.test, "clients": record.pooled, "merge": record.merge, "gap": record.gap}
    found = {tag: value for group, numbers in groups.items() for tag, value in _numbers(group, numbers)}
    rows = record.clients.values()
    if rows:
        found["round/updates"] = float(sum(not row.failed for row in rows))
        found["round/failures"] = float(sum(bool(row.failed) and not row.spared for row in rows))
    sizes = {"bytes_up": record.bytes.up, "bytes_down": record.bytes.down, "seconds": record.seconds}
    return found | {f"round/{name}": float(value) for name, value in sizes.items() if value is not None}


def quantiles(record: RoundRecord) -> dict[str, float]:
    """Quartiles over the clients, by tag: of their metrics, training losses, seconds and bytes sent.

    The method is the inclusive one, R's type 7. What fewer than :data:`LEAST_CLIENTS` have is left out.
    """
    found: dict[str, list[float]] = {}
    for row in record.each.values():
        _take(
            found, ((f"each/{plain(name, 80)}", value) for name, value in row.items() if name != "examples")
        )
    for client in record.clients.values():
        if not client.failed:
            names = ("loss", "seconds", "bytes_up")
            _take(found, ((f"each/training_{name}", client.number(name)) for name in names))
    return {
        f"{tag}/{name}": value
        for tag, values in found.items()
        if len(values) >= LEAST_CLIENTS
        for name, value in zip(("lower", "median", "upper"), _quartiles(values), strict=True)
    }


def by_name(record: RoundRecord) -> dict[str, float]:
    """Both, by names that every service takes: letters, digits, ``_``, ``-``, and ``/`` between parts."""
    return {allowed(tag): value for tag, value in (scalars(record) | quantiles(record)).items()}


def allowed(tag: str) -> str:
    """``tag`` as a name of :func:`by_name`, of at most 200 characters and without an empty part."""
    parts = (_NOT_ALLOWED.sub("_", part) or "_" for part in tag.split("/"))
    return "/".join(parts)[:200].rstrip("/")


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def _take(found: dict[str, list[float]], rows: Iterable[tuple[str, object]]) -> None:
    for tag, value in rows:
        if (known := finite(value)) is not None:
            found.setdefault(tag, []).append(known)


def _numbers(group: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in numbers.items():
        if name != "examples" and (known := finite(value)) is not None:
            yield f"{group}/{plain(name, 80)}", known
