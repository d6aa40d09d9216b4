"""Archive: files in one tar with a list of their hashes at its end. :class:`Writer`, :func:`read_members`.

The tar is plain ustar, so that any tar lists and unpacks it. Read here, it is hostile: only plain files
with plain names are taken, nothing is linked, and no size is believed before its bytes are there.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from headwater.errors import DecodeError, StorageError
from headwater.server.workspace.snapshot import Pinned

LIST = "backup.json"
MAX_LIST_BYTES = 256 << 20
MAX_DEPTH = 16
_BLOCK = tarfile.BLOCKSIZE
_PART = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")


class Writer:
    """Writes members one after another, then :meth:`finish`.

    Args:
        file: the tar, empty.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.files: dict[str, tuple[int, str]] = {}

    def add(self, member: Pinned) -> None:
        """Add a file.

        Raises:
            StorageError: it cannot be read, its name or size does not fit into a tar.
            OSError: the tar cannot be written.
        """
        self._head(member.name, member.size, int(member.mtime))
        digest = hashlib.sha256()
        for piece in member.pieces():
            digest.update(piece)
            self._file.write(piece)
        self._pad(member.size)
        self.files[member.name] = (member.size, digest.hexdigest())

    def finish(self, **facts: str | int | bool) -> None:
        """Write ``backup.json``, with the facts and all hashes, and the end of the tar."""
        data = json.dumps({**facts, "files": self.files}, indent=1, sort_keys=True).encode()
        self._head(LIST, len(data), 0)
        self._file.write(data)
        self._pad(len(data))
        self._file.write(bytes(2 * _BLOCK))

    def _head(self, name: str, size: int, mtime: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = size, max(0, mtime), 0o600
        try:
            self._file.write(member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        except ValueError as error:
            raise StorageError(
                f"backup of {name}", expected="a name and a size that a tar can hold", got=str(error)
            ) from None

    def _pad(self, size: int) -> None:
        self._file.write(bytes(-size % _BLOCK))


@dataclass
class Member:
    """A file of an archive that is being read: take :meth:`pieces` before the next member."""

    name: str
    size: int
    _file: IO[bytes] = field(repr=False)

    def pieces(self) -> Iterator[bytes]:
        """The content.

        Raises:
            DecodeError: the archive ends before.
        """
        left = self.size
        while left:
            data = self._file.read(min(left, 1 << 20))
            if not data:
                raise _bad(f"an end inside {self.name}")
            left -= len(data)
            yield data
        self._file.read(-self.size % _BLOCK)

    def read(self, limit: int) -> bytes:
        """All of it, if it is at most ``limit`` bytes.

        Raises:
            DecodeError: it is longer, or the archive ends before.
        """
        if self.size > limit:
            raise _bad(f"{self.name} of {self.size} bytes")
        return b"".join(self.pieces())


def read_members(file: IO[bytes]) -> Iterator[Member]:
    """The members in their order; a file that nobody reads is not skipped, so read each.

    Raises:
        DecodeError: something that :class:`Writer` does not write: a link, a device, a name that is
            absolute, leads upwards, is hidden or comes twice; a broken head.
    """
    names: set[str] = set()
    while True:
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):
            return
        try:
            head = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise _bad(f"a broken head ({error})") from None
        if head.type != tarfile.REGTYPE or head.linkname:
            raise _bad(f"{ascii(head.name)[:80]}, which is no plain file")
        if head.size < 0:
            raise _bad(f"{ascii(head.name)[:80]} of {head.size} bytes")
        parts = head.name.split("/")
        if len(parts) > MAX_DEPTH or not all(_PART.fullmatch(p) and p[0] != "." for p in parts):
            raise _bad(f"the name {ascii(head.name)[:80]}")
        if head.name in names:
            raise _bad(f"{head.name} twice")
        names.add(head.name)
        yield Member(head.name, head.size, file)


def parse_list(data: bytes) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """The facts and the files in ``backup.json``.

    Raises:
        DecodeError: not such a list, or one of a later format.
    """
    try:
        content = json.loads(data)
        if content["format"] != 1:
            raise ValueError(f"format {content['format']!r}, which a later version of headwater wrote")
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in content["files"].items()}
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise _bad(f"a list of files that is none ({error})") from None
    return content, files


def _bad(got: str) -> DecodeError:
    hint = "It was cut off or altered, or is another file: take another backup."
    return DecodeError("backup", expected="what headwater server backup wrote", got=got, hint=hint)
