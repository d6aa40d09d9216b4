"""SentLog: an owner's own record of the updates that its device sent, one line each.

It stays on the device. With it and a run's receipts the owner finds out whether an update is in an adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from headwater.errors import DecodeError
from headwater.files import append_line, each_line

SENT = "sent.jsonl"
"""In an agent's state folder."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One update.

    Args:
        client: the device's name.
        run: its id, as the device knows it.
        round: that it answered.
        sha256: of the signed reply.
        time: Unix seconds of the device.
    """

    client: str
    run: str
    round: int
    sha256: str
    time: int


class SentLog:
    """Appends. What was sent again with the same bytes is there once.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[str] | None = None

    def note(self, client: str, run: str, round: int, signed: bytes, time: float) -> None:
        """An update is about to leave.

        Raises:
            StorageError: it cannot be written.
        """
        if self._known is None:
            self._known = {one.sha256 for one in read_sent(self._path)}
        digest = hashlib.sha256(signed).hexdigest()
        if digest not in self._known:
            row = asdict(Sent(client, run, round, digest, int(time)))
            append_line(self._path, json.dumps(row, separators=(",", ":")).encode())
            self._known.add(digest)


def read_sent(path: Path) -> Iterator[Sent]:
    """The updates in order; none without the file.

    Raises:
        DecodeError: a line has none.
        StorageError: the file cannot be read.
    """
    for number, line in enumerate(each_line(path), start=1):
        try:
            row = Sent(**json.loads(line))
            if not (isinstance(row.client, str) and type(row.round) is int and len(row.sha256) == 64):
                raise ValueError("another content")
        except (ValueError, TypeError, RecursionError) as error:
            raise DecodeError(
                f"{path} line {number}", expected="an update that was sent", got=str(error)[:80]
            ) from error
        yield row
