"""EventLog: the latest events, numbered, for any number of threads that wait for the next one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from headwater.protocol.control import WatchEvent
from headwater.text import plain

MOST_EVENTS = 2_000
MOST_AT_ONCE = 500
"""Events that one call of :meth:`EventLog.after` returns."""
MOST_ERRORS = 50
MOST_TEXT = 500
"""Characters kept of an event's text."""
_LEVELS = {"error": logging.ERROR, "refused": logging.WARNING, "notice": logging.WARNING}
_log = logging.getLogger("headwater.server")


class EventLog:
    """Bounded: :data:`MOST_EVENTS` events of at most about 1 KB.

    Apart from them :data:`MOST_ERRORS` errors of the daemon and as many failures of clients, so that
    neither pushes out the other.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._news = threading.Condition()
        self._last, self._closed = 0, False
        self._ring: deque[WatchEvent] = deque(maxlen=MOST_EVENTS)
        self._errors: deque[WatchEvent] = deque(maxlen=MOST_ERRORS)
        self._failures: deque[WatchEvent] = deque(maxlen=MOST_ERRORS)

    @property
    def last(self) -> int:
        """Number of the latest event; 0 before the first."""
        return self._last

    def add(self, kind: str, run: str, text: str, **data: str | int | float) -> None:
        """Number, keep and log an event. One of a client with ``failed`` in its data is a failure.

        Text and data may come from clients: they are cut, and lose control characters.
        """
        shown = {k: plain(v, 120) if isinstance(v, str) else v for k, v in data.items() if v != ""}
        text = plain(text, MOST_TEXT)
        with self._news:
            self._last += 1
            event = WatchEvent(self._last, self._clock(), kind, run, text, shown)
            self._ring.append(event)
            if kind == "error":
                self._errors.append(event)
            elif "failed" in shown:
                self._failures.append(event)
            self._news.notify_all()
        _log.log(logging.WARNING if "failed" in shown else _LEVELS.get(kind, logging.INFO), "%s", text)

    def after(self, seq: int, timeout_s: float = 0.0) -> list[WatchEvent]:
        """Events after ``seq``, oldest first, at most :data:`MOST_AT_ONCE`; waits for one if there is none.

        Args:
            seq: 0 or -1 means all; so does a number that was never given, as of an earlier daemon.
            timeout_s: how long to wait; the list is empty then.
        """
        with self._news:
            seq = max(seq, 0) if seq <= self._last else 0
            self._news.wait_for(lambda: self._closed or self._last > seq, timeout_s)
            skipped = max(seq - (self._last - len(self._ring)), 0)
            return list(islice(self._ring, skipped, skipped + MOST_AT_ONCE))

    def watch(self, after: int, ended: Callable[[], bool]) -> Iterator[WatchEvent]:
        """Events one by one; 0 means from now on, -1 all. Ends within a second of ``ended`` or closing."""
        after = after or self._last
        while not (self._closed or ended()):
            for event in self.after(after, 1.0):
                after = event.seq
                yield event

    def errors(self) -> tuple[WatchEvent, ...]:
        """The latest errors and failures, newest last."""
        with self._news:
            return tuple(sorted([*self._errors, *self._failures], key=lambda e: e.seq))

    def close(self) -> None:
        """End every wait."""
        with self._news:
            self._closed = True
            self._news.notify_all()
