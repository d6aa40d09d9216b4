"""What the owner's files are like, without reading them: :func:`stamp`. A change is worth another try."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
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
