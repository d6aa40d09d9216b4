"""LastSeen: when each client was last heard of, over restarts of the daemon; a file, written seldom."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import write_atomically

EVERY_S = 60.0
"""At most one write in so long, and one when the daemon ends."""
MOST_BYTES = 4 << 20
_LOG = logging.getLogger("headwater.server")


class LastSeen:
    """Thread-safe. A file that is damaged or cannot be written is told once and costs nothing but the times.

    Args:
        path: the file: Unix seconds by name, as JSON.
        clock: Unix seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._times = self._written = _load(path)
        self._wrote_s = clock()
        self._failed = False

    def age_s(self, client: str) -> float | None:
        """Seconds since the client was last heard of, before this start of the daemon; None if never."""
        with self._lock:
            at = self._times.get(client)
        return None if at is None else max(self._clock() - at, 0.0)

    def note(self, ages_s: Mapping[str, float], *, now: bool = False) -> None:
        """Take the ages of what was heard since the start; write them down if it is time, or ``now``.

        Args:
            ages_s: seconds since each client was heard of; those of clients that are enrolled no more are
                kept, as long as nobody has their name.
            now: write whatever the time.
        """
        clock = self._clock()
        with self._lock:
            if not now and 0 <= clock - self._wrote_s < EVERY_S:
                return
            self._wrote_s = clock
            self._times = {**self._times, **{name: round(clock - age, 3) for name, age in ages_s.items()}}
            if self._times == self._written:
                return
            try:
                write_atomically(self._path, json.dumps(dict(sorted(self._times.items())), indent=1).encode())
                self._written, self._failed = self._times, False
            except StorageError as error:
                if not self._failed:
                    _LOG.warning("%s When clients were last seen is not kept until that is mended.", error)
                self._failed = True


def _load(path: Path) -> dict[str, float]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(at) for name, at in found.items() if math.isfinite(float(at))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _LOG.warning("%s is not what was written (%s): when clients were last seen is not known", path, error)
        return {}
