"""Data that grows with simulated time: :class:`Growth` of one client, :class:`GrowingData` of all.

How many rows a client has is counted when a round ends, and holds for the round that follows: its weight
there is planned with it. Whoever is at work keeps its number until it has answered, and whoever had none
gets its first rows as they come.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop

from headwater.simulation.devices.clock import NEVER, micros

_HOUR_US = 3_600e6


@dataclass(frozen=True, slots=True)
class Growth:
    """How a client comes by its training rows.

    Args:
        start: that it has at the start; all if None.
        per_hour: that it gets from then on.
    """

    start: float | None = None
    per_hour: float = 0.0

    def rows(self, most: int, now: int) -> int:
        """How many of ``most`` rows it has at ``now`` microseconds."""
        if self.start is None:
            return most
        return min(most, math.floor(self.start + self.per_hour * (now / _HOUR_US)))

    def first(self) -> int:
        """When it has its first row, if it ever has one."""
        if self.rows(1, 0):
            return 0
        if not self.per_hour or self.start is None:
            return NEVER
        when = micros((1 - self.start) * 3600 / self.per_hour)
        while when < NEVER and not self.rows(1, when):
            when += 1 + when // 2**50  # what rounding has taken away
        return when


class GrowingData:
    """How many training rows each client has now; nothing to say until :meth:`begin`.

    Args:
        growths: of the clients, by name.
    """

    def __init__(self, growths: Mapping[str, Growth]) -> None:
        self._growths = growths
        self._most: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._coming: list[tuple[int, str]] = []

    def begin(self, most: Mapping[str, int], now: int, held: Mapping[str, int]) -> None:
        """Count for the first time.

        Args:
            most: rows of each client's file.
            now: microseconds.
            held: what those who are at work were asked with.
        """
        self._most = dict(most)
        self._rows = {name: self._growths[name].rows(rows, now) for name, rows in most.items()} | dict(held)
        none = (name for name, rows in most.items() if rows and not self._rows[name])
        coming = ((self._growths[name].first(), name) for name in none)
        self._coming = [event for event in coming if event[0] < NEVER]
        heapify(self._coming)

    def rows(self, client: str) -> int | None:
        """How many it has; None for all, whatever they are."""
        found = self._rows.get(client)
        return None if found is None or found == self._most[client] else found

    def count(self, now: int, held: Collection[str]) -> None:
        """A round has ended: count anew, but for those who are at work."""
        for name, most in self._most.items():
            if name not in held:
                self._rows[name] = self._growths[name].rows(most, now)

    def come(self, now: int) -> list[str]:
        """Who has got its first rows since this was last asked."""
        found = []
        while self._coming and self._coming[0][0] <= now:
            _, name = heappop(self._coming)
            if not self._rows[name]:
                self._rows[name] = self._growths[name].rows(self._most[name], now)
            found.append(name)
        return found

    def next_change(self) -> int:
        """When the next client gets its first row."""
        return self._coming[0][0] if self._coming else NEVER

    def of(self, clients: Iterable[str]) -> dict[str, int]:
        """The number of each."""
        return {name: self._rows[name] for name in clients}
