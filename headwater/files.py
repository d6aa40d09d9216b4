"""Files that survive a crash: :func:`write_atomically` (whole or absent), :func:`append_line` (line by line).

:func:`whole_folder` does for a folder what the first does for a file.

*Durable* means: also after a power cut, which keeps of a file only what was fsynced, and of a folder only
the names that were there at the folder's last fsync. A killed process loses nothing that was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from headwater.errors import StorageError

_LONGEST = 180
"""Bytes of a quoted name, of the 255 that file systems allow: suffixes and a temporary name's come on top."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_atomically(path: Path, *data: bytes | memoryview, durable: bool = True) -> None:
    """Write ``data`` so that ``path`` holds the old content or the new, never a part.

    Args:
        path: the file; its folder is made.
        data: the content, in any number of pieces.
        durable: also survive a power cut (fsync of file and folder), not only a killed process.

    Raises:
        StorageError: the disk is full or not writable; ``path`` is whole: the old content, or the new
            where only the folder's fsync failed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _made(temporary, durable=durable) as file:
            for piece in data:
                file.write(piece)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # where even that fails, nothing was written
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, sum(len(piece) for piece in data), error) from error


def append_line(path: Path, line: bytes) -> None:
    """Add ``line`` and a line feed to ``path``, durably. A line is there once its line feed is.

    What an earlier crash left of a line is removed first; what a full disk took of this one, after.

    Args:
        path: the file; made, with its folder, if absent.
        line: without a line feed in it.

    Raises:
        StorageError: the disk is full or not writable; the lines before are intact.
    """
    try:
        make_folder(path.parent)
        with path.open("a+b", buffering=0) as file:  # no buffer: close() must not write what failed
            size = _whole(file)
            _append(file, size, line + b"\n", durable=True)
        if size == 0:  # it may be new
            sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, len(line) + 1, error) from error


def append_whole(path: Path, data: bytes) -> None:
    """Add ``data`` to ``path``, all of it or nothing. Not durable.

    Raises:
        OSError: the disk is full or not writable.
    """
    with path.open("ab", buffering=0) as file:
        _append(file, file.seek(0, os.SEEK_END), data, durable=False)


def read_lines(path: Path) -> list[bytes]:
    """The whole lines of ``path``, without line feeds; a torn last one is left out. None if absent.

    Raises:
        StorageError: it cannot be read.
    """
    return list(each_line(path))


def each_line(path: Path) -> Iterator[bytes]:
    """What :func:`read_lines` returns, one line at a time.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from (line[:-1] for line in file if line.endswith(b"\n"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"reading {path}", expected="a readable file", got=error.strerror or str(error)
        ) from error


def start_of(path: Path, size: int) -> memoryview:
    """The first ``size`` bytes of a file, mapped and not read into memory. It may be renamed over meanwhile.

    Raises:
        OSError: it cannot be read.
    """
    if not size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[:size]


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Make ``path`` and the folders above it; if ``durable``, a power cut does not take them away.

    Raises:
        OSError: one of them cannot be made.
    """
    if path.is_dir():
        return
    make_folder(path.parent, durable=durable)
    path.mkdir(exist_ok=True)
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Let a power cut not undo what was made, renamed or removed in ``path``.

    Raises:
        OSError: the disk says no.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``folder`` once the block has ended, and never half filled.

    A folder cannot be renamed over a full one: for an instant the old one is aside under ``.old``. Where the
    block ends in an exception, what was there before is intact and nothing else is left. What a killed
    process left beside it is cleared first. One process at a time may write to a place.

    Raises:
        OSError: the disk says no.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_remains(folder)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # first: it may make the room that a name needs
        if old.exists() and not folder.exists():
            with contextlib.suppress(OSError):  # else the next call puts it back
                old.rename(folder)


def _clear_remains(folder: Path) -> None:
    """Remove what processes that were killed left; put back a folder that one of them had put aside."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.\d+\.(tmp|old)")
    for left in sorted(path for path in folder.parent.iterdir() if pattern.fullmatch(path.name)):
        if left.suffix == ".old" and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def read_at(file: BinaryIO, start: int, size: int) -> bytearray:
    """Bytes ``[start, start + size)`` of a file; fewer where it ends before."""
    data = bytearray(size)
    with memoryview(data) as view:
        got = read_into(file, start, view)
    del data[got:]
    return data


def read_into(file: BinaryIO, start: int, view: memoryview) -> int:
    """Fill ``view``, of bytes, from ``start`` on: how many came, fewer where the file ends before.

    One call of the system gives at most 2 GiB, and may give less.
    """
    at = 0
    while at < len(view) and (got := os.preadv(file.fileno(), [view[at:]], start + at)):
        at += got
    return at


def clear_temporaries(folder: Path) -> None:
    """Remove what :func:`write_atomically` left in ``folder`` when it was killed.

    Call it only where no other process writes. What cannot be removed does no harm and stays.
    """
    with contextlib.suppress(OSError):
        for path in [p for p in folder.iterdir() if is_temporary(p.name)]:
            with contextlib.suppress(OSError):  # an export's folder, which it clears itself
                path.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that :func:`write_atomically` had not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def file_name(name: str) -> str:
    """A file name of at most 180 bytes for any ``name``: no two names have the same one."""
    quoted = quote(name, safe="")  # up to 12 bytes a character
    if len(quoted) > _LONGEST:
        # "+" keeps it apart from every quoted name
        return f"{quoted[:90]}+{hashlib.sha256(name.encode()).hexdigest()}"
    return quoted


def _made(path: Path, *, durable: bool) -> BinaryIO:
    """A new file, to write to; its folder is made where it is absent, which is seldom looked for."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        make_folder(path.parent, durable=durable)
        return path.open("wb")


def _append(file: io.FileIO, size: int, data: bytes, *, durable: bool) -> None:
    """Write at the end of ``file``, of ``size`` bytes; what a full disk took of it is taken away again."""
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) or 0 :]
        if durable:
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # else the next call, or a reader, leaves it out
            file.truncate(size)
        raise


def _whole(file: BinaryIO) -> int:
    """Remove a torn last line; bytes that are left."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    return end


def _cannot_write(path: Path, size: int, error: OSError) -> StorageError:
    return StorageError(
        f"writing {path}",
        expected=f"room for {size} bytes",
        got=error.strerror or str(error),
        hint="What was there before is intact; free space or fix the rights, then resume.",
    )
