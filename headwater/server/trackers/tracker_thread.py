"""TrackerThread: one tracker, in a thread of its own that reads the rounds from disk.

``rounds.jsonl`` is the queue: however slow the tracker is, nothing is kept in memory for it, and no round is
dropped. The last round that it has taken stands in ``state/trackers/KIND.json``; a later start goes on there.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from headwater.config.traits import TrackerTraits
from headwater.errors import StorageError
from headwater.files import clear_temporaries, write_atomically
from headwater.server.round_record import RoundRecord
from headwater.server.trackers.table import tracker_of
from headwater.server.trackers.tracker import RunStart, RunTracker
from headwater.text import plain

TRIES = 3
"""So often a round is told that a tracker refuses for a reason of its own."""
MOST_BEHIND = 10
"""Rounds that a tracker may be behind before people are told."""
_PASSES = (OSError, StorageError)
"""What ends by itself one day, as a full disk does: the round waits for it."""


@dataclass(frozen=True, slots=True)
class TrackerReport:
    """How a tracker fared.

    Args:
        kind: its name.
        through: the last round that it has taken, or was refused for good; -1 for none.
        behind: rounds after it that have ended.
        passed_over: rounds that it refused for good.
        failures: how often each class of exception came.
        answered: whether it ended within the time it has.
    """

    kind: str
    through: int
    behind: int
    passed_over: int
    failures: Mapping[str, int]
    answered: bool

    def row(self) -> dict[str, Any]:
        """Its part of ``summary.json``."""
        missing = self.behind + self.passed_over
        return {"through": self.through, "missing": missing, "failures": dict(self.failures)}

    def sentences(self) -> list[str]:
        """What people should know of it; empty if all went well."""
        told = []
        if self.failures:
            many = ", ".join(f"{name} × {count}" for name, count in self.failures.items())
            told.append(f"tracker {self.kind} failed: {many}")
        if self.behind:
            late = "" if self.answered else ": it did not answer in time"
            after = f" after round {self.through}" if self.through >= 0 else ""
            rounds = f"{_rounds(self.behind)}{after}"
            told.append(f"tracker {self.kind} has not taken {rounds}{late}; a resume tells them again")
        elif not self.answered:
            told.append(f"tracker {self.kind} did not end in time")
        if self.passed_over:
            told.append(f"tracker {self.kind} refused {_rounds(self.passed_over)} for good")
        return told


def _rounds(number: int) -> str:
    return "1 round" if number == 1 else f"{number:,} rounds"


class TrackerThread:
    """Thread-safe. Nothing here waits for the tracker but :meth:`join`, and nothing raises.

    Args:
        settings: its ``[[trackers]]`` table.
        run: the run folder.
    """

    def __init__(self, settings: TrackerTraits, run: Path) -> None:
        self.kind = str(getattr(settings, "kind", ""))
        self._settings = settings
        self._folder = run / (settings.folder or f"trackers/{self.kind}")
        self._state = run / "state" / "trackers"
        self._news = threading.Condition()
        self._woken = self._ending = self._left = False
        self._summary: Mapping[str, Any] | None = None
        self._last = self._through = -1
        self._told: list[str] = []
        self._failures: Counter[str] = Counter()
        self._passed_over = self._tries = self._offset = 0
        self._pending: RoundRecord | None = None
        self._late_told = False
        self._tracker: RunTracker | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.kind}", daemon=True)

    # --- whoever runs the rounds ------------------------------------------------------------------

    def begin(self, start: RunStart, rounds: Path, taken: int) -> None:
        """Start the thread.

        Args:
            start: of the run; its ``first`` is found here.
            rounds: ``rounds.jsonl``.
            taken: the last round that it can have taken: a run may have gone back behind what it has.
        """
        clear_temporaries(self._state)
        self._through = min(self._cursor(), taken)
        self._start, self._rounds = replace(start, first=self._through + 1), rounds
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread to be had: the run goes on without it
            self._fail("start", error)

    def wake(self, last: int) -> None:
        """Rounds up to ``last`` are there for good."""
        with self._news:
            self._last, self._woken = max(last, self._last), True
            self._news.notify()
            if (behind := self._last - self._through) > MOST_BEHIND and not self._late_told:
                self._late_told = True
                self._told.append(f"tracker {self.kind} is {behind} rounds behind: the run does not wait")

    def news(self) -> list[str]:
        """What people are to be told since the last call."""
        with self._news:
            told, self._told = self._told, []
        return told

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """No round follows. ``summary`` is None where the run did not come to one."""
        with self._news:
            self._summary = copy.deepcopy(summary)
            self._ending = self._woken = True
            self._news.notify()

    def join(self, within_s: float) -> TrackerReport:
        """Wait until it has taken what is there, but no longer; whatever it does then, nobody hears of."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, within_s))
        with self._news:
            self._left = True
            return TrackerReport(
                self.kind,
                self._through,
                max(0, self._last - self._through),
                self._passed_over,
                dict(self._failures),
                not self._thread.is_alive(),
            )

    def _cursor(self) -> int:
        try:
            return int(json.loads((self._state / f"{self.kind}.json").read_text())["round"])
        except (OSError, ValueError, KeyError, TypeError):  # it is told all again
            return -1

    # --- the tracker's thread ---------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._woken)
                self._woken, ending = False, self._ending
            self._catch_up(ending)
            if ending:
                break
        if self._tracker is not None:
            if self._summary is not None and not self._left:
                self._try("end", partial(self._tracker.end, self._summary))
            self._try("close", self._tracker.close)

    def _catch_up(self, ending: bool) -> None:
        """Tell what is there; stop where the tracker refuses. At the end refused rounds are told at once."""
        if self._tracker is None and self._try("start", self._open) is not None:
            return
        assert self._tracker is not None
        while not self._left and (record := self._next()) is not None:
            error = self._try(f"round {record.round}", partial(self._tracker.round, record))
            if error is not None:
                self._tries += 1
                if isinstance(error, _PASSES) or (self._tries < TRIES and not ending):
                    return
                if self._tries < TRIES:
                    continue
            self._take(record, refused=error is not None)

    def _open(self) -> None:
        made = tracker_of(self._settings, self._folder)
        made.start(self._start)
        self._tracker = made

    def _take(self, record: RoundRecord, *, refused: bool) -> None:
        with self._news:
            self._through, self._pending, self._tries = record.round, None, 0
            self._passed_over += refused
        content = json.dumps({"round": record.round}).encode()
        with contextlib.suppress(StorageError):  # a later start tells the round again
            write_atomically(self._state / f"{self.kind}.json", content, durable=False)

    def _next(self) -> RoundRecord | None:
        """The next round that may be told; None if there is none yet."""
        if self._pending is None:
            try:
                self._pending = self._read()
            except FileNotFoundError:  # a run is told to have begun before its first line is there
                return None
            except OSError as error:
                self._fail("reading rounds.jsonl", error)
        return self._pending

    def _read(self) -> RoundRecord | None:
        with self._rounds.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                try:
                    record = RoundRecord.read(line)
                except ValueError:  # being written
                    return None
                if record.round > self._last:
                    return None  # it may be taken back
                self._offset += len(line)
                if record.round > self._through:
                    return record
        return None

    def _try(self, what: str, act: Callable[[], object]) -> BaseException | None:
        """What ``act`` raised, told; None if it did not."""
        try:
            act()
        except BaseException as error:  # a stranger's code may raise anything, such as SystemExit
            self._fail(what, error)
            return error
        return None

    def _fail(self, what: str, error: BaseException) -> None:
        """Count a failure; the first of its kind is told, with its traceback in the run folder."""
        kind = type(error).__name__
        with self._news:
            self._failures[kind] += 1
            if self._failures[kind] > 1 or self._left:
                return
            self._told.append(f"tracker {self.kind}, {what}: {kind}: {plain(error, 200)}")
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(StorageError):  # the sentence above is all that there is then
            write_atomically(self._state / f"{self.kind}-{kind}.txt", text.encode(), durable=False)
