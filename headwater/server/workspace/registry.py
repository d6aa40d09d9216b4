"""Who is enrolled: :class:`ClientRegistry`, one file of names and public keys.

The daemon, and commands beside it, read and write the same file: it is replaced whole, under a lock, and
every reader sees a replacement at its next question. A key is enrolled at most once, ever: a revoked name
may come back, a revoked key may not.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from headwater.errors import ConfigError, HeadwaterError
from headwater.security.signing import PublicIdentity
from headwater.server.workspace.registry_file import ClientRecord, Enrolled, RegistryFile

__all__ = ["ClientRecord", "ClientRegistry"]

_LOG = logging.getLogger(__name__)


class ClientRegistry:
    """The enrolled clients in one file. Safe for threads and processes.

    Args:
        path: the file; absent means that nobody is enrolled yet.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[ClientRecord], None]] = []
        self._news: deque[ClientRecord] = deque()
        self._telling = threading.Lock()
        self._file = RegistryFile(path)
        self._content = self._file.read(Enrolled())
        self.problem = ""
        """Why the file's latest content is not in force; empty if it is."""

    def accept(self, public: PublicIdentity) -> ClientRecord:
        """Enrol a device.

        Raises:
            ConfigError: its name or one of its keys is or was enrolled.
            StorageError: the file cannot be written; nothing has changed.
        """
        with self._changing() as before:
            _require_new(public, before)
            retired, old = before.retired, before.clients.get(public.name)
            if old is not None:
                retired |= _digests(old.public)
            record = ClientRecord(public, _now())
            self._write(Enrolled(_with(before, record), retired))
        return record

    def revoke(self, name: str) -> ClientRecord:
        """End both keys of ``name``; does nothing more if they have ended.

        Raises:
            ConfigError: nobody of that name was ever enrolled.
            StorageError: the file cannot be written; nothing has changed.
        """
        with self._changing() as before:
            record = before.clients.get(name)
            if record is None:
                raise ConfigError(
                    f"client {name!r}",
                    expected="an enrolled name",
                    got="a name that nobody has",
                    hint="See who is enrolled: headwater server clients list DIR",
                )
            if record.revoked_at is None:
                record = replace(record, revoked_at=_now())
                self._write(Enrolled(_with(before, record), before.retired))
        return record

    def get(self, name: str) -> ClientRecord | None:
        """The record of ``name``, revoked or not; None if it was never enrolled."""
        return self.by_name().get(name)

    def by_name(self) -> Mapping[str, ClientRecord]:
        """All records, revoked ones too, sorted by name; read-only, and does not change any more."""
        self.refresh()
        return self._content.clients

    def on_change(self, callback: Callable[[ClientRecord], None]) -> None:
        """Call ``callback`` with each record that is accepted or revoked from now on.

        Also for changes of other processes, once this one looks: see :meth:`refresh`. Keys that have
        vanished from the file count as revoked. One call at a time, in order, in a thread that noticed a
        change, which holds no lock of the registry.
        """
        with self._lock:
            self._callbacks.append(callback)

    def refresh(self) -> None:
        """Take over what another process wrote. One ``stat`` if nothing did, so call it often.

        A damaged file changes nothing: it is named in :attr:`problem` and in the log.
        """
        if not self._file.changed():
            return
        with self._lock:
            if not self._file.changed():
                return
            try:
                after = self._file.read(self._content)
            except HeadwaterError as error:
                if self.problem != str(error):
                    _LOG.error("%s The clients known before stay in force.", error)
                self.problem = str(error)
                return
            self._apply(after)
        self._tell()

    @contextmanager
    def _changing(self) -> Iterator[Enrolled]:
        """The content under both locks: no thread and no process changes it meanwhile."""
        with self._lock, self._file.locked():
            if self.problem or self._file.changed():
                self._apply(self._file.read(self._content))
            yield self._content
        self._tell()

    def _write(self, content: Enrolled) -> None:
        self._file.write(content)
        self._apply(self._file.read(content))

    def _apply(self, after: Enrolled) -> None:
        """Make ``after`` the content and note what is new in it."""
        self.problem = ""
        before, self._content = self._content, after
        for name, old in before.clients.items():
            new = after.clients.get(name)
            if new is None or (new.public != old.public and old.revoked_at is None):
                self._news.append(replace(old, revoked_at=old.revoked_at or _now()))
        self._news += [r for name, r in after.clients.items() if before.clients.get(name) != r]

    def _tell(self) -> None:
        """Tell the callbacks what is new; never waits: a thread that is telling takes on what comes."""
        while self._news and self._telling.acquire(blocking=False):
            try:
                while self._news:
                    record = self._news.popleft()
                    for callback in tuple(self._callbacks):
                        try:
                            callback(record)
                        except Exception:  # the next one must hear of it all the same
                            _LOG.exception("after a change of client %s", record.public.name)
            finally:
                self._telling.release()


def _require_new(public: PublicIdentity, content: Enrolled) -> None:
    """Raise :class:`ConfigError` unless name and keys of ``public`` may be enrolled."""
    digests = _digests(public)
    new_keys = "Let the owner move state/keys away and make new ones: headwater client enroll CONFIG"
    for record in content.clients.values():
        other = record.public
        same = other.name.casefold() == public.name.casefold()  # names that differ in case confuse people
        if other == public and record.revoked_at is None:
            raise ConfigError(
                f"client {public.name}",
                expected="a device that is not enrolled yet",
                got=f"the one with the same keys, enrolled {record.accepted_at}",
                hint="Nothing is left to do: it may take part.",
            )
        if same and (record.revoked_at is None or other.name != public.name):
            raise ConfigError(
                f"client {public.name}",
                expected="a name that is free",
                got=f"{other.name}, enrolled {record.accepted_at}",
                hint="Let the owner choose another name, or first revoke the one who has it.",
            )
        if {public.signing_key, public.node_key} & {other.signing_key, other.node_key}:
            raise ConfigError(
                f"client {public.name}",
                expected="keys that no other client has or had",
                got=f"a key of {other.name}, which is {'revoked' if record.revoked_at else 'enrolled'}",
                hint=new_keys,
            )
    if digests & content.retired:
        raise ConfigError(
            f"client {public.name}", expected="new keys", got="a key that was revoked", hint=new_keys
        )


def _with(content: Enrolled, record: ClientRecord) -> Mapping[str, ClientRecord]:
    """The clients of ``content`` and ``record``, sorted."""
    clients = {**content.clients, record.public.name: record}
    return MappingProxyType(dict(sorted(clients.items())))


def _digests(public: PublicIdentity) -> frozenset[str]:
    return frozenset(hashlib.sha256(key).hexdigest() for key in (public.signing_key, public.node_key))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
