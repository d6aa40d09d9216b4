"""Tracking: all trackers of one run, as an observer of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from headwater.config.federation import Federation
from headwater.config.traits import TrackerTraits
from headwater.server.events import Event, Notice, Observer, RoundEnded, RunStarted
from headwater.server.metrics import metric_name
from headwater.server.trackers.tracker import RunStart
from headwater.server.trackers.tracker_thread import TrackerReport, TrackerThread

DRAIN_S = 10.0
"""How long a run's end, however it comes, waits for all of its trackers together."""


class Tracking:
    """Use it as a context, and :meth:`observe` as the run's observer.

    Args:
        trackers: the ``[[trackers]]`` tables.
        run: the run's id.
        settings: of the federation.
        folder: the run folder.
        observer: is told everything, and of trackers what people should know.
    """

    def __init__(
        self,
        trackers: Sequence[TrackerTraits],
        run: str,
        settings: Federation,
        folder: Path,
        observer: Observer,
    ) -> None:
        self._observer, self._rounds = observer, folder / "rounds.jsonl"
        self._start = RunStart(run, settings, metric_name(settings), 0)
        self._threads = [TrackerThread(tracker, folder) for tracker in trackers]
        self._begun = self._ended = False

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = kind is not None and not issubclass(kind, Exception)  # a second Ctrl-C: nobody is waited for
        self._finish(None, 0.0 if now else DRAIN_S)

    def read_from(self, rounds: Path) -> None:
        """The run's ``rounds.jsonl`` is this one, not the run folder's."""
        self._rounds = rounds

    def observe(self, event: Event) -> None:
        """Pass the event on; where it ends a round, or goes on after one, the trackers hear of it."""
        self._observer(event)
        match event:
            case RunStarted():
                self._wake(event.done, taken=event.done)
            case RoundEnded():
                self._wake(event.round, taken=event.round - 1)
        self._tell()

    def end(self, summary: Mapping[str, Any]) -> list[TrackerReport]:
        """Hand the run's summary over, and wait for all of them, but at most :data:`DRAIN_S`.

        Returns:
            How each fared.
        """
        if not self._begun:  # a run that had ended before: what is left of it
            self._wake(int(summary["rounds"]), taken=int(summary["rounds"]))
        return self._finish(summary, DRAIN_S)

    def _wake(self, last: int, *, taken: int) -> None:
        for thread in self._threads:
            if not self._begun:
                thread.begin(self._start, self._rounds, taken)
            thread.wake(last)
        self._begun = True

    def _finish(self, summary: Mapping[str, Any] | None, within_s: float) -> list[TrackerReport]:
        if self._ended or not self._begun:
            return []
        self._ended = True
        ends_s = time.monotonic() + within_s
        for thread in self._threads:
            thread.end(summary)
        reports = [thread.join(ends_s - time.monotonic()) for thread in self._threads]
        self._tell()
        for text in [text for report in reports for text in report.sentences()]:
            self._observer(Notice(text))
        return reports

    def _tell(self) -> None:
        for thread in self._threads:
            for text in thread.news():
                self._observer(Notice(text))
