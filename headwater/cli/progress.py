"""What a run shows while it runs: :func:`make_observer`. No torch.

On a terminal two bars, one of rounds and one of the open round's clients; elsewhere a line per round.
Names and reasons come from clients: they are printed as plain text, never as markup, and without
control characters.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from headwater.cli.waits import Ticker, Waits
from headwater.config.data import lower_is_better
from headwater.server.events import (
    ClientDone,
    ClientFailed,
    Evaluating,
    Event,
    Notice,
    Observer,
    RoundEnded,
    RoundStarted,
    RunStarted,
)
from headwater.server.round_record import RoundRecord
from headwater.text import (
    human_bytes,
    human_seconds,
    name_some,
    number,
    plain,
)

MOST_FAILURES = 20
"""Failures of one round that are printed one by one; the others are counted."""


@contextmanager
def make_observer(
    console: Console,
    quiet: bool = False,
    *,
    errors: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Observer]:
    """An observer that shows a run's progress; bars end with the context.

    Args:
        console: where to; bars if it is a terminal, lines if not.
        quiet: only failures, and those to ``errors``.
        errors: standard error if absent.
        clock: seconds that only go forward.
    """
    if quiet:
        yield _Lines(errors or Console(stderr=True), clock, failures_only=True)
    elif console.is_terminal and not console.is_dumb_terminal:
        bar = BarColumn(bar_width=20 if console.width >= 100 else 8)
        with Progress(HeadColumn(), bar, TailColumn(), console=console) as progress:
            bars = _Bars(console, clock, progress)
            try:
                with Ticker(bars.tick):
                    yield bars
            finally:
                bars.close()
    else:
        lines = _Lines(console, clock)
        with Ticker(lines.tick):
            yield lines


@dataclass
class _Watch:
    """What the events add up to. Events may come from one thread at a time."""

    clock: Callable[[], float]
    rounds: int | None = None
    done: int = 0
    open: int | None = None
    clients: int = 0
    ok: int = 0
    failed: int = 0
    up: float = 0
    down: float = 0
    metric: str = ""
    value: float = math.nan
    best: float = math.nan
    started: float = 0.0
    first: int = 0
    by_round: dict[int, int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.rounds, self.done, self.first = event.rounds, event.done, event.done
                if event.done:  # a resumed run
                    self.best, self.up, self.down = event.best, event.bytes_up, event.bytes_down
                self.started = self.clock()
            case RoundStarted():
                self.open, self.clients, self.ok, self.failed = event.round, event.clients, 0, 0
            case ClientDone():
                self.ok += 1
            case ClientFailed():
                self.failed += event.round == self.open  # not a late reply, not an evaluation's
                self.by_round[event.round] = self.by_round.get(event.round, 0) + 1
            case Evaluating():
                self.open = None
            case RoundEnded():
                self._end(event)
            case _:
                pass

    def _end(self, event: RoundEnded) -> None:
        self.done, self.metric = event.round, plain(event.metric)
        self.value = event.value
        self.up += event.record.bytes.up or 0
        self.down += event.record.bytes.down or 0
        if math.isfinite(event.value):
            lower = lower_is_better(event.metric)
            better = event.value < self.best if lower else event.value > self.best
            if better or math.isnan(self.best):
                self.best = event.value

    @property
    def eta(self) -> str:
        """Time left at the pace of this session's rounds; nothing before the first and after the last."""
        rounds = self.done - self.first
        if self.rounds is None or rounds < 1 or self.done >= self.rounds:
            return ""
        left = (self.rounds - self.done) * (self.clock() - self.started) / rounds
        return f"ETA {human_seconds(left)}"

    @property
    def score(self) -> str:
        """Metric and best value."""
        known = "" if math.isnan(self.best) else f" (best {number(self.best)})"
        if math.isfinite(self.value):
            return f"{self.metric} {number(self.value)}{known}"
        return f"not evaluated{known}"


class _Lines:
    """One line per round, one per failure."""

    def __init__(self, console: Console, clock: Callable[[], float], *, failures_only: bool = False) -> None:
        self._console, self._quiet, self._watch = console, failures_only, _Watch(clock)
        self._waits, self._lock = Waits(time.monotonic), threading.RLock()

    def __call__(self, event: Event) -> None:
        """Take an event, from any thread."""
        with self._lock:
            self._show(event)

    def tick(self) -> None:
        """Tell for whom the run waits, if it has waited long enough."""
        with self._lock:
            if text := self._waits.due():
                self._say(text)

    def _show(self, event: Event) -> None:
        self._watch.take(event)
        self._waits.take(event)
        match event:
            case ClientFailed():
                if self._watch.by_round[event.round] <= MOST_FAILURES:
                    self._say(_failure(event))
            case RoundEnded():
                more = self._watch.by_round.pop(event.round, 0) - MOST_FAILURES
                if more > 0:
                    self._say(f"round {event.round}: and {more:,} more failures")
                if not self._quiet:
                    self._ended(event)
            case Notice() if not self._quiet:
                self._say(plain(event.text, 500))
            case _:
                pass

    def _ended(self, event: RoundEnded) -> None:
        watch = self._watch
        of = "" if watch.rounds is None else f"/{watch.rounds}"
        parts = [
            f"round {event.round}{of}",
            _taken(event.record),
            f"up {human_bytes(event.record.bytes.up)}",
            f"down {human_bytes(event.record.bytes.down)}",
            watch.score,
            human_seconds(event.record.seconds),
            watch.eta,
        ]
        self._say("  ".join(p for p in parts if p))

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True, highlight=False)


class _Bars(_Lines):
    """Two bars, and lines above them for failures and notices."""

    def __init__(self, console: Console, clock: Callable[[], float], progress: Progress) -> None:
        super().__init__(console, clock)
        self._progress, self._waited, self._tail = progress, False, ""
        self._rounds: TaskID = progress.add_task("rounds", total=None, head="rounds", tail="")
        self._clients: TaskID = progress.add_task("clients", total=None, visible=False, head="", tail="")

    def tick(self) -> None:
        """Keep the wait beside the clients' bar."""
        with self._lock:
            text = self._waits.now()
            if text or self._waited:
                self._progress.update(self._clients, tail=text or self._tail, visible=True)
            self._waited = bool(text)

    def _show(self, event: Event) -> None:
        super()._show(event)
        watch, progress = self._watch, self._progress
        of = "" if watch.rounds is None else f"/{watch.rounds}"
        tail = [watch.score if watch.metric else "", watch.eta]
        if watch.up or watch.down:
            tail.append(f"↑{human_bytes(watch.up)} ↓{human_bytes(watch.down)}")
        progress.update(
            self._rounds, total=watch.rounds, completed=watch.done,
            head=f"rounds {watch.done}{of}", tail="  ".join(t for t in tail if t),
        )  # fmt: skip
        match event:
            case RoundStarted() | ClientDone() | ClientFailed():
                if watch.clients:
                    self._tail = failed = f"{watch.failed:,} failed" if watch.failed else ""
                    gone = min(watch.ok + watch.failed, watch.clients)
                    progress.update(
                        self._clients, total=watch.clients, completed=gone, visible=True,
                        head=f"clients {gone:,}/{watch.clients:,}", tail=failed,
                    )  # fmt: skip
            case Evaluating():
                progress.update(self._clients, tail=f"evaluating round {event.round}", visible=True)
            case RoundEnded():
                progress.update(self._clients, visible=False)
            case _:
                pass

    def _ended(self, event: RoundEnded) -> None:
        """The bars say it."""

    def close(self) -> None:
        """Leave only the bar of rounds on the screen."""
        self._progress.remove_task(self._clients)


class HeadColumn(ProgressColumn):
    """What a bar counts, at least as wide as its neighbour's."""

    def render(self, task: Task) -> Text:  # noqa: D102 - inherited
        return Text(f"{task.fields['head']:<13}", no_wrap=True)


class TailColumn(ProgressColumn):
    """What stands behind a bar, cut at the edge of the screen."""

    def render(self, task: Task) -> Text:  # noqa: D102 - inherited
        return Text(task.fields["tail"], no_wrap=True, overflow="ellipsis")


def _failure(event: ClientFailed) -> str:
    who, reason = plain(event.client, 80), plain(event.reason, 500)
    named = "" if reason.startswith(f"client {who}") else f"client {who}: "
    return f"round {event.round}: failed: {named}{reason}"


def _taken(record: RoundRecord) -> str:
    """How many of the round's clients answered; nothing for the round before training."""
    rows = record.clients
    failed = [plain(name, 80) for name, row in sorted(rows.items()) if row.failed and not row.spared]
    spared = sum(row.spared for row in rows.values())
    names = f": {name_some(failed)}" if failed else ""
    rest = f", {spared} not needed" if spared else ""
    done = len(rows) - len(failed) - spared
    return f"clients {done}/{len(rows)} ({len(failed)} failed{names}{rest})" if rows else ""
