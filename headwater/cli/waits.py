"""For whom a run waits, told while nothing happens: :class:`Waits`. No torch.

With one process that trains, the server itself cannot say so: it is what trains. So a thread looks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from headwater.server.events import (
    ClientAsked,
    ClientDone,
    ClientFailed,
    Evaluating,
    Event,
    RoundEnded,
    RoundStarted,
    RunStarted,
    Waiting,
    WaitingFor,
)
from headwater.text import human_seconds, name_some, plain

FIRST_LINE_S = 10.0
"""A wait is told when nothing was heard for so long, then at every doubling of that."""
MOST_S = 600.0
"""And at least so often."""


class Waits:
    """What the events say of who was asked and has not answered. Not thread-safe.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._out: dict[str, None] = {}  # in the order in which they were asked
        self._what = ""
        self._since_s = clock()
        self._next_s = FIRST_LINE_S

    def take(self, event: Event) -> None:
        """Something happened."""
        match event:
            case ClientAsked() if event.kind != "profile":
                self._what = "the evaluation" if event.kind == "evaluate" else "the update"
                self._out[event.client] = None
            case ClientDone() | ClientFailed():
                self._out.pop(event.client, None)
            case RoundStarted() | RoundEnded() | RunStarted() | Evaluating():
                self._out.clear()
            case WaitingFor() if event.clients:  # the same, as the server sees it: who has answered since
                self._out = dict.fromkeys(name for name, _ in event.clients)
                return
            case Waiting():
                self._out = dict.fromkeys(event.missing)
                self._what = "word"
            case _:
                return
        self._since_s, self._next_s = self._clock(), FIRST_LINE_S

    def now(self) -> str:
        """``waiting for the update of ben (12 s)``; empty before there is something to tell."""
        quiet_s = self._clock() - self._since_s
        if not self._out or quiet_s < FIRST_LINE_S:
            return ""
        names = name_some([plain(name, 80) for name in self._out])
        return f"waiting for {self._what} of {names} ({human_seconds(quiet_s)})"

    def due(self) -> str:
        """The same, where a line per wait is wanted and one is due; empty if not."""
        text, quiet_s = self.now(), self._clock() - self._since_s
        if not text or quiet_s < self._next_s:
            return ""
        self._next_s = quiet_s + min(max(quiet_s, FIRST_LINE_S), MOST_S)
        return text


class Ticker:
    """Calls ``tick`` every second in a thread, until the context ends."""

    def __init__(self, tick: Callable[[], None], every_s: float = 1.0) -> None:
        self._tick, self._every_s, self._ended = tick, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="progress")

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._tick()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(5)
