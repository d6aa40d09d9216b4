"""RunControl: what everything that waits has in common: the time, a request to stop, and someone to tell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from headwater.server.clients.masking import Masking
from headwater.server.events import Observer

POLL_S = 0.02
"""Pause between two looks at the grid when nothing came."""


def _sleep(until_s: float) -> None:
    time.sleep(POLL_S)


@dataclass(frozen=True)
class RunControl:
    """What every wait for clients is given.

    Args:
        observer: is told what happens.
        should_stop: asked often; True ends the run after the open round.
        clock: seconds that only go forward.
        deadline_s: how long a wait for clients may take; for ever if None.
        interrupted: asked often; True ends the run now, in the middle of whatever it waits for.
        live_deadline: ``deadline_s`` as the organiser has it now, where that can change meanwhile.
        sleep: lets time pass when nothing came, at most until so many seconds on ``clock``.
        simulated: whether ``clock`` and ``sleep`` are a simulation's: nobody waits for them.
        masking: the devices' side of masked sums, where they are in this process: a simulation's.
    """

    observer: Observer
    should_stop: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    deadline_s: float | None = None
    interrupted: Callable[[], bool] = lambda: False
    live_deadline: Callable[[], float | None] | None = None
    sleep: Callable[[float], None] = _sleep
    simulated: bool = False
    masking: Masking | None = None

    def in_real_time(self) -> RunControl:
        """The same with this machine's clock: for what takes no simulated time."""
        if not self.simulated:
            return self
        return replace(self, clock=time.monotonic, sleep=_sleep, simulated=False)

    def stopwatch(self) -> float:
        """Seconds of real time, to tell how long something took."""
        return time.monotonic() if self.simulated else self.clock()

    def deadline(self) -> float | None:
        """How many seconds a wait for clients may take, by the settings that hold now; None for ever."""
        return self.deadline_s if self.live_deadline is None else self.live_deadline()

    def ends_s(self) -> float:
        """When a wait that begins now ends."""
        deadline_s = self.deadline()
        return math.inf if deadline_s is None else self.clock() + deadline_s

    def pause(self, until_s: float = math.inf) -> None:
        """Let time pass.

        Args:
            until_s: something is to be done then, on ``clock``, whatever comes.

        Raises:
            Interrupted: the run is to end now.
            FederationStopped: in simulated time, if nothing would ever happen.
        """
        self.check()
        self.sleep(until_s)

    def check(self) -> None:
        """Raise ``Interrupted`` if the run is to end now."""
        if self.interrupted():
            raise Interrupted


class Interrupted(Exception):
    """The run ends now; what it had accepted is on disk. Not an error: nobody did anything wrong."""
