"""Backup and restore of a server's folder: :func:`backup`, :func:`restore`.

A backup is made while the daemon runs and holds one moment of it (see :mod:`.snapshot`):
settings, registry, the list of runs, every run with its checkpoint and adapter versions. Left out are logs,
locks, what trackers wrote (a restored run tells them all rounds again), and the spool: the clients of the
open round are asked again, and answer with the same bytes.
Secrets are left out unless asked for.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from headwater import __version__
from headwater.errors import ConfigError, DecodeError, StorageError
from headwater.files import sync_folder
from headwater.server.workspace.archive import LIST, MAX_LIST_BYTES, Writer, parse_list, read_members
from headwater.server.workspace.run_queue import RunQueue
from headwater.server.workspace.snapshot import Pinned, snapshot
from headwater.server.workspace.workspace import Workspace, empty_folder, make_private_folder

_TOP = ("server.toml", "federation.toml", "clients.json", "seen.json", "runs.json", "runs")
_LEFT_OUT = ("lock", "spool", "trackers", "tensorboard")


@dataclass(frozen=True)
class BackupFacts:
    """What a backup says of itself; ``created`` is ISO 8601 in UTC."""

    created: str
    version: str
    secrets: bool
    files: int
    bytes: int


def backup(workspace: Workspace, target: Path, *, with_secrets: bool = False) -> BackupFacts:
    """Write the folder to ``target``, a tar with the rights 0600. The daemon may be at work.

    Args:
        workspace: the folder.
        target: a new file.
        with_secrets: put the private keys in, too.

    Raises:
        ConfigError: ``target`` exists, or the folder is no server's.
        StorageError: something cannot be read or written, or a checkpoint is damaged; there is no
            ``target`` then.
    """
    if target.exists():
        raise ConfigError(
            f"backup {target}",
            expected="the name of a file that does not exist yet",
            got="a file that exists",
            hint="Choose another name: nothing is written over.",
        )
    _ = workspace.settings
    top = {*_TOP, *(["secrets"] if with_secrets else [])}

    def wanted(name: str) -> bool:
        first, _, last = name.partition("/")[0], *name.rpartition("/")[1:]
        return first in top and not last.startswith(".") and last not in _LEFT_OUT

    created = _now()
    with _new_file(target) as file, snapshot(workspace.path, wanted) as members:
        writer = Writer(file)
        for member in members:
            if member.name.endswith("/state/checkpoint.safetensors"):
                check_checkpoint(member)
            writer.add(member)
        writer.finish(format=1, created=created, version=__version__, secrets=with_secrets)
        file.flush()
        file.seek(0)
        _verify(file)
    size = sum(size for size, _ in writer.files.values())
    return BackupFacts(created, __version__, with_secrets, len(writer.files), size)


def restore(path: Path, archive: Path) -> BackupFacts:
    """Make the folder ``path`` from a backup. ``server.toml`` comes last: without it there is no server.

    Raises:
        ConfigError: ``path`` is not empty.
        DecodeError: ``archive`` is not a whole backup; nothing is left in ``path``.
        StorageError: it cannot be read, or the disk is full; nothing is left in ``path``.
    """
    try:
        with archive.open("rb") as file:
            make_private_folder(path)
            try:
                room, needed = shutil.disk_usage(path).free, os.fstat(file.fileno()).st_size
                if needed > room:
                    raise StorageError(
                        f"folder {path}",
                        expected=f"{needed:,} free bytes on its disk",
                        got=f"{room:,}",
                        hint="Free space, or restore to another disk.",
                    )
                return _unpack(path, file)
            except BaseException:
                empty_folder(path)
                raise
    except OSError as error:
        got = error.strerror or str(error)
        raise StorageError(
            f"restoring {archive} to {path}",
            expected="to read the backup and write the folder",
            got=got,
            hint="Check both paths and their rights.",
        ) from error


def check_checkpoint(member: Pinned) -> None:
    """Compare a checkpoint's values with the hashes in it.

    Does without torch what :meth:`headwater.server.storage.checkpoint.Checkpoint.load` does.

    Raises:
        StorageError: they differ, or it is not a checkpoint.
    """
    try:
        length = int.from_bytes(os.pread(member.handle, 8, 0), "little")
        head = json.loads(os.pread(member.handle, min(length, member.size), 8))
        meta = json.loads(head.pop("__metadata__")["headwater"])
        for group, expected in meta["sha256"].items():
            names = sorted(name for name in head if name.startswith(f"{group}/"))
            if not names and group == "best" and expected == meta["sha256"]["state"]:
                continue  # the same values, kept once
            digest = hashlib.sha256(meta["spec"].encode())
            for name in names:
                start, end = (8 + length + int(at) for at in head[name]["data_offsets"])
                while start < end and (data := os.pread(member.handle, min(end - start, 1 << 20), start)):
                    digest.update(data)
                    start += len(data)
            if digest.hexdigest() != expected:
                raise ValueError(f"{group} does not match its hash")
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"checkpoint {member.name}",
            expected="the checkpoint as it was written",
            got=f"a damaged file ({error})",
            hint="Put back an earlier backup's, or move this run's folder away and back up again.",
        ) from error


@contextmanager
def _new_file(target: Path) -> Iterator[IO[bytes]]:
    """A file that becomes ``target``, whole and durable, when the context ends well."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w+b") as file:
            os.fchmod(handle, 0o600)
            yield file
            os.fsync(handle)
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"writing {target}",
            expected="room for the backup",
            got=error.strerror or str(error),
            hint="Make that folder first."
            if error.errno == errno.ENOENT
            else "Free space, or write it to another disk.",
        ) from error


def _verify(file: IO[bytes]) -> None:
    """Read a written backup once more."""
    listed: dict[str, tuple[int, str]] | None = None
    found = {}
    for member in read_members(file):
        if member.name == LIST:
            _, listed = parse_list(member.read(MAX_LIST_BYTES))
        else:
            found[member.name] = (member.size, _sha256(member.pieces()))
    if listed != found:
        raise StorageError(
            "backup",
            expected="the file to hold what was just written to it",
            got="other content",
            hint="The disk is damaged: write the backup to another one.",
        )


def _unpack(path: Path, file: IO[bytes]) -> BackupFacts:
    listed: dict[str, tuple[int, str]] | None = None
    found: dict[str, tuple[int, str]] = {}
    for member in read_members(file):
        if listed is not None:
            raise DecodeError(
                "backup", expected=f"{LIST} as its last file", got=f"{member.name[:80]} after that"
            )
        if member.name == LIST:
            facts, listed = parse_list(member.read(MAX_LIST_BYTES))
            continue
        if member.name.partition("/")[0] not in (*_TOP, "secrets"):
            raise DecodeError("backup", expected="the files of a server's folder", got=member.name[:80])
        target = path / (".server.toml.restored" if member.name == "server.toml" else member.name)
        for parent in reversed([p for p in target.parents if not p.exists()]):
            parent.mkdir()
            parent.chmod(0o700)
        digest = hashlib.sha256()
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as out:
            os.fchmod(handle, 0o600)
            for piece in member.pieces():
                digest.update(piece)
                out.write(piece)
            out.flush()
            os.fsync(handle)
        found[member.name] = (member.size, digest.hexdigest())
    if listed != found or "server.toml" not in found:
        wrong = sorted(
            name for name in {*found, *(listed or {})} if found.get(name) != (listed or {}).get(name)
        )
        raise DecodeError(
            "backup",
            expected=f"every file that {LIST} lists",
            got=f"{len(wrong)} that differ, such as {wrong[0]}" if wrong else "no server.toml",
            hint="It was cut off or altered: take another backup.",
        )
    for inner in ("runs", "logs"):
        (path / inner).mkdir(mode=0o700, exist_ok=True)
    for folder, _, _ in os.walk(path):
        sync_folder(Path(folder))
    if (path / "runs.json").exists():
        RunQueue(path / "runs.json", path / "runs").mark_restored()
    (path / ".server.toml.restored").rename(path / "server.toml")
    sync_folder(path)
    size = sum(size for size, _ in found.values())
    return BackupFacts(
        str(facts["created"]), str(facts["version"]), "secrets/ca.pem" in found, len(found), size
    )


def _sha256(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
