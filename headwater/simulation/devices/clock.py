"""VirtualClock: simulated time, which goes from one event to the next while a round waits."""

from __future__ import annotations

import math
from collections.abc import Callable

from headwater.errors import FederationStopped

NEVER = 2**51
"""A time that does not come, after 71 years: seconds as floats tell all microseconds before it apart."""
MOST_WAITS = 200_000
"""So many deadlines and pauses on end in which nothing happens: more, and a run would hardly end."""


def micros(seconds: float) -> int:
    """Seconds as whole microseconds; :data:`NEVER` beyond what these can count."""
    found = seconds * 1e6
    return min(NEVER, round(found)) if math.isfinite(found) else NEVER


def seconds(micros: int) -> float:
    """Whole microseconds as seconds; infinity for :data:`NEVER`."""
    return math.inf if micros >= NEVER else micros / 1e6


class VirtualClock:
    """Microseconds since the run began. They pass only in :meth:`sleep` and :meth:`elapse`.

    Args:
        now: where it begins, as in a run that goes on.
    """

    def __init__(self, now: int = 0) -> None:
        self._now, self._waits = now, 0
        self._sources: list[Callable[[int], int]] = []

    @property
    def now(self) -> int:
        """Microseconds."""
        return self._now

    def __call__(self) -> float:
        """Seconds, as :class:`~headwater.server.clients.run_control.RunControl` asks for them."""
        return self._now / 1e6

    def watch(self, source: Callable[[int], int]) -> None:
        """Ask ``source(limit)`` for its next event after now; any later time if that is after ``limit``."""
        self._sources.append(source)

    def elapse(self, micros: int) -> None:
        """Let so much time pass, whatever happens meanwhile."""
        self._now += max(0, micros)

    def sleep(self, until_s: float) -> None:
        """Go to the next event, or to ``until_s`` if nothing happens before; a time that has come counts not.

        Raises:
            FederationStopped: nothing will ever happen, or so often nothing did.
        """
        until = micros(until_s)
        if until < NEVER and until / 1e6 < until_s:
            until += 1
        upcoming = first = until if until > self._now else NEVER
        for source in self._sources:
            upcoming = min(upcoming, source(upcoming))
        if upcoming >= NEVER:
            raise FederationStopped(
                "simulated time",
                expected="clients that are at work, or come online",
                got=f"none after {self._now / 1e6:g} s",
                hint="Look at the speeds, links and availability of simulation.devices, or lower "
                "cohort.min_clients. Time ends after 71 years.",
            )
        self._waits = self._waits + 1 if upcoming == first else 0
        if self._waits > MOST_WAITS:
            raise FederationStopped(
                "simulated time",
                expected=f"something within {MOST_WAITS:,} deadlines",
                got=f"nothing up to {self._now / 1e6:g} s",
                hint="Raise cohort.deadline_s or cohort.retry_s: what devices do takes far longer.",
            )
        assert upcoming > self._now, "an event after now, or the clock would stand still"
        self._now = upcoming
