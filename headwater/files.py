"""Files that are whole or absent: :func:`write_atomically`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from headwater.errors import StorageError


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` so that ``path`` holds the old content or the new, never a part.

    Args:
        path: the file; its folder is made.
        data: the content.
        durable: also survive a power cut (fsync of file and folder), not only a killed process.

    Raises:
        StorageError: the disk is full or not writable; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
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
            hint="What was there before is intact; free space or fix the rights, then resume.",
        ) from error
