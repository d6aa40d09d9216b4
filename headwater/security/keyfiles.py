"""Files that hold secrets: :func:`write_secret` and :func:`read_secret`.

A secret's file has the rights 0600 from the moment it exists, so that no other user of the machine can
open it in between, and is refused when others could have read it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from headwater.errors import StorageError

MAX_SECRET_BYTES = 65_536
"""No secret of ours is longer; a longer file is something else and is not read."""


def secret_folder(folder: Path) -> None:
    """Make ``folder`` with the rights 0700; one that exists and is empty gets them.

    Raises:
        StorageError: it cannot be made, or holds something and others may look into it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            mode = stat.S_IMODE(folder.stat().st_mode)
            if mode & 0o077:
                raise StorageError(
                    f"folder {folder}",
                    expected="rights 0700, since keys go there",
                    got=f"{mode:04o}",
                    hint=f"Name another folder, or take the others' rights away: chmod 700 {folder}",
                )
        else:
            folder.chmod(0o700)
    except OSError as error:
        raise StorageError(
            f"folder {folder}",
            expected="a folder that can be made, for keys",
            got=error.strerror or str(error),
            hint="Name another folder or fix the rights.",
        ) from error


def check_folder(folder: Path, *, hint: str) -> None:
    """Raise :class:`StorageError` unless ``folder`` exists and nobody but its owner may write into it.

    Others may list it (systemd and containers make folders so): the files in it are closed.
    """
    try:
        found = folder.stat()
    except OSError as error:
        got = error.strerror or str(error)
        raise StorageError(f"folder {folder}", expected="a folder with keys", got=got, hint=hint) from error
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        raise StorageError(f"folder {folder}", expected="a folder with keys", got="a file", hint=hint)
    if mode & 0o022:
        raise StorageError(
            f"folder {folder}",
            expected="rights 0700: nobody but its owner may put files there",
            got=f"{mode:04o}",
            hint=f"If nobody else can have changed it: chmod 700 {folder}. Otherwise make new keys.",
        )


def write_secret(path: Path, data: bytes) -> None:
    """Write ``data`` durably so that ``path`` holds the old content or the new; rights 0600.

    Raises:
        StorageError: the disk is full or not writable; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        # O_EXCL: never through a link that someone else put there
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # an odd umask could have left the owner without a right
            file.write(data)
            file.flush()
            os.fsync(handle)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # where even that fails, nothing was written
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"writing {path}",
            expected=f"room for {len(data)} bytes",
            got=error.strerror or str(error),
            hint="What was there before is intact; free space or fix the rights, then try again.",
        ) from error


def read_secret(path: Path, *, hint: str) -> bytes:
    """The content of ``path``.

    Args:
        path: the file.
        hint: the next step where it is missing or damaged.

    Raises:
        StorageError: it is missing, not a file, too long, or its rights let others read or write it.
    """
    try:
        # a FIFO in its place must not block
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise StorageError(str(path), expected="a file", got="something else", hint=hint)
            mode = stat.S_IMODE(found.st_mode)
            if mode & 0o077:
                raise StorageError(
                    f"secret {path}",
                    expected="rights 0600: nobody but its owner may read it",
                    got=f"{mode:04o}",
                    hint=f"If nobody else can have read it: chmod 600 {path}. Otherwise make new keys.",
                )
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise StorageError(
            f"secret {path}", expected="a readable file", got=error.strerror or str(error), hint=hint
        ) from error
    if len(data) > MAX_SECRET_BYTES:
        raise StorageError(
            f"secret {path}", expected=f"at most {MAX_SECRET_BYTES} bytes", got="more", hint=hint
        )
    return data
