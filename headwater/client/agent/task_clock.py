"""TaskClock: watches one task for its owner: counts its seconds, and ends it when the rules say so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from headwater.client.agent.setbacks import NotDone
from headwater.client.policy import Refusal

WORK_STEP_S = 10.0
"""How much work may be forgotten if the agent is killed in the middle of it."""


@dataclass(frozen=True)
class Clocks:
    """A device's clocks.

    Args:
        now: local time.
        elapsed: seconds that only grow.
    """

    now: Callable[[], datetime] = datetime.now
    elapsed: Callable[[], float] = time.monotonic


DEVICE = Clocks()


class AgentStopping(Exception):
    """The agent is to end now."""


class TaskClock:
    """Begins to count when it is made.

    Args:
        left_s: the task may take so long.
        rule: which ends it then.
        should_stop: whether the agent is to end.
        count: takes seconds of work for the day's count.
    """

    def __init__(
        self, left_s: float, rule: Refusal, should_stop: Callable[[], bool], count: Callable[[float], None]
    ) -> None:
        self._left_s, self._rule, self._should_stop, self._count = left_s, rule, should_stop, count
        self._started = self._counted = time.monotonic()

    def tick(self) -> None:
        """Called a few times a second.

        Raises:
            OwnerStops: the agent is to end.
            NotDone: the owner's hours, or work for today, are over.
        """
        if self._should_stop():
            raise AgentStopping
        now = time.monotonic()
        if now - self._started > self._left_s:
            raise NotDone(self._rule.failure, self._rule.text)
        if now - self._counted >= WORK_STEP_S:
            self.stop()

    def stop(self) -> None:
        """Add the seconds since the last call to today's usage."""
        now = time.monotonic()
        self._count(now - self._counted)
        self._counted = now
