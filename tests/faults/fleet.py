"""Fleet: a living daemon and its agents as processes, and :class:`Trial`: one run on them under faults."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from headwater.config import load_federation
from headwater.errors import HeadwaterError
from headwater.protocol.control import RunRow, Status
from headwater.simulation.network import LocalNetwork, LocalProcess
from tests.faults.proxy import Proxy
from tests.support.runs import run as simulated_run
from tests.support.runs import tiny_federation

FAR_HOST = "10.219.77.1"
"""This machine, as a device in a network namespace of the tests sees it."""
ENDS_WITHIN_S = 150.0
VECTOR = """
[federation]
name = "{name}"
rounds = {rounds}
seed = 3
[model]
kind = "vector"
size = {size}
[data]
kind = "none"
clients = {clients}
[training]
kind = "noop"
[codec.up]
kind = "{codec}"
[cohort]
min_clients = {least}
retry_s = 1.0
{more}
"""


def vector(
    rounds: int = 12,
    *,
    codec: str = "compeft",
    least: int = 3,
    more: str = "",
    clients: int = 3,
    size: int = 200_000,
) -> str:
    """A federation of clients without data: 800 kB go down, 14 kB up (800 kB if dense)."""
    return VECTOR.format(
        name="faults", rounds=rounds, codec=codec, least=least, more=more, clients=clients, size=size
    )


@cache
def truth(toml: str, folder: str = "") -> tuple[dict[int, str], str]:
    """What ``headwater simulate`` makes of it: every round's state and the adapter, as hashes."""
    home = Path(tempfile.mkdtemp(prefix="truth-"))
    file = Path(folder or home) / f"simulated-{home.name}.toml"
    try:
        file.write_text(toml)
        summary, _ = simulated_run(file, home / "out")
        return states(home / "out" / "rounds.jsonl"), summary["adapter_sha256"]
    finally:
        file.unlink(missing_ok=True)
        shutil.rmtree(home)


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of ``rounds.jsonl``."""
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return []


def states(path: Path) -> dict[int, str]:
    return {row["round"]: row["state_sha256"] for row in lines(path)}


class Fleet:
    """Three owners' agents and a daemon; the last owner's traffic goes through ``proxy``.

    Args:
        folder: new.
        rows: the folder of a tiny federation whose owners' rows the devices have; none if absent.
        disk_mb: the server's folder is a file system of its own of this size, where that is allowed.
        toml: the federation, if not that of ``rows`` or a small one without data.
        host: the server's address; with one of one's own no traffic goes through ``proxy``.
    """

    def __init__(
        self,
        folder: Path,
        rows: Path | None = None,
        disk_mb: int = 0,
        toml: str = "",
        host: str = "",
    ) -> None:
        self.folder, self.rows = folder, rows
        self._mounts: list[Path] = []
        folder.mkdir(parents=True)
        if disk_mb:
            (folder / "server").mkdir()
            self.mount(folder / "server", disk_mb)
        self.network = LocalNetwork(folder, names=[FAR_HOST], host=host or "127.0.0.1")
        file = self.network.workspace.settings_file
        file.write_text(file.read_text().replace("adapters = 64", "adapters = 3"))
        self.proxy = Proxy(self.network.ports[0])
        self.federation = toml or ((rows / "federation.toml").read_text() if rows else vector())
        source = folder / "source" if rows is None else rows
        source.mkdir(exist_ok=True)
        self.source = source
        (source / "enrol.toml").write_text(self.federation)
        self.network.add_owners(load_federation(source / "enrol.toml"))
        self.names = sorted(self.network.agents)
        if not host:
            self.readdress(self.names[-1], f"localhost:{self.proxy.port}")

    def start(self) -> None:
        self.network.start_daemon()
        for agent in self.agents:
            agent.start()

    def close(self) -> None:
        for agent in self.agents:
            agent.kill(signal.SIGCONT)
        self.network.daemon.kill(signal.SIGCONT)
        self.network.__exit__()
        self.proxy.close()
        for path in self._mounts:
            subprocess.run(["umount", "-l", str(path)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def daemon(self) -> LocalProcess:
        return self.network.daemon

    @property
    def agents(self) -> list[LocalProcess]:
        return [self.network.agents[name] for name in self.names]

    def device(self, name: str) -> Path:
        return self.folder / "devices" / name

    def mount(self, path: Path, megabytes: int) -> None:
        """A small file system of its own over an empty folder."""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(path)], check=True
        )
        self._mounts.append(path)

    def unmount(self, path: Path) -> None:
        subprocess.run(["umount", "-l", str(path)], check=True)
        self._mounts.remove(path)

    def readdress(self, name: str, server: str) -> None:
        """The device reaches its server under another address from its next start on."""
        file = self.device(name) / "agent.toml"
        rows = file.read_text().splitlines()
        file.write_text("\n".join(f"server = {server!r}" if r.startswith("server =") else r for r in rows))

    def worker(self, agent: LocalProcess) -> int | None:
        """Process id of the agent's child that has model and data."""
        for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"worker_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return self._worker_of_threads(agent)

    def _worker_of_threads(self, agent: LocalProcess) -> int | None:
        for task in Path(f"/proc/{agent.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text().split():
                    if b"worker_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        return None

    def said(self) -> int:
        """Updates that all agents have sent so far, by their own logs."""
        count = 0
        for name in self.names:
            for path in (self.device(name) / "state").glob("agent.log*"):
                count += path.read_text(errors="replace").count(" train: answered, ")
        return count

    def status(self) -> Status | None:
        """None while the daemon is away."""
        with contextlib.suppress(HeadwaterError), self.network.control() as control:
            return control.status()
        return None

    def restart_daemon(self) -> None:
        """Start it, if it does not run; without waiting."""
        if not self.daemon.alive:
            self.daemon.end()
            self.daemon.start()

    def restart(self, agent: LocalProcess) -> None:
        if not agent.alive:
            agent.end()
            agent.start()


class Trial:
    """One run.

    Args:
        fleet: alive.
        toml: the federation; its own if empty.
        wait: until all three are online before it is submitted.
    """

    def __init__(self, fleet: Fleet, toml: str = "", *, wait: bool = True) -> None:
        self.fleet, self.toml = fleet, toml or fleet.federation
        file = fleet.source / "submitted.toml"
        file.write_text(self.toml)
        self._loaded = load_federation(file)
        if wait:
            eventually(self._all_online, 60, "all agents online")
        self._said = fleet.said()
        self.run = fleet.network.submit(self._loaded)
        self.folder = fleet.network.run_folder(self.run)
        self.state = self.folder / "state"

    def _all_online(self) -> bool:
        status = self.fleet.status()
        return status is not None and sum(c.state == "online" for c in status.clients) >= 3

    # --- where it is --------------------------------------------------------------------------------

    @property
    def round(self) -> int:
        """Number of the last line in ``rounds.jsonl``; -1 before the first."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "rounds.jsonl").read_bytes().count(b"\n") - 1
        return -1

    @property
    def saved(self) -> int:
        """Round of the checkpoint; -1 before the first."""
        with contextlib.suppress(FileNotFoundError):
            with (self.state / "checkpoint.safetensors").open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size))
            return int(json.loads(header["__metadata__"]["headwater"])["round"])
        return -1

    @property
    def open_round(self) -> int:
        """The round that is open by its record; 0 if none is."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(json.loads((self.state / "open_round.json").read_text())["round"])
        return 0

    def spool(self, number: int | None = None) -> list[Path]:
        """Replies in the spool: of this round, or of any."""
        start = "" if number is None else f"{number:06d}-"
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.state / "spool")  # noqa: PTH208 - quicker: it is polled
            return [self.state / "spool" / n for n in names if n.startswith(start) and n.endswith(".reply")]
        return []

    def row(self) -> RunRow | None:
        status = self.fleet.status()
        return None if status is None else next((r for r in status.runs if r.run == self.run), None)

    def reach(self, number: int, within_s: float = 120.0) -> None:
        """Wait for the end of this round."""
        eventually(lambda: self.round >= number, within_s, f"round {number}")

    # --- its end ------------------------------------------------------------------------------------

    def end(self, within_s: float = ENDS_WITHIN_S) -> dict[str, Any]:
        """Wait until it has ended; its summary."""
        *_, row = self.fleet.network.watch(self.run, within_s)
        assert row.state == "finished", f"{row}\n{self.fleet.daemon.tail(40)}"
        return dict(json.loads((self.folder / "summary.json").read_text()))

    def ends_right(self, within_s: float = ENDS_WITHIN_S) -> dict[str, Any]:
        """Wait until it has ended, with every round's state and the adapter as in an undisturbed simulation.

        Returns:
            What is worth a place in the table.
        """
        summary = self.end(within_s)
        every_state, adapter = truth(self.toml, str(self.fleet.rows or ""))
        found = lines(self.folder / "rounds.jsonl")
        assert [row["round"] for row in found] == list(range(len(every_state)))  # none missing, none twice
        assert states(self.folder / "rounds.jsonl") == every_state
        assert summary["adapter_sha256"] == adapter
        trainings = sum(len(row["clients"]) for row in found)
        return {
            "rounds": len(every_state) - 1,
            "adapter": adapter[:12],
            "sent_again": max(0, self.fleet.said() - self._said - trainings),
        }


def eventually(condition: Callable[[], object], within_s: float, what: str, every_s: float = 0.0005) -> None:
    """Wait for it, looking often: the moments that count are milliseconds long."""
    ends_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > ends_s:
            raise AssertionError(f"{what}: not within {within_s:g} s")
        time.sleep(every_s)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def tiny_rows(folder: Path) -> Path:
    """A federation over a tiny BERT that really trains, for a fleet of the same owners."""
    tiny_federation(
        folder,
        federation={"rounds": 4},
        cohort={"min_clients": 3, "retry_s": 1.0},
        training={"epochs": 4.0},
    )
    return folder
