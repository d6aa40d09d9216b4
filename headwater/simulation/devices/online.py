"""When a device is online, and what it gets done: :class:`OnlineTimes`, by the day, by churn, by a trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from headwater.errors import FederationStopped
from headwater.simulation.devices.clock import NEVER, micros

DAY = 24 * 3600 * 1_000_000
MOST_CHANGES = 1_000_000
"""So often one device comes or goes in a run, or within one task; beyond, the run would not end."""


class OnlineTimes(ABC):
    """Times in microseconds since the run began."""

    @abstractmethod
    def online(self, now: int) -> bool:
        """Whether it is online from ``now`` on."""

    @abstractmethod
    def next_change(self, now: int) -> int:
        """The first time after ``now`` at which that is different."""

    def work(self, start: int, amount: int, *, resumes: bool) -> tuple[int, bool]:
        """When so much work is done that begins at ``start``, or as soon as the device is online then.

        Args:
            start: when.
            amount: of work, in microseconds.
            resumes: go on after an interruption.

        Returns:
            When it ends, and whether it is done: else it was interrupted then, or never begins.

        Raises:
            FederationStopped: it comes and goes too often.
        """
        now = start if self.online(start) else self.next_change(start)
        for _ in range(MOST_CHANGES):
            if now >= NEVER:
                return NEVER, False
            until = self.next_change(now)
            if now + amount <= until:
                return now + amount, True
            if not resumes:
                return until, False
            amount -= until - now
            now = self.next_change(until)
        raise _too_often(start)

    def time_online(self, start: int, end: int) -> int:
        """How much of the time from ``start`` to ``end`` it is online."""
        found, now = 0, start
        while now < end:
            until = min(end, self.next_change(now))
            found += until - now if self.online(now) else 0
            now = until
        return found


class Always(OnlineTimes):
    """Never offline."""

    def online(self, now: int) -> bool:  # noqa: D102 - inherited
        return True

    def next_change(self, now: int) -> int:  # noqa: D102 - inherited
        return NEVER


class Daily(OnlineTimes):
    """Once a day.

    Args:
        start: microseconds after midnight, which is when the run begins.
        length: microseconds.
    """

    def __init__(self, start: int, length: int) -> None:
        self._start, self._length = start % DAY, length

    def online(self, now: int) -> bool:  # noqa: D102 - inherited
        return (now - self._start) % DAY < self._length

    def next_change(self, now: int) -> int:  # noqa: D102 - inherited
        if not 0 < self._length < DAY:
            return NEVER
        phase = (now - self._start) % DAY
        return now + (self._length - phase if phase < self._length else DAY - phase)


class Changes(OnlineTimes):
    """By the times at which it comes or goes.

    Args:
        times: ascending; at the first it comes online, at the second it goes, and so on.
        repeat: they begin anew after so long; once only if None.
    """

    def __init__(self, times: Sequence[int], repeat: int | None = None) -> None:
        self._times, self._repeat = times, repeat

    def online(self, now: int) -> bool:  # noqa: D102 - inherited
        return bisect_right(self._times, now % self._repeat if self._repeat else now) % 2 == 1

    def next_change(self, now: int) -> int:  # noqa: D102 - inherited
        if not self._repeat:
            place = bisect_right(self._times, now)
            return self._times[place] if place < len(self._times) else NEVER
        if not self._times:
            return NEVER
        here, end, before = now, now + 2 * self._repeat, self.online(now)
        while here < end:  # one that comes as the file begins anew may be no change
            base = here - here % self._repeat
            place = bisect_right(self._times, here - base)
            upcoming = self._times[place] if place < len(self._times) else self._repeat
            here = base + min(upcoming, self._repeat)
            if self.online(here) != before:
                return here
        return NEVER


class Churning(OnlineTimes):
    """Exponential times online and offline by turns, drawn as far as somebody asks.

    Args:
        online_s: mean.
        offline_s: mean.
        generator: the client's own.
    """

    def __init__(self, online_s: float, offline_s: float, generator: np.random.Generator) -> None:
        self._means, self._generator = (offline_s, online_s), generator
        first = generator.random() * (online_s + offline_s) < online_s
        self._times = [-1] if first else [-2, -1]  # an odd number of changes: online

    def online(self, now: int) -> bool:  # noqa: D102 - inherited
        self._draw(now)
        return bisect_right(self._times, now) % 2 == 1

    def next_change(self, now: int) -> int:  # noqa: D102 - inherited
        self._draw(now)
        return self._times[bisect_right(self._times, now)]

    def _draw(self, now: int) -> None:
        while self._times[-1] <= now:
            if len(self._times) > MOST_CHANGES:
                raise _too_often(now)
            mean = self._means[len(self._times) % 2]
            length = max(1, micros(mean * self._generator.standard_exponential()))
            self._times.append(max(0, self._times[-1]) + length)


def _too_often(now: int) -> FederationStopped:
    return FederationStopped(
        "simulation.devices.availability",
        expected=f"a client that comes and goes at most {MOST_CHANGES:,} times",
        got=f"one that does so more often, at {now / 1e6:g} s",
        hint="Give it longer times online and offline, or shorter tasks.",
    )
