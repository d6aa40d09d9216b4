"""Snapshot: files as they stood at one moment, while another process goes on replacing them.

Every file is opened, then all are looked at again. If each name still leads to the file that was opened,
then between the two looks all of them stood so at once: that is a state in which the daemon could have been
killed, and from such a state it goes on. What is open stays what it was, however long copying takes:
files are replaced, not written over, and what grows is read up to its size at that moment.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from headwater.errors import StorageError

TRIES = 200
PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Pinned:
    """An open file: ``name`` relative to the folder, with slashes; ``size`` and ``mtime`` of the moment."""

    name: str
    handle: int
    size: int
    mtime: float

    def pieces(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The content.

        Raises:
            StorageError: it has become shorter, or cannot be read.
        """
        at = 0
        while at < self.size:
            try:
                data = os.pread(self.handle, min(size, self.size - at), at)
            except OSError as error:
                raise StorageError(self.name, expected="to read it", got=str(error)) from error
            if not data:
                raise StorageError(self.name, expected=f"{self.size} bytes", got=f"{at}")
            at += len(data)
            yield data


@contextmanager
def snapshot(folder: Path, wanted: Callable[[str], bool]) -> Iterator[list[Pinned]]:
    """All files below ``folder`` whose names are wanted, sorted by name, as at one moment.

    Args:
        folder: the folder.
        wanted: asked with the relative name of each file, and of each folder before it is entered.

    Raises:
        StorageError: a link or a device; too many files to open; no moment was found in which the files
            stood still for as long as it takes to open them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        for _ in range(TRIES):
            with ExitStack() as stack:
                pinned = _pin(folder, wanted, stack)
                if pinned is not None:
                    yield pinned
                    return
            time.sleep(PAUSE_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    raise StorageError(
        f"snapshot of {folder}",
        expected="files that stand still for a moment",
        got=f"changes at each of {TRIES} looks",
        hint="Pause the run, or try again while its clients train.",
    )


def _pin(folder: Path, wanted: Callable[[str], bool], stack: ExitStack) -> list[Pinned] | None:
    """Open everything; None if something changed meanwhile."""
    pinned, seen = [], {}
    try:
        for name in _walk(folder, wanted):
            handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, handle)
            found = os.fstat(handle)
            pinned.append(Pinned(name, handle, found.st_size, found.st_mtime))
            seen[name] = _identity(found)
        again = {name: _identity((folder / name).lstat()) for name in _walk(folder, wanted)}
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "Raise the limit of open files: ulimit -n." if error.errno == errno.EMFILE else ""
        got = error.strerror or str(error)
        raise StorageError(str(error.filename), expected="to read it", got=got, hint=hint) from error
    return sorted(pinned, key=lambda file: file.name) if again == seen else None


def _walk(folder: Path, wanted: Callable[[str], bool], prefix: str = "") -> Iterator[str]:
    with os.scandir(folder / prefix) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = prefix + entry.name
        if not wanted(name):
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if S_ISDIR(mode):
            yield from _walk(folder, wanted, f"{name}/")
        elif S_ISREG(mode):
            yield name
        else:
            raise StorageError(
                str(folder / name),
                expected="a file or a folder",
                got="a link or something else",
                hint="Put the file itself there, or take it away.",
            )


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
