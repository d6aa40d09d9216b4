"""HeldStates: the global states that clients hold, by name, so that the server need not send them again.

A device keeps the last one and the one that it was made from. Of a simulation's clients all share what is
kept, and the oldest give way. What is lost or damaged is as if it had never been there: a client says that it
lacks it, and is sent all of it.
"""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path

from headwater.client.execution.global_state_file import held_from_bytes, held_to_pieces
from headwater.client.execution.record_file import RecordFile
from headwater.compression.since import name_of
from headwater.errors import StorageError
from headwater.files import write_atomically
from headwater.state import AdapterState, StateSpec

MOST = 64
"""States that are kept for all clients of a simulation together, as far as :data:`MOST_BYTES` go."""
MOST_BYTES = 1 << 26
_KIND = "state"
_SUFFIX = ".state"


class HeldStates(ABC):
    """States by :func:`~headwater.compression.since.name_of`."""

    @abstractmethod
    def get(self, name: str, spec: StateSpec) -> AdapterState | None:
        """The state of this name; None where it is not here, damaged, or of another spec."""

    @abstractmethod
    def put(self, state: AdapterState, sha256: str, base: str = "") -> None:
        """Keep a state, whole or not at all; one that is there is not written again.

        Args:
            state: a global state.
            sha256: its hash.
            base: the name of the one that it was made from, which stays: until it hears an answer, the
                server sends what was added to that one.

        Raises:
            StorageError: it could not be written; what was kept is intact.
        """


class StatesInMemory(HeldStates):
    """As long as the process lives."""

    def __init__(self) -> None:
        self._states: dict[str, AdapterState] = {}

    def get(self, name: str, spec: StateSpec) -> AdapterState | None:  # noqa: D102 - inherited
        found = self._states.get(name)
        return found if found is not None and found.spec == spec else None

    def put(self, state: AdapterState, sha256: str, base: str = "") -> None:  # noqa: D102 - inherited
        self._states.setdefault(name_of(sha256), state)
        for name in list(self._states)[: -_most(state)]:
            if name != base:
                del self._states[name]


class StatesInFolder(HeldStates):
    """A file for each of the last two: the last one, and the one that it was made from.

    Args:
        folder: made when first written to.
        durable: also survive a power cut.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder, self._durable = folder, durable

    def get(self, name: str, spec: StateSpec) -> AdapterState | None:  # noqa: D102 - inherited
        try:
            return held_from_bytes((self._folder / f"{name}{_SUFFIX}").read_bytes(), spec)
        except OSError:  # as if there were none; a disk that is broken shows when it is written to
            return None

    def newest(self, spec: StateSpec) -> AdapterState | None:
        """The state that was sent last; None where none is kept.

        Raises:
            StorageError: it is damaged, or of another spec.
        """
        files = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        if not files:
            return None
        found = self.get(files[-1].stem, spec)
        if found is None:
            raise StorageError(
                f"reading {files[-1]}",
                expected="the global adapter that the server sent last",
                got="a damaged file, or one of another adapter",
                hint="Let the agent take part in another round: the server sends it again.",
            )
        return found

    def put(self, state: AdapterState, sha256: str, base: str = "") -> None:  # noqa: D102 - inherited
        path = self._folder / f"{name_of(sha256)}{_SUFFIX}"
        if self.get(path.stem, state.spec) is not None:
            with contextlib.suppress(OSError):  # it is the last one again
                self._make_newest(path)
            return
        write_atomically(path, *held_to_pieces(state, sha256), durable=self._durable)
        others = self._others(path)
        with contextlib.suppress(OSError):  # the next one tries again
            self._make_newest(path)
            last = max(others, key=lambda other: (other.stem == base, other.stat().st_mtime_ns), default=path)
            for other in others:
                if other != last:
                    other.unlink(missing_ok=True)

    def _others(self, path: Path) -> list[Path]:
        return [other for other in self._folder.glob(f"*{_SUFFIX}") if other != path]

    def _make_newest(self, path: Path) -> None:
        """Give ``path`` a time after all others': of files written within one tick all have the same."""
        times = [other.stat().st_mtime_ns for other in self._others(path)]
        now = max([time.time_ns(), *(then + 1 for then in times)])
        os.utime(path, ns=(now, now))


class SharedStates(HeldStates):
    """In the file of what a simulation's clients keep.

    Args:
        records: the file.
    """

    def __init__(self, records: RecordFile) -> None:
        self._records, self._kept = records, ""

    def get(self, name: str, spec: StateSpec) -> AdapterState | None:  # noqa: D102 - inherited
        try:
            with self._records.reading(name, _KIND) as record:
                return None if record is None else held_from_bytes(record.read(), spec)
        except StorageError:  # as if there were none
            return None

    def put(self, state: AdapterState, sha256: str, base: str = "") -> None:  # noqa: D102 - inherited
        name = name_of(sha256)
        if name != self._kept and self.get(name, state.spec) is None:
            self._records.put(name, _KIND, held_to_pieces(state, sha256))
            self._records.keep_newest(_KIND, _most(state))
        self._kept = name


def _most(state: AdapterState) -> int:
    return max(2, min(MOST, MOST_BYTES // max(1, state.spec.nbytes)))
