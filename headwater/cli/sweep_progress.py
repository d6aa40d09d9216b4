"""What a sweep shows while it runs: :func:`sweep_observer`.

On a terminal a bar of points, with the open point's round beside it; elsewhere a line a point. A point's
failures and notices are shown by its name; its rounds are in its run folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress
from rich.text import Text

from headwater.cli.progress import MOST_FAILURES, HeadColumn, TailColumn
from headwater.server.events import ClientFailed, RoundEnded
from headwater.simulation.sweeps.events import (
    PointEnded,
    PointFailed,
    PointStarted,
    PointTold,
    SweepEvent,
    SweepObserver,
    SweepStarted,
)
from headwater.text import human_bytes, human_seconds, number, plain


@contextmanager
def sweep_observer(
    console: Console, quiet: bool = False, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[SweepObserver]:
    """An observer that shows a sweep's progress; the bar ends with the context.

    Args:
        console: where to.
        quiet: only failures.
        clock: seconds that only go forward.
    """
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        yield _Shown(console, clock, quiet=quiet)
        return
    bar = BarColumn(bar_width=20 if console.width >= 100 else 8)
    with Progress(HeadColumn(), bar, TailColumn(), console=console) as progress:
        yield _Shown(console, clock, progress=progress)


class _Shown:
    def __init__(
        self,
        console: Console,
        clock: Callable[[], float],
        *,
        quiet: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._console, self._clock, self._quiet, self._progress = console, clock, quiet, progress
        self._bar = (
            None if progress is None else progress.add_task("points", total=None, head="points", tail="")
        )
        self._points = self._done = self._before = 0
        self._started, self._failures = clock(), 0

    def __call__(self, event: SweepEvent) -> None:
        """Take an event, from the thread that runs the sweep."""
        match event:
            case SweepStarted():
                self._points, self._done, self._before = event.points, event.done, event.done
                self._started = self._clock()
                if event.done and not self._quiet:
                    self._say(f"{event.done:,} of {event.points:,} points are done already")
                self._update("")
            case PointStarted():
                self._failures = 0
                self._update(plain(event.point.name, 60))
            case PointTold():
                self._told(event)
            case PointEnded():
                self._done += 1
                if not self._quiet:
                    self._ended(event)
                self._update("")
            case PointFailed():
                self._done += 1
                name = plain(event.point.name)
                self._say(
                    f"point {self._done:,}/{self._points:,}  {name}  failed: {plain(event.error, 1000)}"
                )
                self._update("")

    def _told(self, event: PointTold) -> None:
        match told := event.event:
            case ClientFailed():
                self._failures += 1
                if self._failures <= MOST_FAILURES:
                    name = plain(event.point.name)
                    self._say(f"{name}: round {told.round}: {plain(told.client, 80)}: {plain(told.reason)}")
            case RoundEnded():
                value = f"  {told.metric} {number(told.value)}" if math.isfinite(told.value) else ""
                self._update(f"{plain(event.point.name, 60)}  round {told.round}{value}")
            case _:
                pass

    def _ended(self, event: PointEnded) -> None:
        outcome = event.outcome
        parts = [
            f"point {self._done:,}/{self._points:,}",
            plain(event.point.name),
            number(outcome.value),
            f"up {human_bytes(outcome.bytes_up)}",
            human_seconds(event.seconds),
            self._eta(),
        ]
        self._say("  ".join(part for part in parts if part))

    def _eta(self) -> str:
        """Time left at the pace of this session's points."""
        here = self._done - self._before
        if not here or self._done >= self._points:
            return ""
        left = (self._points - self._done) * (self._clock() - self._started) / here
        return f"ETA {human_seconds(left)}"

    def _update(self, tail: str) -> None:
        if self._progress is None or self._bar is None:
            return
        head = f"points {self._done:,}/{self._points:,}"
        tail = "  ".join(part for part in (self._eta(), tail) if part)
        self._progress.update(self._bar, total=self._points, completed=self._done, head=head, tail=tail)

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True, highlight=False)
