"""TensorBoard: scalars of every round, in event files that ``tensorboard --logdir RUN/tensorboard`` shows."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headwater.config.traits import TrackerTraits
from headwater.files import append_whole
from headwater.server.round_record import RoundRecord
from headwater.server.trackers.tracker import RunStart, RunTracker
from headwater.text import finite, plain


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


def scalars(record: RoundRecord) -> dict[str, float]:
    """What of a round is a number of the whole federation, by tag; nothing of single clients."""
    groups = {"test": record.test, "clients": record.pooled, "merge": record.merge, "gap": record.gap}
    found = {tag: value for group, numbers in groups.items() for tag, value in _numbers(group, numbers)}
    rows = record.clients.values()
    if rows:
        found["round/updates"] = float(sum(not row.failed for row in rows))
        found["round/failures"] = float(sum(bool(row.failed) and not row.spared for row in rows))
    sizes = {"bytes_up": record.bytes.up, "bytes_down": record.bytes.down, "seconds": record.seconds}
    return found | {f"round/{name}": float(value) for name, value in sizes.items() if value is not None}


def _numbers(group: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in numbers.items():
        if name != "examples" and (known := finite(value)) is not None:
            yield f"{group}/{plain(name, 80)}", known
