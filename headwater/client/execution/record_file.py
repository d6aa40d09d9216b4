"""RecordFile: many clients' records in one SQLite file, each whole or absent.

A record is bytes under a client's name and a kind. It is kept in parts: none is too long for SQLite, and
neither writing nor reading needs more memory than a part beside what is written or read. A write is one
transaction: a process that is killed in it leaves the old record, and whoever opens the file next takes back
what was begun (SQLite's rollback journal). A power cut may damage the file (``synchronous=OFF``).

Several processes may have the file open; one at a time works for a client.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import make_folder

FORMAT = 1
"""SQLite's ``user_version`` in the file; another is refused."""
PART_BYTES = 1 << 24
"""Of a record, what one row holds."""
_APPLICATION = 0x48574B50
"""SQLite's ``application_id`` in the file: HWKP."""
_WAIT_S = 300.0
"""So long another process may hold the file; a write takes milliseconds."""
_PAGE_BYTES, _LONG_PAGE_BYTES = 16384, 65536
_LONG_RECORD = 4 * _LONG_PAGE_BYTES
"""From here on a file is made of long pages: 300 KB are written in half the time, in a tenth more room."""
_PRAGMAS = (
    "synchronous = OFF",
    "cache_size = -2048",
    "journal_mode = PERSIST",  # to make and remove its file takes as long as to write a record
)
_TABLE = (
    "CREATE TABLE kept (client TEXT NOT NULL, kind TEXT NOT NULL, part INTEGER NOT NULL, data BLOB NOT NULL, "
    "UNIQUE (client, kind, part))"
)
_PUT = (
    "INSERT INTO kept (client, kind, part, data) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (client, kind, part) DO UPDATE SET data = excluded.data"
)
_DROP_FROM = "DELETE FROM kept WHERE client = ? AND kind = ? AND part >= ?"
_DROP_OLDEST = (
    "DELETE FROM kept WHERE kind = ? AND client NOT IN "
    "(SELECT client FROM kept WHERE kind = ? AND part = 0 ORDER BY rowid DESC LIMIT ?)"
)
_FIND = "SELECT rowid FROM kept WHERE client = ? AND kind = ? ORDER BY part"


class RecordFile:
    """Records by client and kind. Making one touches no disk: the first :meth:`put` makes the file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def put(self, client: str, kind: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Replace a record: whole or not at all.

        Args:
            client: whose.
            kind: of what.
            pieces: the content, in any number of pieces.

        Raises:
            StorageError: the disk is full or not writable, or the file is damaged; the old record is intact.
        """
        size = sum(len(piece) for piece in pieces)
        try:
            make_folder(self.path.parent, durable=False)
            with _transaction(self._opened(size), "IMMEDIATE") as connection:
                count = 0
                for data in _parts(pieces):
                    connection.execute(_PUT, (client, kind, count, data))
                    count += 1
                connection.execute(_DROP_FROM, (client, kind, count))
        except (sqlite3.Error, OSError) as error:
            self.close()  # the next one begins anew, with what is on disk
            raise StorageError(
                f"writing {self.path}: {kind} of client {client}",
                expected=f"room for {size} bytes",
                got=self._why(error, size),
                hint="What was there before is intact; free space or fix the rights, then resume.",
            ) from error

    def keep_newest(self, kind: str, count: int) -> None:
        """Remove all records of this kind but the ``count`` made last; the next call does what fails.

        Args:
            kind: of what.
            count: how many stay.
        """
        with contextlib.suppress(sqlite3.Error, OSError), _transaction(self._opened(), "IMMEDIATE") as found:
            found.execute(_DROP_OLDEST, (kind, kind, count))

    @contextlib.contextmanager
    def reading(self, client: str, kind: str) -> Iterator[Record | None]:
        """The record, open; None without one. Only what is read of it is read from disk.

        Raises:
            StorageError: the file is damaged or cannot be read.
        """
        try:
            if self._connection is None and not self.path.exists():
                yield None
                return
            with _transaction(self._opened(), "DEFERRED") as connection:
                parts = [row for (row,) in connection.execute(_FIND, (client, kind))]
                with contextlib.closing(Record(connection, parts)) as record:
                    yield record if parts else None
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StorageError(
                f"reading {self.path}",
                expected=f"the {kind} of client {client}",
                got=self._why(error),
                hint="Fix the rights or the disk; without the file, what the clients held back is lost.",
            ) from error

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self, size: int = 0) -> sqlite3.Connection:
        """The connection to the file, which has its table.

        Args:
            size: of the record that comes next, whose pages a new file has.

        Raises:
            sqlite3.Error: the disk says no, or it is no such file.
            StorageError: it is of another format.
        """
        if self._connection is None:
            # one thread at a time: Ray has a new one for each call
            found = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                page = _LONG_PAGE_BYTES if size >= _LONG_RECORD else _PAGE_BYTES
                for pragma in (f"page_size = {page}", *_PRAGMAS):
                    found.execute(f"PRAGMA {pragma}")
                if _version(found) == (0, 0):
                    _make_table(found)
                self._require_format(*_version(found))
            except BaseException:
                found.close()
                raise
            self._connection = found
        return self._connection

    def _require_format(self, application: int, version: int) -> None:
        if (application, version) != (_APPLICATION, FORMAT):
            raise StorageError(
                f"{self.path}",
                expected=f"a clients' store of format {FORMAT}",
                got=f"one of format {version}" if application == _APPLICATION else "another database",
                hint="Go on with the version of Headwater that wrote it, or start a new run.",
            )

    def _why(self, error: Exception, size: int = 0) -> str:
        """What stands in the way; SQLite tells of what the kernel answered no more than that it refused."""
        if isinstance(error, OSError):
            return error.strerror or str(error)
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        if name == "SQLITE_FULL":
            return os.strerror(errno.ENOSPC)
        refused = os.strerror(errno.EISDIR) if self.path.is_dir() else None
        if not refused and name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")):
            refused = _refusal(self.path, size)
        return refused or f"{error} ({name})"


class Record:
    """A record that is read from its parts, in order.

    Args:
        connection: in a transaction.
        parts: their rows.
    """

    def __init__(self, connection: sqlite3.Connection, parts: Sequence[int]) -> None:
        self._connection, self._left = connection, list(parts)
        self._part: sqlite3.Blob | None = None

    def read(self, size: int = -1, /) -> bytes:
        """The next ``size`` bytes, fewer at the end; all that are left where it is negative."""
        pieces, left = list[bytes](), size
        while left and (self._part is not None or self._left):
            if self._part is None:
                self._part = self._connection.blobopen("kept", "data", self._left.pop(0), readonly=True)
            pieces.append(self._part.read(left))
            left -= len(pieces[-1]) if size > 0 else 0
            if left:
                self.close()  # this part is at its end
        return b"".join(pieces)

    def close(self) -> None:
        """Let go of the part that is open."""
        if self._part is not None:
            self._part.close()
            self._part = None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[sqlite3.Connection]:
    """All that is done inside, or nothing."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have done so by itself
            connection.execute("ROLLBACK")
        raise


def _make_table(connection: sqlite3.Connection) -> None:
    """Make the table, unless another process was faster."""
    with _transaction(connection, "IMMEDIATE"):
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        if _version(connection) == (0, 0) and not tables:  # else it is somebody else's
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")


def _version(connection: sqlite3.Connection) -> tuple[int, int]:
    """Whose database it is, and of which format; zeros where nothing is in it yet."""
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    return application, version


def _parts(pieces: Sequence[bytes | memoryview]) -> Iterator[bytearray]:
    """The same bytes in parts of :data:`PART_BYTES`; of an empty record, one empty part."""
    if 0 < sum(map(len, pieces)) <= PART_BYTES:
        yield bytearray().join(pieces)
        return
    part, empty = bytearray(), True
    for piece in pieces:
        view = memoryview(piece)
        while len(view):
            taken = view[: PART_BYTES - len(part)]
            part += taken
            view = view[len(taken) :]
            if len(part) == PART_BYTES:
                yield part
                part, empty = bytearray(), False
    if part or empty:
        yield part


def _refusal(path: Path, size: int) -> str | None:
    """What the kernel answers where a file beside ``path`` is to be ``size`` bytes longer; None if it may."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with probe.open("wb") as file:
            file.seek((path.stat().st_size if path.exists() else 0) + size + 16 * _LONG_PAGE_BYTES)
            file.write(b"\0")
    except OSError as error:
        return error.strerror
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
