"""A daemon as a process, with keys of every kind to attack it with: :class:`Grounds`."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from headwater import __version__
from headwater.client.agent.device_runtime import DeviceRuntimes
from headwater.client.agent.known_runs import KnownRuns
from headwater.client.execution.answer import answer
from headwater.client.execution.store import DirectoryStore
from headwater.config import LoadedFederation, load_federation
from headwater.errors import HeadwaterError
from headwater.flower.fleet_client import FleetClient
from headwater.proto.wire import decode_request, encode_signed
from headwater.protocol.messages import ProfileRequest
from headwater.security.enrolment import make_request, read_request
from headwater.security.signing import Identity
from headwater.simulation.network import LocalNetwork

HONEST = ("client-0000", "client-0001")
EVIL = "client-0002"
"""Enrolled, and in the cohort, like the honest ones."""
REVOKED, UNKNOWN = "gone", "stranger"

FEDERATION = """
[federation]
name = "attacked"
rounds = {rounds}
seed = 3
[model]
kind = "vector"
size = {size}
[data]
kind = "none"
clients = 3
[training]
kind = "noop"
[codec.up]
kind = "{codec}"
[strategy]
kind = "mean"
value_bound = 1.0
[cohort]
min_clients = 2
deadline_s = {deadline_s}
"""


@dataclass
class Answer:
    """What came back for one request; status 0: nothing, the connection was closed."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def shape(self) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
        """All that a caller can see of it but the time."""
        return self.status, tuple(sorted((k, v) for k, v in self.headers.items() if k != "date")), self.body


@dataclass
class Grounds:
    """The daemon under attack; ``keys`` by name: enrolled, revoked, and never enrolled."""

    network: LocalNetwork
    folder: Path
    keys: dict[str, Identity] = field(default_factory=dict)

    @staticmethod
    @contextlib.contextmanager
    def open(folder: Path, **environment: str) -> Iterator[Grounds]:
        """Start a daemon with two honest clients, an evil one and a revoked one enrolled."""
        with LocalNetwork(folder / "net") as network:
            network.daemon.environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
            grounds = Grounds(network, folder)
            registry = network.workspace.registry()
            for name in (*HONEST, EVIL, REVOKED, UNKNOWN):
                identity = grounds.keys[name] = Identity.create(name)
                if name != UNKNOWN:
                    registry.accept(read_request(make_request(identity)))
            registry.revoke(REVOKED)
            network.start_daemon()
            yield grounds

    # --- the fleet port, byte by byte -------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.network.daemon.pid

    def tcp(self, port: int = 0, timeout: float = 60.0) -> socket.socket:
        """A bare connection; port 0, 1, 2: fleet, control, web."""
        return socket.create_connection(("127.0.0.1", self.network.ports[port]), timeout=timeout)

    def tls(self, *, timeout: float = 60.0, protocols: tuple[str, ...] = ()) -> ssl.SSLSocket:
        """A TLS connection to the fleet port, as an agent makes it."""
        context = ssl.create_default_context(cadata=self.network.workspace.credentials.ca().decode())
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context.wrap_socket(self.tcp(timeout=timeout), server_hostname="localhost")

    def exchange(self, data: bytes, *, timeout: float = 60.0) -> Answer:
        """Send bytes over a fresh TLS connection; what comes back for the first request in them."""
        with self.tls(timeout=timeout) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            return read_answer(connection)

    def request(self, name: str, path: str, body: bytes, *, key: Identity | None = None, **change) -> bytes:
        """A whole signed request as an agent sends it. ``change``: time_ms, instance, version, client, …

        ``key`` signs in the name of ``name``; further changes beginning with ``late_`` are made to the
        headers after signing.
        """
        identity = key or self.keys[name]
        late = {k.removeprefix("late_"): v for k, v in change.items() if k.startswith("late_")}
        facts = {k: v for k, v in change.items() if not k.startswith("late_")}
        facts = {
            "method": "POST",
            "path": path,
            "body": body,
            "instance": "5" * 32,
            "version": __version__,
            "now_ms": int(time.time() * 1000),
        } | facts
        headers = replace(identity).request_headers(**facts)
        headers["x-headwater-client"] = name
        headers |= {k.replace("_", "-"): v for k, v in late.items()}
        return http_request("POST", path, headers, body)

    def connect(self, name: str) -> FleetClient:
        """As the agent of ``name`` would."""
        credentials = self.network.workspace.credentials
        server = f"localhost:{self.network.ports[0]}"
        return FleetClient(server, credentials.ca(), self.keys[name], version=__version__, timeout_s=30)

    # --- what the organiser sees ------------------------------------------------------------------

    def status(self):
        with self.network.control() as control:
            return control.status()

    def refused(self) -> dict[str, int]:
        """Refusals so far, by reason."""
        return dict(self.status().refused)

    def facts(self) -> tuple[object, ...]:
        """All of the daemon's state but refusals, clocks and memory."""
        status = self.status()
        clients = tuple(replace(c, seen_s_ago=None, state="") for c in status.clients)
        registry = (self.network.workspace.path / "clients.json").read_bytes()
        runs = (self.network.workspace.path / "runs.json").read_text() if status.runs else ""
        return repr(status.runs), clients, status.errors, registry, runs  # NaN is not itself

    # --- runs -------------------------------------------------------------------------------------

    def federation(
        self, rounds: int, deadline_s: float = 20, size: int = 1024, codec: str = "dense"
    ) -> LoadedFederation:
        """A federation of the three clients without model or data."""
        folder = self.folder / f"fed-{time.monotonic_ns()}"
        folder.mkdir()
        text = FEDERATION.format(rounds=rounds, deadline_s=deadline_s, size=size, codec=codec)
        (folder / "federation.toml").write_text(text)
        return load_federation(folder / "federation.toml")

    def finish(self, run: str, within_s: float = 110):
        """Wait for the run's end: its row."""
        *_, row = self.network.watch(run, within_s)
        assert row.state == "finished", (row, self.network.daemon.tail(30))
        return row


class Device:
    """An honest client in this process: fetches, answers and signs as an agent does."""

    def __init__(self, grounds: Grounds, name: str, folder: Path) -> None:
        self.identity, self.connection = grounds.keys[name], grounds.connect(name)
        self.name, self.sent = name, []
        self._runs, self._runtimes = KnownRuns(folder / name), DeviceRuntimes(name, folder / "none")
        self._stop = threading.Event()
        self.errors: list[str] = []

    def reply_to(self, parts) -> bytes:
        """The reply to one request, not signed yet."""
        request = decode_request(parts["envelope"], parts["state"])
        if isinstance(request, ProfileRequest):
            joined = self._runs.join(request)
        else:
            joined = self._runs.get(request.run)
        runtime = self._runtimes.open(joined, None)
        return answer(parts["envelope"], parts["state"], self.name, DirectoryStore(joined.folder), runtime)

    def sealed(self, parts) -> bytes:
        """The signed reply, as it is sent."""
        reply = self.reply_to(parts)
        return encode_signed(reply, self.identity.sign_reply(reply))

    def handle(self, delivery) -> None:
        data = self.sealed(delivery.parts)
        self.sent.append(data)
        self.connection.reply(delivery, data)

    def step(self) -> bool:
        """Answer one request if there is one."""
        delivery = self.connection.receive()
        if delivery is not None:
            self.handle(delivery)
        return delivery is not None

    @contextlib.contextmanager
    def working(self) -> Iterator[Device]:
        """In a thread of its own until the context ends; what is lost is tried again, as an agent does."""
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(60)
            self.connection.close()

    def _work(self) -> None:
        up, beat = False, 0.0
        while not self._stop.is_set():
            try:
                if not up:
                    self.connection.activate()
                    up = True
                if time.monotonic() > beat:
                    self.connection.heartbeat()
                    beat = time.monotonic() + 20
                if not self.step():
                    self._stop.wait(0.05)
            except HeadwaterError as error:
                self.errors.append(str(error))
                up = False
                self._stop.wait(0.1)
        with contextlib.suppress(HeadwaterError):
            self.connection.deactivate()


def http_request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """The bytes of a request; content-length unless the headers say otherwise."""
    given = {k.lower() for k in headers}
    more = {} if {"content-length", "transfer-encoding"} & given else {"content-length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{k}: {v}" for k, v in ({"host": "localhost"} | headers | more).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def read_answer(connection: socket.socket) -> Answer:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return Answer(0, {}, b"")
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body)


def memory(pid: int, *, reset: bool = False) -> tuple[int, int]:
    """(VmRSS, VmHWM) of a process in KiB; ``reset`` lets the peak begin anew."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]), int(lines["VmHWM"].split()[0])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
