"""Refusals: what was refused, by reason, without letting a flood of it take memory or attention."""

from __future__ import annotations

from collections import Counter, OrderedDict

MOST_REASONS = 64
"""Reasons that are counted apart; the others are counted together, as ``other``."""
TELL_EVERY_S = 60.0
"""Refusals of one kind are told at most so often: a flood must not push out what matters."""


class Refusals:
    """Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._told: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def add(self, reason: str, client: str, count: int, now: float) -> tuple[str, int]:
        """Count; give the reason as it is kept, and how many to tell of now (0: none yet)."""
        if reason not in self.counts and len(self.counts) >= MOST_REASONS:
            reason = "other"
        self.counts[reason] += count
        told, untold = self._told.pop((reason, client), (-TELL_EVERY_S, 0))
        untold += count
        quiet = 0 <= now - told < TELL_EVERY_S
        self._told[reason, client] = (told, untold) if quiet else (now, 0)
        if len(self._told) > 4 * MOST_REASONS:
            self._told.popitem(last=False)
        return reason, 0 if quiet else untold
