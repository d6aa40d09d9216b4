"""The file of :class:`headwater.server.workspace.registry.ClientRegistry`: read whole, replaced whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headwater.errors import HeadwaterError, StorageError
from headwater.locks import lock_file, take
from headwater.security.keyfiles import write_secret
from headwater.security.signing import PublicIdentity

_REPAIR = "Put back a copy of it from a backup."


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """One enrolled client; times are ISO 8601 in UTC."""

    public: PublicIdentity
    accepted_at: str
    revoked_at: str | None = None


@dataclass(frozen=True)
class Enrolled:
    """What the file holds: clients by sorted name, and hashes of keys that must never come back."""

    clients: Mapping[str, ClientRecord] = field(default_factory=lambda: MappingProxyType({}))
    retired: frozenset[str] = frozenset()


class RegistryFile:
    """The file, and what it held when it was last looked at.

    The file that was read is held open: its inode cannot be given to another file meanwhile, so a
    replacement never looks like what it replaced, whatever the clock says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._who = f"registry {path}"
        self._handle: int | None = None
        self._seen: tuple[int, ...] | None = None

    def changed(self) -> bool:
        """Whether the file is another one than was read last; one ``stat``."""
        try:
            return _identity(self._path.stat()) != self._seen
        except OSError:
            return self._seen is not None

    def read(self, known: Enrolled) -> Enrolled:
        """The content; an absent file that never was there is an empty one.

        Args:
            known: records whose keys need no check again, which is what takes long.

        Raises:
            StorageError: it is damaged, gone, or cannot be read.
        """
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if self._handle is None:
                return Enrolled()
            self._seen = None
            raise StorageError(
                self._who, expected="the file that was there before", got="no file", hint=_REPAIR
            ) from None
        except OSError as error:
            raise StorageError(self._who, expected="a readable file", got=str(error), hint=_REPAIR) from error
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._seen = handle, _identity(os.fstat(handle))
        try:
            with os.fdopen(os.dup(handle), "rb") as file:
                return _parse(json.loads(file.read()), known.clients)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HeadwaterError) as error:
            raise StorageError(
                self._who,
                expected="the list as it was written",
                got=f"a damaged file ({error})",
                hint=_REPAIR,
            ) from error

    def write(self, content: Enrolled) -> None:
        """Replace the file, durably, with rights 0600.

        Raises:
            StorageError: it cannot be written; the old one is intact.
        """
        rows = [
            {
                "name": record.public.name,
                "signing_key": record.public.signing_key.hex(),
                "node_key": record.public.node_key.decode(),
                "accepted_at": record.accepted_at,
                "revoked_at": record.revoked_at,
            }
            for _, record in sorted(content.clients.items())
        ]
        text = json.dumps({"format": 1, "clients": rows, "retired": sorted(content.retired)}, indent=1)
        write_secret(self._path, text.encode() + b"\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process that asks changes the file meanwhile; waits for one that does.

        Raises:
            StorageError: the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                lock = self._path.with_name(f".{self._path.name}.lock")
                handle = stack.enter_context(lock_file(lock, mode=0o600))
            except OSError as error:
                got = error.strerror or str(error)
                raise StorageError(self._who, expected="a folder that can be written", got=got) from error
            take(handle, wait=True)
            yield

    def close(self) -> None:
        """Let go of the file that was read last."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    __del__ = close


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _parse(raw: Any, known: Mapping[str, ClientRecord]) -> Enrolled:  # noqa: ANN401 - JSON, checked here
    if raw["format"] != 1:
        raise ValueError(f"format {raw['format']!r}")
    clients: dict[str, ClientRecord] = {}
    for row in raw["clients"]:
        name, signing_key, node_key = row["name"], bytes.fromhex(row["signing_key"]), row["node_key"].encode()
        before = known.get(name)
        if before and (before.public.signing_key, before.public.node_key) == (signing_key, node_key):
            public = before.public
        else:
            public = PublicIdentity(name, signing_key, node_key)
        if name in clients:
            raise ValueError(f"{name} twice")
        accepted, revoked = row["accepted_at"], row["revoked_at"]
        if not isinstance(accepted, str) or not isinstance(revoked, str | None):
            raise ValueError(f"times of {name}")
        clients[name] = ClientRecord(public, accepted, revoked)
    return Enrolled(MappingProxyType(dict(sorted(clients.items()))), frozenset(map(str, raw["retired"])))
