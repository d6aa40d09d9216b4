"""Retries: which failed clients are asked again, and when. No clock: time comes in with every call."""

from __future__ import annotations

LONGEST = 16
"""The back-off doubles from one ``retry_s`` to at most so many."""


class Retries:
    """The failed clients of one open round.

    Args:
        retry_s: seconds from a client's first failure to its next request; nobody is asked again if None.
    """

    def __init__(self, retry_s: float | None) -> None:
        self._retry_s = retry_s
        self._due_s: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def later(self, client: str, now_s: float) -> None:
        """The client failed at ``now_s``: ask it again after 1, 2, 4, 8, 16, 16, … times ``retry_s``."""
        if self._retry_s is None:
            return
        failures = self._failures.get(client, 0)
        self._failures[client] = failures + 1
        # the exponent is bounded too: a client may fail for weeks
        self._due_s[client] = now_s + self._retry_s * min(2 ** min(failures, LONGEST), LONGEST)

    def due(self, now_s: float) -> list[str]:
        """Take those whose time has come, the longest waiting first."""
        ready = sorted((due, client) for client, due in self._due_s.items() if due <= now_s)
        for _, client in ready:
            del self._due_s[client]
        return [client for _, client in ready]

    @property
    def next_s(self) -> float:
        """When the next one is due; infinity if none is."""
        return min(self._due_s.values(), default=float("inf"))

    def take(self, client: str) -> bool:
        """Take this client before its time has come too; False if it does not wait."""
        return self._due_s.pop(client, None) is not None

    def retime(self, retry_s: float | None, now_s: float) -> None:
        """Change ``retry_s`` at once: no client waits longer than the new one from now on."""
        self._retry_s = retry_s
        if retry_s is not None:
            self._due_s = {client: min(due, now_s + retry_s) for client, due in self._due_s.items()}

    def clear(self) -> None:
        """Cancel all retries."""
        self._due_s.clear()
