"""A folder as a tar that is the same bytes for the same files: :func:`tar`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

PIECE = 1 << 20
"""Bytes of a piece; the last one may be shorter."""


def tar(folder: Path) -> Iterator[bytes]:
    """The files of ``folder``, by name, in the ustar format; owners, times and rights are left out.

    Memory: two pieces, at any size. Folders within ``folder`` are not followed.

    Raises:
        OSError: a file cannot be read.
    """
    buffer = bytearray()
    for block in _blocks(folder):
        buffer += block
        while len(buffer) >= PIECE:
            yield bytes(buffer[:PIECE])
            del buffer[:PIECE]
    if buffer:
        yield bytes(buffer)


def _blocks(folder: Path) -> Iterator[bytes]:
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        member = tarfile.TarInfo(path.name)
        member.size = path.stat().st_size
        yield member.tobuf(tarfile.USTAR_FORMAT)
        with path.open("rb") as file:
            while data := file.read(PIECE):
                yield data
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
