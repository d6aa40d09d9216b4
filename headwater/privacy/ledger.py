"""Ledger: the events of a run, on disk before what they tell of leaves the process. Spent is spent.

``privacy.jsonl`` in the run folder, one event a line, appended and synced. Nothing shortens it: neither a
rollback to an earlier adapter nor ``--resume`` nor other settings. A process that dies between the line and
the release has spent without telling anything, which is the safe side.
"""

from __future__ import annotations

from pathlib import Path

from headwater.files import append_line, read_lines
from headwater.privacy.events import Event, from_json, to_json


class Ledger:
    """The events of one run.

    Args:
        path: of the file; made with the first event.

    Attributes:
        path: the same.

    Raises:
        StorageError: a line that is no event, or a file that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = read_lines(path)  # a torn last one was never synced, so nothing of it was released
        self._events = [from_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]

    @property
    def events(self) -> tuple[Event, ...]:
        """All that was ever released, in order."""
        return tuple(self._events)

    def has(self, release: str) -> bool:
        """Whether the release with this id is in it."""
        return any(event.release == release for event in self._events)

    def append(self, event: Event) -> None:
        """Add an event; it is on disk when this returns. Release only then.

        Raises:
            StorageError: the disk is full or not writable: release nothing.
        """
        append_line(self.path, to_json(event))
        self._events.append(event)
