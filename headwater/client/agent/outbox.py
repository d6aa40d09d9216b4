"""Outbox: trained replies on disk until the server has them, and the last ones after that.

A task that is asked again, by a server that lost the reply or after a crash here, is answered from it
with the same bytes and without training. An entry's name is the SHA-256 of the request that it answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import write_atomically

KEPT_REPLIES = 4
"""Entries that stay, the newest; a device works for one task at a time."""
MAX_BYTES = 1 << 30
"""Of all entries together; the newest stays whatever its size."""
_SUFFIX = ".reply"


def request_digest(envelope: bytes, state: bytes) -> str:
    """What a request is known by: hex."""
    return hashlib.sha256(hashlib.sha256(envelope).digest() + hashlib.sha256(state).digest()).hexdigest()


class Outbox:
    """Replies by the digest of their request, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, digest: str, reply: bytes) -> None:
        """Keep a reply, whole or not at all; the oldest leave.

        Raises:
            StorageError: it could not be written.
        """
        check = hashlib.sha256(reply).digest()
        write_atomically(self.folder / f"{digest}{_SUFFIX}", check + reply)
        used = 0
        for place, path in enumerate(self._newest_first()):
            with contextlib.suppress(OSError):
                used += path.stat().st_size
                if place and (place >= KEPT_REPLIES or used > MAX_BYTES):
                    path.unlink()

    def get(self, digest: str) -> bytes | None:
        """The reply to the request with this digest, if it is kept; a damaged one is not."""
        path = self.folder / f"{digest}{_SUFFIX}"
        try:
            data = path.read_bytes()
            now = time.time_ns()
            os.utime(path, ns=(now, now))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"outbox {path}", expected="a readable file", got=error.strerror or str(error)
            ) from None
        return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None

    def _newest_first(self) -> list[Path]:
        times: list[tuple[int, Path]] = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                times.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(times, reverse=True)]
