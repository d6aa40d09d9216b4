"""ConnectionKeeper: keeps a device's connection up for ever: activates, sends heartbeats, backs off."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from headwater.errors import ConnectionLost, HeadwaterError, Refused

HEARTBEAT_S = 10.0
LONGEST_S = 60.0
"""Of a pause between attempts, which are drawn from 0 to 1, 2, 4 … seconds (full jitter)."""
SOON_S = 3.0
"""After the first 403: a server whose clock was set names its new time with its next answers."""
ENDED_FOR_NOW = {
    403: (
        60.0,
        "the server does not let this device in, which is revoked or not yet accepted: give the organiser "
        "the line of `headwater client enroll`; "
        "if you were revoked, move state/keys away before, which makes new keys",
    ),
    409: (300.0, "another agent runs with this device's key: end one of them"),
    426: (300.0, "another version of headwater is needed"),
}
"""Refusals that only a person can end: how long to wait, and what the owner should know."""


def for_a_person(error: HeadwaterError) -> bool:
    """Whether the server refuses this device as a whole, until a person does something."""
    return isinstance(error, Refused) and error.status in ENDED_FOR_NOW


class Heartbeats(Protocol):
    """The part of a connection that :class:`ConnectionKeeper` uses."""

    def activate(self) -> None:
        """Activate this device at the server."""

    def heartbeat(self) -> None:
        """Send a heartbeat."""


class ConnectionKeeper:
    """Runs in a thread of its own, so that a training of an hour misses no heartbeat.

    Args:
        connection: to the server.
        say: takes a line for the owner's log.
        stop: ends it.
        connection_lock: held while the connection is used for anything but heartbeats, which only one
            thread may do.
        draw: uniform on (0, 1).
        heartbeat_s: between heartbeats.

    Attributes:
        up: set while the server knows that this device is there.
        state: one line for ``headwater client status``.
        again: Unix seconds of the next attempt; 0 while connected.
    """

    def __init__(
        self,
        connection: Heartbeats,
        say: Callable[[str], None],
        stop: threading.Event,
        connection_lock: threading.Lock,
        *,
        draw: Callable[[], float] = random.random,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._connection, self._say, self._stop, self._connection_lock = (
            connection,
            say,
            stop,
            connection_lock,
        )
        self._draw, self._heartbeat_s = draw, heartbeat_s
        self._wake, self._lock = threading.Event(), threading.Lock()
        self._failures = 0
        self._pause = 0.0
        self.up = threading.Event()
        self.state, self.again = "starting", 0.0

    def run(self, contact: Callable[[], None] = lambda: None) -> None:
        """Until stopped; ``contact`` is called after each answer of the server."""
        while not self._stop.is_set():
            self._wake.clear()
            try:
                if self.up.is_set():
                    self._connection.heartbeat()
                else:
                    self._wait(self._pause)
                    if self._stop.is_set():
                        return
                    with self._connection_lock:
                        self._connection.activate()
                    self._came_up()
                contact()
            except HeadwaterError as error:
                self._failed(error)
                continue
            self._wait(self._heartbeat_s)

    def lost(self, error: HeadwaterError) -> None:
        """Note that another thread found the connection broken: this one activates again."""
        if self.up.is_set():
            self._failed(error)
            self._wake.set()

    def _failed(self, error: HeadwaterError) -> None:
        """Try again, later each time."""
        with self._lock:
            self.up.clear()
            self._pause, why = self._judge(error)
            self._failures += 1
            line = f"{why}; trying again in {self._pause:.0f} s"
            self.again = time.time() + self._pause
            if why != self.state:  # the same reason once, not every minute for weeks
                self._say(line)
            self.state = why

    def wake(self) -> None:
        """End a pause: the agent is to stop."""
        self._wake.set()

    def _came_up(self) -> None:
        with self._lock:
            self._failures, self._pause, self.state, self.again = 0, 0.0, "connected", 0.0
            self.up.set()
        self._say("connected")

    def _judge(self, error: HeadwaterError) -> tuple[float, str]:
        if isinstance(error, Refused) and error.status in ENDED_FOR_NOW:
            seconds, meaning = ENDED_FOR_NOW[error.status]
            if error.status == 403 and self._failures == 0:
                seconds = SOON_S
            return seconds * (0.9 + 0.2 * self._draw()), f"{meaning} ({error})"
        longest = min(LONGEST_S, 2.0 ** min(self._failures, 10))
        kind = "no connection" if isinstance(error, ConnectionLost) else "the connection failed"
        return longest * self._draw(), f"{kind}: {error}"

    def _wait(self, seconds: float) -> None:
        if not self._stop.is_set():
            self._wake.wait(seconds)
