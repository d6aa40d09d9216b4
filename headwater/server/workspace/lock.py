"""FolderLock: one daemon per folder, and who it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from headwater.errors import ConfigError, StorageError
from headwater.locks import lock_file, take, take_within

_PATIENCE_S = 1.0
"""A command that looks who holds the lock holds it itself for a moment."""


@dataclass(frozen=True)
class FolderLock:
    """The file ``lock`` of a server's folder. The kernel lets go of it when its process dies."""

    folder: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one who holds it, until the context ends.

        Raises:
            ConfigError: another process does; says which.
            StorageError: the folder cannot be written.
        """
        with self._open() as handle:
            if not take_within(handle, _PATIENCE_S):
                raise ConfigError(
                    f"server folder {self.folder}",
                    expected="a folder in which no other daemon runs",
                    got=f"one that process {_owner(handle) or '(not known)'} runs in",
                    hint=f"One folder has one daemon. Ask it: headwater server status {self.folder}",
                )
            with suppress(OSError):  # a full disk: then the process stays unnamed
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.ftruncate(handle, 0)

    def holder(self) -> int | None:
        """The process that holds it; 0 if that is not known yet, None if nobody does.

        Raises:
            StorageError: the folder cannot be written.
        """
        with self._open() as handle:
            return None if take(handle, shared=True) else _owner(handle)

    @contextmanager
    def _open(self) -> Iterator[int]:
        with ExitStack() as stack:
            try:
                handle = stack.enter_context(lock_file(self.folder / "lock", mode=0o600))
            except OSError as error:
                raise StorageError(
                    f"server folder {self.folder}",
                    expected="a folder that can be written",
                    got=error.strerror or str(error),
                    hint="Run this as the user who owns it.",
                ) from error
            yield handle


def _owner(handle: int) -> int:
    text = os.pread(handle, 32, 0).strip()
    return int(text) if text.isdigit() else 0
