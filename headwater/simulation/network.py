"""LocalNetwork: a real deployment on one machine: a daemon, its agents, TLS between them, all processes.

What ``headwater simulate --engine network`` runs, and what tests and fault injection stand on. Nothing
here is part of the product's way of working: it does by calls and files what people do by commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headwater.bits import Bits, environment
from headwater.config import LoadedFederation
from headwater.config.agent import NAME
from headwater.config.assignment import simulated_memory_mb
from headwater.config.data import NoData
from headwater.data.files.formats import read_rows
from headwater.data.partition import partition
from headwater.errors import ConnectionLost, DataError, FederationStopped
from headwater.proto.control import ControlClient
from headwater.protocol.control import RunRow
from headwater.security.enrolment import make_request, read_request
from headwater.security.signing import Identity
from headwater.seeds.keys import Key
from headwater.server.workspace.workspace import Workspace
from headwater.simulation.local_ports import free_ports, move_to_free_ports

STARTS_WITHIN_S = 120.0


@dataclass
class LocalProcess:
    """A process of a command; its output goes to ``log``.

    Args:
        command: after ``headwater``; it ends when this process does.
        log: appended to at every start.
        environment: on top of this process's.
        prefix: of the whole command, to run it elsewhere: ``ip netns exec NAME``.
        bits: the mode that it starts in.
    """

    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    bits: Bits = "machine"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; a group of its own, so that its children can be counted and ended."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # -P: a folder called headwater where the user stands is not what is to run
                [
                    *self.prefix,
                    sys.executable,
                    "-P",
                    "-m",
                    "headwater.cli.child",
                    str(os.getpid()),
                    *self.command,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(self.bits, {**os.environ, **self.environment}),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self.process is None:
            raise FederationStopped(self.command[0], expected="a running process", got="one not started")
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; with SIGKILL, wait for its end. Its children are not told."""
        if self.alive:
            os.kill(self.pid, number)
            if number == signal.SIGKILL and self.process is not None:
                self.process.wait()

    def end(self, within_s: float = 30.0) -> int | None:
        """SIGTERM, and SIGKILL if that does not help; the exit code."""
        if self.process is None:
            return None
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(within_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what a killed agent may have left
        return code

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class LocalNetwork:
    """A server's workspace and devices below one folder. Use it as a context: it ends every process.

    Args:
        folder: holds ``server/`` and one folder per device. New or empty, or one that an earlier process
            made: then its devices are there again, not started.
        ports: fleet, control and web; free ones if absent.
        names: further ones under which devices reach the server.
        host: this machine's address, as in ``host:port``: ``[::1]`` for IPv6.
        plugins: kinds of installed packages that daemon and devices allow.
        bits: the mode of the daemon's runs.
    """

    def __init__(
        self,
        folder: Path,
        ports: tuple[int, int, int] | None = None,
        names: Sequence[str] = (),
        host: str = "127.0.0.1",
        plugins: Sequence[str] = (),
        bits: Bits = "machine",
    ) -> None:
        self.folder, self._plugins = folder, tuple(plugins)
        reopened = (folder / "server" / "server.toml").exists()
        self.ports = ports or (move_to_free_ports(folder) if reopened else free_ports())
        self._fleet, self._control = (f"{host}:{port}" for port in self.ports[:2])
        self._reached_as = f"localhost:{self.ports[0]}" if host == "127.0.0.1" else self._fleet
        self.workspace = (
            Workspace.open(folder / "server")
            if reopened
            else Workspace.init(
                folder / "server",
                names=["localhost", "127.0.0.1", host.strip("[]"), *names],
                fleet=self._fleet,
                control=self._control,
                web=f"127.0.0.1:{self.ports[2]}",
                plugins=plugins,
                bits=bits,
            )
        )
        self.daemon = LocalProcess(
            ["server", "run", str(self.workspace.path)],
            folder / "daemon.log",
            bits=self.workspace.settings.bits,
        )
        self.agents: dict[str, LocalProcess] = {}
        for home in sorted((folder / "devices").glob("*")) if reopened else ():
            self.agents[home.name] = _agent(home)

    def __enter__(self) -> LocalNetwork:
        return self

    def __exit__(self, *error: object) -> None:
        for agent in self.agents.values():
            agent.kill(signal.SIGTERM)
        for process in (*self.agents.values(), self.daemon):
            process.end()

    # --- devices ----------------------------------------------------------------------------------

    def add_device(
        self,
        name: str,
        data: Path,
        models: Sequence[Path] = (),
        *,
        accept: bool = True,
        policy: str = "",
        simulated_memory_mb: int | None = None,
        server: str | None = None,
    ) -> LocalProcess:
        """A device with keys of its own, enrolled unless told otherwise; not started.

        Args:
            name: of the client.
            data: its file.
            models: folders with base models.
            accept: enrol it.
            policy: lines of its ``[policy]``.
            simulated_memory_mb: play a device with so much memory.
            server: address, where it is not the daemon's own (a proxy).
        """
        home = self.folder / "devices" / name
        home.mkdir(parents=True)
        (home / "ca.pem").write_bytes(self.workspace.credentials.ca())
        simulated = f"simulated_memory_mb = {simulated_memory_mb}\n" if simulated_memory_mb else ""
        (home / "agent.toml").write_text(
            f"name = {json.dumps(name)}\n"
            f"server = {json.dumps(server or self._reached_as)}\n"
            f"{simulated}"
            f"[data]\npath = {json.dumps(str(data.resolve()))}\n"
            f"[models]\nfolders = {json.dumps([str(m.resolve()) for m in models])}\n"
            f"[policy]\nnice = 0\n{policy}\n"
            + (f"[plugins]\nallow = {json.dumps(list(self._plugins))}\n" if self._plugins else "")
        )
        identity = Identity.create(name)
        identity.save(home / "state" / "keys")
        if accept:
            self.workspace.registry().accept(read_request(make_request(identity)))
        agent = self.agents[name] = _agent(home)
        return agent

    def add_owners(self, loaded: LoadedFederation, only: Sequence[str] | None = None) -> None:
        """One device for each of the federation's clients, with that client's rows and nobody else's.

        Args:
            loaded: the federation.
            only: those of its clients; all if None.

        Raises:
            DataError: a client's name that no device can be enrolled under.
        """
        model = getattr(loaded.settings.model, "path", None)
        models = [loaded.path(model)] if model is not None else []
        data = split_data(loaded, self.folder / "data")
        settings = loaded.settings
        memory = simulated_memory_mb(settings.assignment, list(data), settings.federation.seed)
        for name, path in data.items():
            if only is not None and name not in only:
                continue
            self.add_device(name, path, models, simulated_memory_mb=memory.get(name))

    # --- the organiser ----------------------------------------------------------------------------

    def control(self) -> ControlClient:
        """The organiser's side; close it."""
        credentials = self.workspace.credentials
        certificate, key = credentials.organiser()
        return ControlClient(self._control, credentials.ca(), certificate, key)

    def start_daemon(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            FederationStopped: it does not.
        """
        self.daemon.start()
        ends_s = time.monotonic() + STARTS_WITHIN_S
        while self.daemon.alive and time.monotonic() < ends_s:
            with contextlib.suppress(ConnectionLost), self.control() as control:
                control.status()
                return
            time.sleep(0.1)
        raise FederationStopped("daemon", expected="it to answer", got="silence", hint=self.daemon.tail())

    def submit(self, loaded: LoadedFederation) -> str:
        """Submit the federation with all enrolled devices as its cohort; the run's id."""
        with self.control() as control:
            return control.submit(loaded.to_toml(), loaded.folder).run

    def watch(self, run: str, within_s: float) -> Iterator[RunRow]:
        """The run as it goes on, until it has ended; the daemon may be away in between.

        Raises:
            FederationStopped: it has not ended within the time.
        """
        ends_s = time.monotonic() + within_s
        row = None
        while time.monotonic() < ends_s:
            with contextlib.suppress(ConnectionLost), self.control() as control:
                row = next(r for r in control.status().runs if r.run == run)
                yield row
                if row.state in ("finished", "stopped", "failed"):
                    return
            time.sleep(0.2)
        raise FederationStopped(
            f"run {run}", expected=f"its end within {within_s:g} s", got=str(row), hint=self.daemon.tail()
        )

    def run_folder(self, run: str) -> Path:
        """What the daemon writes of it."""
        return self.workspace.runs / run


def split_data(loaded: LoadedFederation, folder: Path) -> dict[str, Path]:
    """Each client's rows as a JSONL file of its own, in the order in which a simulation sees them.

    Raises:
        DataError: as :meth:`headwater.data.federated.FederatedData.open`, and a client's name that no device
            can be enrolled under.
    """
    settings = loaded.settings.data
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(settings, NoData):
        nothing = folder / "nothing.jsonl"
        nothing.touch()
        width = max(4, len(str(settings.clients - 1)))
        return {f"client-{i:0{width}}": nothing for i in range(settings.clients)}
    table = read_rows(loaded.path(settings.path), settings.split)
    key = Key.root(loaded.settings.federation.seed).child("partition")
    paths, parts = {}, partition(table, settings.partition, settings.group_column, key)
    if wrong := [name for name in parts if not NAME.fullmatch(name)]:
        raise DataError(
            f"client {wrong[0][:80]!r}",
            expected="a name for a device: 1 to 64 of letters, digits, '.', '_' and '-'",
            got=f"{len(wrong)} others in the data",
            hint="Rename the owners, or use the engine inprocess.",
        )
    for name, rows in parts.items():
        paths[name] = folder / f"{name}.jsonl"
        with paths[name].open("w", encoding="utf-8") as file:
            for row in rows:
                values = {column: cells[row] for column, cells in table.columns.items()}
                file.write(json.dumps({k: v for k, v in values.items() if v is not None}, default=str) + "\n")
    return paths


def _agent(home: Path) -> LocalProcess:
    return LocalProcess(["client", "run", str(home / "agent.toml")], home / "agent.out")
