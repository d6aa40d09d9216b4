"""Crashes, power cuts and full disks at any file operation: :class:`Disk`; at every one: crash_points.py.

::

    with Disk(folder, at=3, how="torn") as disk:  # the third write is half done when the process dies
        store.save("ann", state)
    assert disk.crashed

Under ``Disk`` all that Python does to files below ``folder`` is numbered: making, writing, truncating,
fsyncing, renaming, removing. What a compiled library writes by itself (``safetensors.torch.save_file``)
is not seen. A dead process does nothing more: after the crash every operation raises :class:`Crash` again,
so ``finally`` and ``except`` clean nothing up.

With ``power`` the crash is a power cut. Of a file only what was there at its last fsync is sure, of a folder
only the names at its last fsync; of the rest chance decides what is left: nothing, all, some of the
operations, a part of the bytes, zeros. This is POSIX's promise, and less than what ext4 or xfs keep.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

How = Literal["before", "torn", "after", "full"]
"""Dies before the operation, in the middle of a write, after it; or the disk is full from there on."""

CRASHES: tuple[How, ...] = ("before", "torn", "after")
_NEED_ROOM = ("create", "write", "fsync", "mkdir", "rename")


class Crash(BaseException):
    """The process is gone. Not an ``Exception``: nothing may handle it."""


@dataclass(eq=False)
class _Node:
    """A file or folder, whatever its name is now."""

    folder: bool = False
    synced: bytes = b""
    """Content at the last fsync."""
    last: bytes | None = None
    """Content when its last name was taken away."""


@dataclass
class _Names:
    """What one operation did to names; a power cut keeps all of it or nothing."""

    folders: set[Path]
    changes: dict[Path, _Node | None] = field(default_factory=dict)


class Disk:
    """File operations below ``root``, numbered from 1; the ``at``-th one goes wrong.

    A :class:`Crash` ends at the ``with`` statement, where a power cut takes what it takes.

    Args:
        root: the folder; must exist.
        at: which operation; None for none. With ``torn`` only writes count, with ``full`` only operations
            that need room.
        how: see :data:`How`.
        power: chance of a power cut; None if the process is only killed.
    """

    def __init__(
        self, root: Path, *, at: int | None = None, how: How = "before", power: random.Random | None = None
    ) -> None:
        self.root, self.at, self.how, self.power = root, at, how, power
        self.operations: list[str] = []
        """What was done, in order, also before and without a crash."""
        self.fault = ""
        """The one that went wrong first."""
        self.crashed = False
        self.filled = False
        self._counted = 0
        self._fds: dict[int, Path] = {}
        self._now: dict[Path, _Node] = {}
        self._durable: dict[Path, _Node] = {}
        self._pending: list[_Names] = []
        self._patches = contextlib.ExitStack()

    def free(self) -> None:
        """Let a full disk have room again."""
        self.at, self.filled = None, False

    # --- in and out -------------------------------------------------------------------------------

    def __enter__(self) -> Disk:
        if self.power is not None:
            for path in self.root.rglob("*"):
                folder = path.is_dir()
                self._now[path] = _Node(folder, b"" if folder else path.read_bytes())
            self._durable = dict(self._now)
        self._real = {n: getattr(os, n) for n in ("open", "close", "fsync", "mkdir", "rmdir", "unlink")}
        self._real["replace"], self._real_open = os.replace, io.open
        for module, name, double in (
            (io, "open", self._open),
            (builtins, "open", self._open),
            (os, "open", self._os_open),
            (os, "fsync", self._fsync),
            (os, "replace", self._rename),
            (os, "rename", self._rename),
            (os, "unlink", self._unlink),
            (os, "remove", self._unlink),
            (os, "mkdir", self._mkdir),
            (os, "rmdir", self._rmdir),
        ):
            self._patches.enter_context(mock.patch.object(module, name, double))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._patches.close()
        if self.crashed and self.power is not None:
            self._cut(self.power)
        return kind is Crash

    # --- one operation ----------------------------------------------------------------------------

    def _below(self, path: Any) -> Path | None:
        if not isinstance(path, str | os.PathLike):
            return None
        found = Path(path)
        return found if self.root in found.parents else None

    def _step(self, kind: str, path: Path, act: Callable[[], Any], torn: Callable[[], Any] = int) -> Any:
        """Do ``act``, or what is to go wrong in its place."""
        if self.crashed:
            raise Crash
        self.operations.append(f"{kind} {path.name}")
        if {"torn": kind == "write", "full": kind in _NEED_ROOM}.get(self.how, True):
            self._counted += 1
            if self.how == "full" and (self.filled or self._counted == self.at):
                self.filled, self.fault = True, self.fault or self.operations[-1]
                torn()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if self._counted == self.at:
                if self.how == "torn":
                    torn()
                if self.how == "after":
                    act()
                self.crashed, self.fault = True, self.operations[-1]
                raise Crash
        return act()

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        path = self._below(file)
        if path is None or not set("wax+") & set(mode):
            opened = self._real_open(file, mode, buffering, *rest, **more)
            self._fds.pop(opened.fileno(), None)
            return opened
        bare = mode.replace("b", "").replace("t", "")
        present = path.exists()
        if present and "w" not in mode:
            raw = _Raw(self, path, bare)
        else:

            def create() -> _Raw:
                made = _Raw(self, path, bare)
                if not present:
                    self._renamed({path: _Node()})
                return made

            raw = self._step("create", path, create)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **more)

    def _os_open(self, path: Any, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
        if self.crashed and self._below(path):
            raise Crash
        fd: int = self._real["open"](path, flags, *rest, dir_fd=dir_fd)
        self._fds[fd] = self._at(path, dir_fd)
        return fd

    def _at(self, path: Any, dir_fd: int | None) -> Path:
        return Path(path) if dir_fd is None else self._fds[dir_fd] / path

    def _fsync(self, fd: int) -> None:
        path = self._fds.get(fd)
        if path is None or (path != self.root and not self._below(path)):
            return None  # elsewhere; a test needs no real fsync
        return self._step("fsync", path, lambda: self._synced(path))

    def _rename(self, source: Any, target: Any, **dir_fds: Any) -> None:
        one, two = self._below(source), self._below(target)
        if one is None or two is None:
            return self._real["replace"](source, target, **dir_fds)

        def act() -> None:
            node = self._now.get(one)
            if node is not None and node.folder:
                raise NotImplementedError("a power cut after a folder was renamed")
            self._leave(two)
            self._real["replace"](source, target, **dir_fds)
            self._renamed({one: None, two: node})

        return self._step("rename", two, act)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        found = self._below(self._at(path, dir_fd))
        if found is None:
            return self._real["unlink"](path, dir_fd=dir_fd)

        def act() -> None:
            self._leave(found)
            self._real["unlink"](path, dir_fd=dir_fd)
            self._renamed({found: None})

        return self._step("unlink", found, act)

    def _mkdir(self, path: Any, *rest: Any, dir_fd: int | None = None) -> None:
        found = self._below(self._at(path, dir_fd))
        if found is None:
            return self._real["mkdir"](path, *rest, dir_fd=dir_fd)

        def act() -> None:
            self._real["mkdir"](path, *rest, dir_fd=dir_fd)
            self._renamed({found: _Node(folder=True)})

        return self._step("mkdir", found, act)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        found = self._below(self._at(path, dir_fd))
        if found is None:
            return self._real["rmdir"](path, dir_fd=dir_fd)

        def act() -> None:
            self._real["rmdir"](path, dir_fd=dir_fd)
            self._renamed({found: None})

        return self._step("rmdir", found, act)

    # --- what a power cut leaves ------------------------------------------------------------------

    def _renamed(self, changes: dict[Path, _Node | None]) -> None:
        if self.power is None:
            return
        self._pending.append(_Names({path.parent for path in changes}, changes))
        _apply(self._now, changes)

    def _synced(self, path: Path) -> None:
        if self.power is None:
            return
        if path.is_dir():
            for names in [p for p in self._pending if path in p.folders]:
                self._pending.remove(names)
                _apply(self._durable, names.changes)
        else:
            self._now[path].synced = self._content(path)

    def _leave(self, path: Path) -> None:
        """Keep the content of a file whose name is taken away: the name may come back."""
        if (node := self._now.get(path)) is not None and not node.folder:
            node.last = self._content(path)

    def _content(self, path: Path) -> bytes:
        with self._real_open(path, "rb") as file:
            return bytes(file.read())

    def _cut(self, chance: random.Random) -> None:
        for path, node in self._now.items():
            if not node.folder:
                node.last = path.read_bytes()
        survive = chance.choice(["none", "all", "some"])
        for names in self._pending:
            if survive == "all" or (survive == "some" and chance.random() < 0.5):
                _apply(self._durable, names.changes)
        for path in list(self.root.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, node in sorted(self._durable.items()):
            if not path.parent.is_dir():
                continue  # a folder that was never synced into the one above it
            if node.folder:
                path.mkdir()
            else:
                path.write_bytes(_left(node.synced, node.last or b"", chance))


def _apply(names: dict[Path, _Node], changes: dict[Path, _Node | None]) -> None:
    for path, node in changes.items():
        if node is None:
            names.pop(path, None)
        else:
            names[path] = node


def _left(synced: bytes, last: bytes, chance: random.Random) -> bytes:
    """What is left of a file that held ``synced`` for sure, and ``last`` when the power went."""
    if synced == last or chance.random() < 0.3:
        return synced
    if chance.random() < 0.3:
        return last
    sure = len(synced) if last.startswith(synced) else 0
    cut = chance.randint(sure, len(last))
    zeros = chance.choice([0, chance.randint(0, len(last) - cut)])
    return last[:cut] + bytes(zeros)


class _Raw(io.FileIO):
    """A file whose system calls are steps of a disk."""

    def __init__(self, disk: Disk, path: Path, mode: str) -> None:
        super().__init__(path, mode, opener=lambda name, flags: disk._real["open"](name, flags, 0o666))
        self._disk, self._path = disk, path
        disk._fds[self.fileno()] = path

    def write(self, data: Any) -> int:
        """All of ``data``, or what the fault leaves of it."""
        if self._disk.crashed:
            return len(data)  # close() flushes a buffer that died with its process
        whole, plain = bytes(data), super().write
        self._disk._step("write", self._path, lambda: plain(whole), lambda: plain(whole[: len(whole) // 2]))
        return len(whole)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file."""
        if self._disk.crashed:
            return 0
        plain = super().truncate
        return int(self._disk._step("truncate", self._path, lambda: plain(size)))


# --- every point --------------------------------------------------------------------------------------
