"""Files in wheels, source archives and Debian packages, and records that are sampled from them.

:func:`zip_read`, :func:`member` and :func:`deb_member` give one file of an archive; :func:`rank_of` is the
order in which corpora are sampled, :func:`write_records` how they are written.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from headwater.errors import DataError

Record = dict[str, str | int]


def rank_of(*parts: str | int) -> str:
    """Where what has these parts stands in a sample's order: SHA-256 (hex) over them."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line, keys in their order."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_bytes("".join(lines).encode())


def decoded(content: bytes) -> str:
    """The text: UTF-8, or else Windows' Western encoding."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def member(archive: Path | io.BytesIO, suffix: str) -> bytes:
    """The file whose path in the tar archive ends in ``suffix``."""
    with (
        archive.open("rb") if isinstance(archive, Path) else nullcontext(archive) as stream,
        tarfile.open(fileobj=stream) as tar,
    ):
        for entry in tar:
            if entry.isfile() and entry.name.endswith(f"/{suffix}"):
                content = tar.extractfile(entry)
                if content is not None:
                    return content.read()
    raise _absent(archive, suffix)


def zip_read(wheel: zipfile.ZipFile, archive: Path, name: str) -> bytes:
    """The file ``name`` of a wheel, which lies at ``archive``."""
    try:
        return wheel.read(name)
    except KeyError:
        raise _absent(archive, name) from None


def deb_member(archive: Path, suffix: str) -> bytes:
    """A file of a Debian package: an ar archive (deb(5)) with a tar archive in it."""
    content = archive.read_bytes()
    position = len(b"!<arch>\n")
    while position + 60 <= len(content):
        header = content[position : position + 60]
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return member(io.BytesIO(content[position + 60 : position + 60 + size]), suffix)
        position += 60 + size + size % 2
    raise _absent(archive, "data.tar")


def _absent(archive: Path | io.BytesIO, name: str) -> DataError:
    who = str(archive) if isinstance(archive, Path) else "the archive inside"
    return DataError(who, expected=f"a file {name}", got="none", hint="Is this the pinned version?")
