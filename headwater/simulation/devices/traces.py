"""The CSV files of ``[simulation.devices]``: :func:`read_devices` and :func:`read_intervals`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headwater.config.devices import COLUMNS, SPEEDS, allowed
from headwater.data.files.csv_rows import read_delimited
from headwater.data.files.streams import open_data
from headwater.errors import DataError
from headwater.seeds.keys import Key
from headwater.simulation.devices.clock import micros

CLIENT = "client"
_INTERVALS = (CLIENT, "start_s", "end_s")


@dataclass(frozen=True)
class DeviceTrace:
    """A device trace.

    Args:
        by_client: the rows with a name.
        dealt: the rows of a file without column ``client``.
    """

    by_client: Mapping[str, Mapping[str, float]]
    dealt: tuple[Mapping[str, float], ...] = ()

    def has(self, column: str) -> bool:
        """Whether some row says so much of its client."""
        return any(column in row for row in (*self.by_client.values(), *self.dealt))

    def row(self, client: str, key: Key) -> Mapping[str, float]:
        """The client's row, or the one that is dealt to it; empty if the file does not name it."""
        if not self.dealt:
            return self.by_client.get(client, {})
        return self.dealt[int(key.child("trace").numpy().random() * len(self.dealt))]


def read_devices(path: Path, clients: Collection[str]) -> DeviceTrace:
    """Read a device trace: columns of :data:`~headwater.config.devices.COLUMNS`, and ``client``.

    An empty field is left to the table.

    Raises:
        DataError: an unknown column or client, a client twice, two speeds in a row, or a value out of range.
    """
    known, named = frozenset(clients), dict[str, Mapping[str, float]]()
    dealt: list[Mapping[str, float]] = []
    for who, fields in _rows(path, (CLIENT, *COLUMNS)):
        values = {name: _number(who, name, text) for name, text in fields.items() if name != CLIENT and text}
        if len(speeds := [name for name in SPEEDS if name in values]) > 1:
            raise DataError(who, expected="one speed", got=f"{speeds[0]} and {speeds[1]}")
        if CLIENT not in fields:
            dealt.append(values)
        else:
            named[_client(who, fields[CLIENT], known, named)] = values
    if not named and not dealt:
        raise DataError(str(path), expected="a row for each device", got="none")
    return DeviceTrace(named, tuple(dealt))


def read_intervals(
    path: Path, clients: Collection[str], repeat_s: float | None = None
) -> dict[str, tuple[int, ...]]:
    """Read an availability trace: ``client,start_s,end_s``, seconds since the run began.

    Args:
        path: the file.
        clients: of the federation.
        repeat_s: when it begins anew.

    Returns:
        By client, microseconds at which it comes online, goes, and so on, ascending; touching ones are one.

    Raises:
        DataError: an unknown column or client, a value out of range, an end that is not after its start, or
            a start that comes never, as the file begins anew before.
    """
    known, found = frozenset(clients), dict[str, list[tuple[int, int]]]()
    for who, fields in _rows(path, _INTERVALS, required=_INTERVALS):
        client = _client(who, fields[CLIENT], known, ())
        start, end = (_number(who, name, fields[name]) for name in _INTERVALS[1:])
        if micros(end) <= micros(start):
            raise DataError(who, expected=f"an end_s after start_s {start:g}", got=f"{end:g}")
        if repeat_s is not None and start >= repeat_s:
            expected = f"a start_s below availability.repeat_s {repeat_s:g}, at which the file begins anew"
            raise DataError(who, expected=expected, got=f"{start:g}", hint="Mend the row, or raise repeat_s.")
        found.setdefault(client, []).append((micros(start), micros(end)))
    return {client: _joined(rows) for client, rows in found.items()}


def _joined(rows: list[tuple[int, int]]) -> tuple[int, ...]:
    times: list[int] = []
    for start, end in sorted(rows):
        if times and start <= times[-1]:
            times[-1] = max(times[-1], end)
        else:
            times += [start, end]
    return tuple(times)


def _rows(
    path: Path, columns: tuple[str, ...], required: Collection[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its fields."""
    with open_data(path) as stream:
        for number, row in read_delimited(path, stream, ","):
            if isinstance(row, DataError):
                raise row
            fields = {name.strip(): str(text).strip() for name, text in row.items()}
            if len(fields) < len(row):
                names = ", ".join(f"'{name}'" for name in row)
                raise DataError(
                    f"{path}: header", expected="a header of unique column names", got=names[:200]
                )
            unknown = [name for name in fields if name not in columns]
            if unknown:
                close = difflib.get_close_matches(unknown[0], columns, 1)
                meant = f"Did you mean '{close[0]}'? " if close else ""
                raise DataError(
                    f"{path}: header",
                    expected=f"columns of {', '.join(columns)}",
                    got=", ".join(f"'{name}'" for name in unknown)[:200],
                    hint=f"{meant}Rename the column, or take it out.",
                )
            if missing := [name for name in required if name not in fields]:
                raise DataError(f"{path}: header", expected=f"a column '{missing[0]}'", got=", ".join(fields))
            yield f"{path}:{number}", fields


def _client(who: str, name: str, known: Collection[str], before: Collection[str]) -> str:
    if name not in known:
        raise DataError(
            f"{who}, {CLIENT}",
            expected="a client of the federation",
            got=repr(name[:80]),
            hint=f"Its clients are {', '.join(sorted(known)[:3])}{', …' if len(known) > 3 else ''}. Without "
            f"column '{CLIENT}' a device trace's rows are dealt to the clients.",
        )
    if name in before:
        raise DataError(f"{who}, {CLIENT}", expected="one row a client", got=f"{name!r} again")
    return name


def _number(who: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    expected = allowed(name)
    if not expected.holds(value):
        raise DataError(
            f"{who}, {name}",
            expected=str(expected),
            got=repr(text[:80]),
            hint="Mend the row, or take it out.",
        )
    return value
