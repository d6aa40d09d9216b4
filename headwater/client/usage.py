"""Usage: how many bytes and seconds of work a day has cost its owner, across restarts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import write_atomically


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What one local day has cost: bytes of messages up and down, and seconds of the worker.

    ``unknown``: more than that, nobody knows how much; every cap on the day counts as used up.
    """

    day: date
    bytes: int = 0
    work_s: float = 0.0
    unknown: bool = False


class Usage:
    """The day's counters in one file. A new local day starts at nothing.

    Args:
        path: the file.
        say: takes a line for the owner's log. With it a damaged file is set aside as ``*.damaged``, and
            what today has cost is unknown: who caps a day must not get it twice.
        now: local time.

    Raises:
        StorageError: the file is not one of ours, or cannot be read, and ``say`` is absent.
    """

    def __init__(
        self,
        path: Path,
        say: Callable[[str], None] | None = None,
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._path = path
        self._day: DayUsage | None
        try:
            self._day = self._read()
        except StorageError as error:
            if say is None:
                raise
            self._day = DayUsage(now().date(), unknown=True)
            say(f"{error.who} is damaged ({error.got}): the day's caps count as used up until midnight")
            self._set_aside(say)

    def _set_aside(self, say: Callable[[str], None]) -> None:
        """Copy, then replace: where either fails, the next start finds the damage again."""
        try:
            aside = self._path.with_name(self._path.name + ".damaged")
            write_atomically(aside, self._path.read_bytes())
            self._write()
        except (OSError, StorageError) as error:
            say(f"{self._path} could not be set aside: {error}")

    def _read(self) -> DayUsage | None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            day = DayUsage(
                date.fromisoformat(content["day"]),
                int(content["bytes"]),
                float(content["work_s"]),
                bool(content.get("unknown", False)),
            )
            if day.bytes < 0 or not (math.isfinite(day.work_s) and day.work_s >= 0):
                raise ValueError("a negative count")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StorageError(
                f"usage file {self._path}",
                expected="the day's bytes and seconds of work",
                got=str(error)[:100],
                hint="The agent sets it aside when it starts, and takes today's caps for used up.",
            ) from None
        return day

    def today(self, now: datetime) -> DayUsage:
        """The counters of ``now``'s day."""
        if self._day is None or self._day.day != now.date():
            return DayUsage(now.date())
        return self._day

    def add(self, now: datetime, *, bytes: int = 0, work_s: float = 0.0) -> None:
        """Add to the day's counters; they are on disk when this returns.

        Raises:
            StorageError: it could not be written; it is counted in this process all the same.
        """
        today = self.today(now)
        self._day = replace(today, bytes=today.bytes + bytes, work_s=today.work_s + work_s)
        self._write()

    def _write(self) -> None:
        day = self._day
        if day is not None:
            content = {"day": day.day.isoformat(), "bytes": day.bytes, "work_s": day.work_s}
            write_atomically(self._path, json.dumps(content | {"unknown": day.unknown}).encode())
