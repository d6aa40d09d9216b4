"""What the owner's files are like: :func:`stamp` without reading them, :func:`contents` by what is in them.

A change is worth another try; rows in memory that are no more those of the files are told to the owner.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

MOST_FILES = 10_000
"""So many are looked at; a change of another one is noticed when the pause is over."""


def stamp(paths: Iterable[Path], *, skip: Path) -> str:
    """A digest over name, size and times of all files in and below ``paths``; absent ones count as absent.

    Args:
        paths: files and folders.
        skip: a folder that is passed over, such as the agent's own, which changes with every task.
    """
    digest = hashlib.sha256()
    for path in paths:
        for file in islice(_files(path, skip.resolve()), MOST_FILES):
            digest.update(f"{file}\0{_of(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def contents(paths: Iterable[Path], *, skip: Path) -> str:
    """A digest over name and content of the same files: files that are put back have theirs again."""
    digest = hashlib.sha256()
    for path in paths:
        for file in islice(_files(path, skip.resolve()), MOST_FILES):
            digest.update(f"{file}\0{_content(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class RowsRead:
    """Rows of the owner that are in memory.

    Args:
        run: for which they were read.
        stamp: of their files, shortly before.
        contents: of them, shortly before.
    """

    run: str
    stamp: str
    contents: str

    @staticmethod
    def of(run: str, data: Path, *, skip: Path) -> RowsRead:
        """Those that are read from ``data`` next: what changes meanwhile counts as a change."""
        return RowsRead(run, stamp([data], skip=skip), contents([data], skip=skip))

    @staticmethod
    def read(found: Sequence[str] | None) -> RowsRead | None:
        """What :func:`list` made of one in JSON; None for none."""
        return None if not found else RowsRead(*found)

    def list(self) -> list[str]:
        """For JSON."""
        return [self.run, self.stamp, self.contents]

    def changed(self, data: Path, *, skip: Path) -> bool:
        """Whether the files are others now. They are read only where one was touched."""
        return stamp([data], skip=skip) != self.stamp and contents([data], skip=skip) != self.contents


def _content(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return f"absent {error.errno}"


def _files(path: Path, skip: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(f for f in folders if (Path(folder) / f).resolve() != skip)
        yield from (Path(folder) / name for name in sorted(files))


def _of(file: Path) -> str:
    try:
        found = file.stat()
    except OSError as error:
        return f"absent {error.errno}"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
