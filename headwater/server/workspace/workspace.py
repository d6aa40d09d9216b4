"""Workspace: the folder of one server, made by ``headwater server init`` and held by its daemon.

::

    server.toml        names, ports, limits, retention; see headwater/config/daemon.py
    federation.toml    a federation to begin with; a run keeps its own copy
    clients.json       who is enrolled
    seen.json          when each client was last heard of
    runs.json          the runs, in the order in which they were submitted
    runs/ID/           a run: checkpoint, spool, adapter versions, result
    secrets/           keys and certificates; see headwater/server/workspace/credentials.py
    logs/daemon.log    and older ones
    lock               held by the daemon; its process id

The folder is 0700 and the secrets are 0600, whatever the umask.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from headwater.bits import Bits
from headwater.config.daemon import DaemonSettings, check_daemon, daemon_toml, load_daemon
from headwater.errors import ConfigError, StorageError
from headwater.security.keyfiles import write_secret
from headwater.server.workspace.credentials import Credentials
from headwater.server.workspace.lock import FolderLock
from headwater.server.workspace.registry import ClientRegistry

_OF_THE_DISK = "lost+found"
"""In the root of a file system that is empty."""
TEMPLATE = Path(__file__).parent / "templates" / "federation.toml"


@dataclass(frozen=True)
class Workspace:
    """A server's folder. :meth:`open` checks it, :meth:`init` makes one."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """``server.toml``."""
        return self.path / "server.toml"

    @property
    def federation(self) -> Path:
        """``federation.toml``, what ``headwater server submit`` takes unless told otherwise."""
        return self.path / "federation.toml"

    @property
    def clients(self) -> Path:
        """``clients.json``, of :class:`ClientRegistry`."""
        return self.path / "clients.json"

    @property
    def last_seen(self) -> Path:
        """``seen.json``, of :class:`headwater.server.workspace.last_seen.LastSeen`."""
        return self.path / "seen.json"

    @property
    def runs_book(self) -> Path:
        """``runs.json``, of :class:`headwater.server.workspace.run_queue.RunQueue`."""
        return self.path / "runs.json"

    @property
    def runs(self) -> Path:
        """The folder of the runs' folders."""
        return self.path / "runs"

    @property
    def log(self) -> Path:
        """The daemon's newest log file."""
        return self.path / "logs" / "daemon.log"

    @property
    def credentials(self) -> Credentials:
        """``secrets/``."""
        return Credentials(self.path / "secrets")

    @cached_property
    def settings(self) -> DaemonSettings:
        """``server.toml`` as it stood when it was first asked for.

        Raises:
            ConfigError: it is absent or wrong.
        """
        return load_daemon(self.settings_file)

    @staticmethod
    def init(
        path: Path,
        *,
        names: Sequence[str] = ("localhost",),
        name: str = "headwater",
        fleet: str | None = None,
        control: str | None = None,
        web: str | None = None,
        federation: str | None = None,
        plugins: Sequence[str] = (),
        bits: Bits = "machine",
    ) -> Workspace:
        """Make the folder, a new authority and all keys.

        Args:
            path: absent or empty.
            names: DNS names and addresses under which agents reach the server.
            name: of the authority, for people.
            fleet: ``HOST:PORT``, as the others, see :class:`headwater.config.daemon.Listen`.
            control: likewise.
            web: likewise.
            federation: text of ``federation.toml``; a commented template if absent.
            plugins: kinds of installed packages that its runs may use.
            bits: the mode of its runs.

        Raises:
            ConfigError: a name or an address is wrong, or ``path`` is not empty.
            StorageError: it cannot be written; nothing is left of it.
        """
        addresses = {"fleet": fleet, "control": control, "web": web}
        listen = {"names": list(names), **{k: v for k, v in addresses.items() if v is not None}}
        tables: dict[str, object] = {"name": name, "listen": listen, "plugins": {"allow": list(plugins)}}
        tables["bits"] = bits
        settings = check_daemon(tables, "headwater server init")
        text = TEMPLATE.read_text(encoding="utf-8") if federation is None else federation
        new = not path.exists()
        make_private_folder(path)
        workspace = Workspace(path)
        try:
            for inner in ("secrets", "runs", "logs"):
                make_private_folder(path / inner)
            workspace.credentials.create(settings.name, settings.listen.certificate_names())
            write_secret(workspace.federation, text.encode())
            write_secret(workspace.settings_file, daemon_toml(settings).encode())
        except BaseException:
            empty_folder(path)
            if new:
                with suppress(OSError):
                    path.rmdir()
            raise
        return workspace

    @staticmethod
    def open(path: Path) -> Workspace:
        """The folder, once it is found in order; :meth:`notices` has what needs care soon.

        Raises:
            ConfigError: not such a folder, or ``server.toml`` is wrong.
            StorageError: others may read what is secret, a secret is missing or damaged, or the
                server's certificate has ended.
        """
        workspace = Workspace(path)
        if not workspace.settings_file.exists():
            raise ConfigError(
                f"server folder {path}",
                expected="a folder made by headwater server init",
                got="a folder without server.toml" if path.is_dir() else "no folder",
                hint=f"Check the path, or make one: headwater server init {path}",
            )
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise StorageError(
                f"server folder {path}",
                expected="rights 0700, since it says who takes part, and holds keys",
                got=f"{mode:04o}",
                hint=f"Take the others' rights away: chmod 700 {path}",
            )
        _ = workspace.settings  # is it right?
        workspace.credentials.check(path)
        return workspace

    def notices(self) -> tuple[str, ...]:
        """What needs the organiser's care soon, one line each."""
        return self.credentials.notices(self.path, self.settings.listen.certificate_names())

    def registry(self) -> ClientRegistry:
        """The enrolled clients."""
        return ClientRegistry(self.clients)

    def locked(self) -> AbstractContextManager[None]:
        """Be the one daemon of this folder, until the context ends or the process dies.

        Raises:
            ConfigError: on entering: another process is; says which.
            StorageError: on entering: the folder cannot be written.
        """
        return FolderLock(self.path).held()

    def holder(self) -> int | None:
        """The process id of this folder's daemon; None if none is running, 0 if it has just begun."""
        return FolderLock(self.path).holder()


def make_private_folder(path: Path) -> None:
    """Make ``path`` with the rights 0700, whatever the umask; an empty one gets them.

    Raises:
        ConfigError: there is something in it, or it is a file.
        StorageError: it cannot be made.
    """
    try:
        for parent in reversed([p for p in path.parents if not p.exists()]):
            parent.mkdir(exist_ok=True)
            parent.chmod(0o755)  # nobody else may put another folder in its place
        path.mkdir(mode=0o700, exist_ok=True)
        names = sorted(entry.name for entry in path.iterdir() if entry.name != _OF_THE_DISK)
        if names:
            raise ConfigError(
                f"folder {path}",
                expected="a new or empty folder",
                got=f"one with {names[0]} in it" + (f" and {len(names) - 1} more" if names[1:] else ""),
                hint="Choose another: nothing is written over.",
            )
        path.chmod(0o700)
    except FileExistsError:
        raise ConfigError(
            f"folder {path}", expected="a folder", got="a file", hint="Choose another."
        ) from None
    except OSError as error:
        raise StorageError(
            f"folder {path}",
            expected="a place where this user may make a folder",
            got=error.strerror or str(error),
        ) from error


def empty_folder(path: Path) -> None:
    """Remove what has been made in a folder that was empty; as much of it as can be removed."""
    for entry in path.iterdir():
        if entry.is_dir():
            if entry.name != _OF_THE_DISK:
                shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink(missing_ok=True)
