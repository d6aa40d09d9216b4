"""RoundRows: a run's ``rounds.jsonl`` as at most :data:`MOST_ROWS` rows for a chart, however long it is.

The file is read once; later calls read what was added. Of a long run every k-th round is kept (k a power of
two), always with the last round and the best one of each metric, so memory does not grow with rounds.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
from pathlib import Path
from typing import Any, BinaryIO

from headwater.config.data import lower_is_better
from headwater.server.round_record import RoundRecord
from headwater.text import finite

MOST_ROWS = 500
_MOST_METRICS = 8
_KEPT = MOST_ROWS - _MOST_METRICS - 2
_MOST_LINE = 64_000_000
TRAINING_LOSS = "training loss"
Row = dict[str, Any]


class RoundRows:
    """Thread-safe.

    Args:
        path: the file; it may not exist yet, and may be replaced by a shorter one (a resumed run).
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._lower: dict[str, bool] = {TRAINING_LOSS: True}  # by metric: whether less is better
        self._forget(-1)

    def _forget(self, inode: int) -> None:
        self._inode, self._offset, self._every, self._count = inode, 0, 1, 0
        self._rows: list[Row] = []
        self._last: Row | None = None
        self._best: dict[str, Row] = {}

    def rounds(self, after: int = -1) -> tuple[int, list[Row]]:
        """k, and the rows of rounds after ``after``, in order.

        A row has ``round``, ``up``, ``down`` (bytes), ``states`` (how they travelled down, in words),
        ``seconds``, ``asked``, ``accepted`` and ``metrics``, values by name: of the test file where there is
        one, else of the clients together.
        """
        with self._lock:
            self._read()
            extra = [*self._best.values(), *([self._last] if self._last else [])]
            every = {row["round"]: row for row in [*self._rows, *extra]}
            return self._every, [every[number] for number in sorted(every) if number > after]

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._inode or about.st_size < self._offset:
                    self._forget(about.st_ino)
                file.seek(self._offset)
                self._take_lines(file)
        except FileNotFoundError:
            self._forget(-1)

    def _take_lines(self, file: BinaryIO) -> None:
        while (line := file.readline(_MOST_LINE)).endswith(b"\n"):  # a torn last line is read again later
            self._offset += len(line)
            try:
                record = RoundRecord.read(line)
            except ValueError:
                continue
            self._add(_row(record))

    def _add(self, row: Row) -> None:
        self._last = row
        for name, value in row["metrics"].items():
            old = self._best.get(name)
            if old is None and len(self._best) >= _MOST_METRICS:
                continue
            if name not in self._lower:
                self._lower[name] = lower_is_better(name)
            lower = self._lower[name]
            if old is None or (value < old["metrics"][name] if lower else value > old["metrics"][name]):
                self._best[name] = row
        if self._count % self._every == 0:
            self._rows.append(row)
        self._count += 1
        if len(self._rows) > _KEPT:
            self._every *= 2
            self._rows = self._rows[::2]


def _row(record: RoundRecord) -> Row:
    clients = record.clients.values()
    losses = [loss for row in clients if (loss := row.number("loss")) is not None]
    measured = record.test or record.pooled
    metrics = {str(k): v for k in measured if k != "examples" and (v := finite(measured[k])) is not None}
    if losses:
        metrics[TRAINING_LOSS] = statistics.fmean(losses)
    return {
        "round": record.round,
        "up": record.bytes.up or 0,
        "down": record.bytes.down or 0,
        "states": record.states,
        "seconds": record.seconds or 0.0,
        "asked": len(clients),
        "accepted": sum(not row.failed for row in clients),
        "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
    }
