"""TensorBoard: scalars of every round, in event files that ``tensorboard --logdir RUN/tensorboard`` shows."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

from headwater.config.traits import TrackerTraits
from headwater.files import append_whole
from headwater.server.round_record import RoundRecord
from headwater.server.trackers.numbers import scalars
from headwater.server.trackers.tracker import RunStart, RunTracker


class TensorBoard(RunTracker):
    """Each round is on disk when :meth:`round` returns, whole or not at all.

    TensorBoard's own writer has a thread of its own that keeps what a full disk did not take; here its record
    format is written at once.
    """

    def __init__(self, settings: TrackerTraits, folder: Path) -> None:
        super().__init__(settings, folder)
        # Readers take files in the order of their names: a restart within a second comes after its start.
        self._file = folder / f"events.out.tfevents.{time.time_ns():019d}.headwater.{os.getpid()}"

    def start(self, run: RunStart) -> None:
        """Begin a file. What an earlier one has of the rounds that come again is not shown."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # an extra

        again = SessionLog(status=SessionLog.START)
        self._write(
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=run.first, session_log=again),
        )

    def round(self, record: RoundRecord) -> None:
        """Its scalars, with the round as the step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record).items()]
        self._write(Event(wall_time=time.time(), step=record.round, summary=Summary(value=values)))

    def _write(self, *events: Any) -> None:  # noqa: ANN401 - tensorboard has no types
        """Append all of them, or none.

        Raises:
            OSError: the disk is full or not writable.
        """
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        self.folder.mkdir(parents=True, exist_ok=True)
        append_whole(self._file, buffer.getvalue())
