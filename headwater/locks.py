"""Locks between processes: :func:`lock_file` opens one, :func:`take` and :func:`take_within` take it.

The kernel lets go of a lock when the file is closed or its process dies, so nothing is left behind. Who may
wait how long, and what is said to whoever does not get it, is the caller's business.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headwater.errors import StorageError

_POLL_S = 0.02


@contextmanager
def lock_file(path: Path, *, mode: int = 0o666) -> Iterator[int]:
    """A descriptor of the file at ``path``, which is made if it is not there, and never emptied.

    Args:
        path: of the file.
        mode: of a new one; the process's umask takes bits away.

    Raises:
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        yield handle
    finally:
        os.close(handle)


def take(handle: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Take the lock of an open file; False if another process holds it.

    Args:
        handle: of :func:`lock_file`, or of any other open file.
        shared: beside others that take it so.
        wait: until whoever holds it lets go.

    Raises:
        StorageError: the file system has no locks, or no more.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(
            "lock file",
            expected="a file system on which files can be locked",
            got=error.strerror or str(error),
            hint="Keep this folder on a local disk.",
        ) from error
    return True


def take_within(handle: int, seconds: float) -> bool:
    """Take the lock, and try again for so many ``seconds`` while another process holds it.

    Raises:
        StorageError: as :func:`take`.
    """
    until = time.monotonic() + seconds
    while not take(handle):
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True
