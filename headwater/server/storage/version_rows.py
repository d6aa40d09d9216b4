"""VersionRows: one row for each adapter version, for ever, and what they say of each other's descent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import append_line, read_lines, write_atomically
from headwater.protocol.control import AdapterRow
from headwater.server.storage.adapter_version_files import row_line, row_of

WITHOUT = "without "
"""A version's note begins so where a client left."""


class VersionRows:
    """The rows in ``versions.jsonl``. In memory is what they add up to, not the rows.

    Args:
        path: the file; absent means that there is no version yet.

    Attributes:
        last: the newest version's row.
        best: the best version; 0 where none was measured.

    Raises:
        StorageError: a row before the last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sum_up(self.read())

    @property
    def count(self) -> int:
        """How many versions there are, which is the newest one's number."""
        return 0 if self.last is None else self.last.version

    def read(self) -> Iterator[AdapterRow]:
        """All rows in order; ``kept`` is false.

        Raises:
            StorageError: a row is damaged.
        """
        for number, line in enumerate(read_lines(self._path), start=1):
            try:
                row = row_of(line)
                if row.version != number:
                    raise ValueError(f"version {row.version}")
            except (ValueError, TypeError, KeyError) as error:
                raise StorageError(
                    f"{self._path} line {number}",
                    expected=f"the row of version {number}",
                    got=f"a damaged line ({error})",
                    hint="Restore the file from a backup.",
                ) from error
            yield row

    def find(self, version: int) -> AdapterRow | None:
        """The row of a version, as :meth:`read` has it; None if there is no such version."""
        if not 1 <= version <= self.count:
            return None
        return next((row for row in self.read() if row.version == version), None)

    def append(self, row: AdapterRow) -> None:
        """Add the next version's row; it is on disk when this returns."""
        append_line(self._path, row_line(row))
        self._note(row)

    def cut(self, rows: list[AdapterRow]) -> None:
        """Keep only these rows, which are the first ones.

        Raises:
            StorageError: they could not be written; all are as before.
        """
        write_atomically(self._path, b"".join(row_line(row) + b"\n" for row in rows))
        self._sum_up(iter(rows))

    def descends_from(self, round: int) -> bool:
        """Whether the newest version was made, in however many steps, from one of this round.

        Not from those that a rollback gave up. Reads no file.
        """
        newest = self.count
        while newest:
            turn, parent = next((t for t in reversed(self._turns) if t[0] <= newest), (1, 0))
            if self._round_of(turn) <= round <= self._round_of(newest):
                return True
            newest = parent
        return False

    def _sum_up(self, rows: Iterator[AdapterRow]) -> None:
        self.last: AdapterRow | None = None
        self.best = 0
        self._turns: list[tuple[int, int]] = []  # of each rollback: its version, and its parent
        for row in rows:
            self._note(row)

    def _note(self, row: AdapterRow) -> None:
        if self.last is not None and row.round == self.last.round:  # only a rollback makes no new round
            self._turns.append((row.version, row.parent))
        self.last = row
        if row.note.startswith(WITHOUT):
            self.best = 0  # what was best may hold something of who left
        if row.best:
            self.best = row.version

    def _round_of(self, version: int) -> int:
        return version - 1 - sum(turn <= version for turn, _ in self._turns)
