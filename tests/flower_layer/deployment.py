"""A real server on loopback (TLS, uvicorn in a thread) with clients: what the tests here stand on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from headwater import __version__
from headwater.flower import pack
from headwater.flower.fleet_client import FleetClient
from headwater.flower.fleet_server import FleetServer
from headwater.security.certificates import Authority
from headwater.security.signing import Identity, PublicIdentity
from headwater.server.agent_port.connection_limits import LimitedServer
from headwater.server.agent_port.request_auth import Limits, RequestAuthenticator
from headwater.server.http_protocol import fleet_port

MAX_REPLY = 8 * 2**20


@dataclass
class Row:
    public: PublicIdentity
    revoked_at: str | None = None


class Registry(dict):
    """As much of the registry as the request authenticator asks for."""

    def add(self, identity: Identity) -> Row:
        self[identity.name] = Row(identity.public)
        return self[identity.name]


@dataclass
class Server:
    """A daemon's fleet port; ``restart`` loses everything but the registry, as a daemon would."""

    folder: Path
    registry: Registry = field(default_factory=Registry)
    limits: Limits = field(default_factory=Limits)
    max_reply: int = MAX_REPLY
    clock: object = time.time
    port: int = 0

    def __post_init__(self):
        authority = Authority.create("test")
        self.ca = authority.certificate_pem
        certificate, key = authority.issue_server(["127.0.0.1"])
        self.certificate, self.key = self.folder / "server.pem", self.folder / "server.key"
        self.certificate.write_bytes(certificate)
        self.key.write_bytes(key)
        self.start()

    def start(self):
        self.link = FleetServer(max_reply_bytes=lambda name: self.max_reply)
        for name, row in self.registry.items():
            if row.revoked_at is None:
                self.link.register(name, row.public.node_key)
        self.authenticator = RequestAuthenticator(
            self.link.app, self.link, self.registry, self.limits, clock=self.clock
        )
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = fleet_port(
            self.authenticator, host="127.0.0.1", port=self.port, certificate=self.certificate, key=self.key
        )
        self.uvicorn = LimitedServer(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([listener],), daemon=True)
        self.thread.start()
        wait_for(lambda: self.uvicorn.started)

    def stop(self):
        self.uvicorn.should_exit = self.uvicorn.force_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def restart(self):
        self.stop()
        self.start()

    def certificate_of_authority(self, folder: Path) -> Path:
        path = folder / "ca.pem"
        path.write_bytes(self.ca)
        return path

    def enrol(self, name: str) -> Identity:
        identity = Identity.create(name)
        self.registry.add(identity)
        self.link.register(name, identity.public.node_key)
        return identity

    def connect(self, identity: Identity, *, version: str = __version__, **more) -> FleetClient:
        return FleetClient(f"127.0.0.1:{self.port}", self.ca, identity, version=version, timeout_s=60, **more)

    def send(self, name: str, *, kind: str = "train", **parts: bytes) -> str:
        """One request to ``name``; its id."""
        message = Message(pack(**parts), self.link.node_of(name), kind)
        (message_id,) = self.link.grid.push_messages([message])
        assert message_id is not None
        return message_id

    def pull(self, *ids: str) -> list[Message]:
        return list(self.link.grid.pull_messages(list(ids)))


@contextlib.contextmanager
def running(folder: Path, **more):
    server = Server(folder, **more)
    try:
        yield server
    finally:
        server.stop()


def wait_for(condition, seconds: float = 60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)
