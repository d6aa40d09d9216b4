"""What a daemon exports, as a folder, whole or not there: :func:`unpack`, :func:`whole_folder`."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headwater.errors import DecodeError, StorageError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, which becomes it at the end; after an exception nothing is left of it.

    Raises:
        StorageError: ``folder`` holds something, or cannot be written.
    """
    try:
        require_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            files = Path(scratch, "files")
            files.mkdir()
            yield files
            if folder.exists():
                folder.rmdir()
            shutil.move(files, folder)
    except OSError as error:
        raise StorageError(
            str(folder), expected="a folder that can be written", got=error.strerror or str(error),
            hint="Nothing was left behind: free space or fix the rights, then try again.",
        ) from error  # fmt: skip


def unpack(pieces: Iterable[bytes], folder: Path) -> int:
    """Write the files of a tar into ``folder``, all or none; the bytes they have.

    Args:
        pieces: the tar, in order.
        folder: must not exist, or be empty.

    Raises:
        StorageError: it holds something, or cannot be written.
        DecodeError: no tar, or one with anything but plain files below its root.
    """
    with whole_folder(folder) as files:
        archive = files.with_name("tar")
        with archive.open("wb") as file:
            file.writelines(pieces)
        return _extract(archive, files)


def require_free(folder: Path) -> None:
    """Raise ``StorageError`` unless ``folder`` is absent or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(
            str(folder), expected="a new or an empty folder", got="one that holds something",
            hint="Name another one: nothing is written over.",
        )  # fmt: skip


def _extract(archive: Path, folder: Path) -> int:
    size = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                path = Path(member.name)
                if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
                    raise DecodeError(
                        "exported adapter", expected="plain files", got=ascii(member.name[:80]),
                        hint="This is not what a Headwater daemon sends: nothing was written.",
                    )  # fmt: skip
                member.mode = 0o755 if member.isdir() else 0o644
                tar.extract(member, folder, filter="data")
                size += member.size
    except tarfile.TarError as error:
        raise DecodeError("exported adapter", expected="a whole tar", got=str(error)) from error
    if not any(folder.iterdir()):
        raise DecodeError("exported adapter", expected="files", got="none")
    return size
