"""Usage: how many bytes and seconds of work a day has cost its owner, across restarts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import write_atomically


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What one local day has cost: bytes of messages up and down, and seconds of the worker."""

    day: date
    bytes: int = 0
    work_s: float = 0.0


class Usage:
    """The day's counters in one file. A new local day starts at nothing.

    Raises:
        StorageError: the file is not one of ours, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._day = self._read()

    def _read(self) -> DayUsage | None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            day = DayUsage(
                date.fromisoformat(content["day"]), int(content["bytes"]), float(content["work_s"])
            )
            if day.bytes < 0 or not (math.isfinite(day.work_s) and day.work_s >= 0):
                raise ValueError("a negative count")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"usage file {self._path}",
                expected="the day's bytes and seconds of work",
                got=str(error)[:100],
                hint="Delete it: the day's counters then start again at nothing.",
            ) from None
        return day

    def today(self, now: datetime) -> DayUsage:
        """The counters of ``now``'s day."""
        if self._day is None or self._day.day != now.date():
            return DayUsage(now.date())
        return self._day

    def add(self, now: datetime, *, bytes: int = 0, work_s: float = 0.0) -> None:
        """Count more; on disk before it returns.

        Raises:
            StorageError: it could not be written; it is counted in this process all the same.
        """
        today = self.today(now)
        self._day = replace(today, bytes=today.bytes + bytes, work_s=today.work_s + work_s)
        content = {"day": today.day.isoformat(), "bytes": self._day.bytes, "work_s": self._day.work_s}
        write_atomically(self._path, json.dumps(content).encode())
