"""Spool: the open round's replies on disk, each written before it is folded.

A server that stops in the middle of a round, for whatever reason, has its clients' replies still:
started again, it folds them from here and asks only the clients that are missing. The order is

1. a reply is checked, then :meth:`Spool.put` (on disk when that returns), then folded;
2. the round is merged, its line and its checkpoint are written;
3. :meth:`Spool.drop_through` that round.

A crash between 2 and 3 leaves replies of a finished round; the next start drops them first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import clear_temporaries, file_name, make_folder, sync_folder, write_atomically

_MAGIC = b"HWSP1\n"
_HEAD = len(_MAGIC) + 32
_NAME = re.compile(r"(\d{6,})-.+\.reply(\.damaged)?")


@dataclass(frozen=True, slots=True)
class _Head:
    round: int
    client: str
    started: int | None


class Spool:
    """Replies by round and client, one file each. One thread of one process may use it.

    A file is ``HWSP1`` and a line feed, the SHA-256 of all that follows (32 bytes), a line of JSON with
    round, client and started, and the reply. Every file is checked when the spool is opened and again
    when it is read. One that does not match is renamed to ``*.damaged``, reported, and as good as
    absent; it is deleted with its round.

    Memory: names and sizes; one reply while one is checked or written.

    Args:
        folder: made if absent. What a crash left half written in it is removed.
        max_bytes: of all files together.
        notice: is told, as one line, of every file that is set aside or cannot be removed.

    Raises:
        StorageError: the folder cannot be made or listed.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = 8 << 30, notice: Callable[[str], None] = lambda text: None
    ) -> None:
        self._folder, self._max_bytes, self._notice = folder, max_bytes, notice
        self._sizes: dict[str, int] = {}  # by file name, damaged ones too
        self._rounds: dict[int, dict[str, _Head]] = {}
        try:
            make_folder(folder)
            clear_temporaries(folder)
            for path in sorted(folder.iterdir()):
                if _NAME.fullmatch(path.name):
                    self._sizes[path.name] = path.stat().st_size
                    if path.suffix == ".reply" and (found := self._load(path)) is not None:
                        self._rounds.setdefault(found[0].round, {})[found[0].client] = found[0]
        except OSError as error:
            raise self._failed("opening", folder, error) from error

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, damaged ones included."""
        return sum(self._sizes.values())

    def put(self, round: int, client: str, data: bytes, *, started: int | None = None) -> None:
        """Keep ``data``; it is on disk when this returns. A reply that is there already is replaced.

        Args:
            round: the round (of buffered rounds: the version) that it will be folded into.
            client: the enrolled name.
            data: the reply, as it arrived.
            started: with buffered rounds, the version that the client started from.

        Raises:
            StorageError: the spool or the disk is full, or not writable; what was there is intact.
        """
        path = self._path(round, client)
        head = _Head(round, client, started)
        line = json.dumps({"round": round, "client": client, "started": started}).encode() + b"\n"
        digest = hashlib.sha256(line)
        digest.update(data)
        content = b"".join((_MAGIC, digest.digest(), line, data))
        before = self._sizes.get(path.name)
        used = self.used_bytes - (before or 0)
        if used + len(content) > self._max_bytes:
            raise StorageError(
                f"spool {self._folder}",
                expected=f"at most {self._max_bytes} bytes",
                got=f"{used}, and {len(content)} more from client {client}",
                hint="Ask fewer clients a round: headwater server set DIR clients_per_round=N",
            )
        try:
            write_atomically(path, content)
        except StorageError:
            if before is None:  # it may be there whole, and only the folder's fsync have failed
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        self._sizes[path.name] = len(content)
        self._rounds.setdefault(round, {})[client] = head

    def rounds(self) -> tuple[int, ...]:
        """The rounds that have replies, ascending."""
        return tuple(sorted(number for number, found in self._rounds.items() if found))

    def clients(self, round: int) -> tuple[str, ...]:
        """The clients whose replies of ``round`` are here, sorted."""
        return tuple(sorted(self._rounds.get(round, ())))

    def started(self, round: int) -> dict[str, int]:
        """By client, sorted, the version it started from; without those put without one."""
        found = self._rounds.get(round, {})
        return {c: v for c in sorted(found) if (v := found[c].started) is not None}

    def read(self, round: int, client: str) -> bytes | None:
        """One reply; None if there is none, or if it is damaged, which is reported and set aside."""
        if client not in self._rounds.get(round, {}):
            return None
        found = self._load(self._path(round, client))
        if found is None:
            del self._rounds[round][client]
            return None
        return found[1]

    def remove(self, round: int, client: str) -> None:
        """Forget a reply, durably.

        Raises:
            StorageError: it could not be removed, or a power cut may bring it back.
        """
        path = self._path(round, client)
        try:
            path.unlink(missing_ok=True)
            self._sizes.pop(path.name, None)
            self._rounds.get(round, {}).pop(client, None)
            sync_folder(self._folder)
        except OSError as error:
            raise self._failed("removing", path, error) from error

    def drop_through(self, round: int) -> None:
        """Delete everything of rounds up to ``round``, damaged files too.

        Not durable: what a power cut brings back is dropped again at the next start. What cannot be
        removed is reported and counts as used.
        """
        for name in list(self._sizes):
            if int(name.split("-", 1)[0]) <= round:
                try:
                    (self._folder / name).unlink(missing_ok=True)
                    del self._sizes[name]
                except OSError as error:
                    self._notice(f"spool: cannot remove {name}: {error.strerror or error}")
        for number in [number for number in self._rounds if number <= round]:
            del self._rounds[number]

    def _path(self, round: int, client: str) -> Path:
        return self._folder / f"{round:06d}-{file_name(client)}.reply"

    def _load(self, path: Path) -> tuple[_Head, bytes] | None:
        """What is in a file; None, reported and set aside, if that is not what was written."""
        try:
            content = path.read_bytes()
            rest = memoryview(content)[_HEAD:]
            if content[:_HEAD] != _MAGIC + hashlib.sha256(rest).digest():
                raise ValueError(f"{len(content)} bytes that do not match their SHA-256")
            end = content.index(b"\n", _HEAD)
            head = _Head(**json.loads(content[_HEAD:end]))
            if path != self._path(head.round, head.client):
                raise ValueError(f"the reply of {head.client} in round {head.round}")
            return head, content[end + 1 :]
        except (OSError, ValueError, TypeError) as error:
            self._set_aside(path, str(error))
            return None

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = path.with_name(path.name + ".damaged")
        with contextlib.suppress(OSError):  # where even that fails, it is left out all the same
            path.replace(aside)
            self._sizes[aside.name] = self._sizes.pop(path.name, 0)
        self._notice(f"spool: {path.name} is damaged and left out: {reason}")

    @staticmethod
    def _failed(doing: str, path: Path, error: OSError) -> StorageError:
        return StorageError(
            f"{doing} {path}",
            expected="a spool that can be read and written",
            got=error.strerror or str(error),
            hint="Fix the rights or the disk, then start the server again.",
        )
