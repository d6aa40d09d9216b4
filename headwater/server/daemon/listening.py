"""The port that agents reach, for whoever serves them: the daemon, or an edge aggregator."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import uvicorn

from headwater.errors import ConfigError
from headwater.flower.fleet_server import FleetServer
from headwater.server.agent_port.connection_limits import LimitedServer
from headwater.server.workspace.registry import ClientRecord


def register(link: FleetServer, record: ClientRecord) -> None:
    """Let an enrolled client in, or a revoked one out."""
    if record.revoked_at is None:
        link.register(record.public.name, record.public.node_key)
    else:
        link.unregister(record.public.name)


class EnrolledNodes(Mapping[str, int]):
    """Flower's node id by client name, as it is now."""

    def __init__(self, link: FleetServer) -> None:
        self._link = link

    def __getitem__(self, name: str) -> int:
        node = self._link.node_of(name)
        if node is None:
            raise KeyError(name)
        return node

    def __iter__(self) -> Iterator[str]:
        return iter(self._link.online())

    def __len__(self) -> int:
        return len(self._link.online())


@contextmanager
def listening(config: uvicorn.Config) -> Iterator[tuple[threading.Thread, str]]:
    """Run uvicorn in a thread; yields it and the address that was really taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"fleet port {config.host}:{config.port}",
            expected="a free port",
            got=error.strerror or str(error),
            hint="Stop what uses it, or choose another in server.toml: [listen] fleet.",
        ) from None
    server = LimitedServer(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="fleet", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    if not server.started:
        listener.close()
        raise ConfigError(
            f"fleet port {config.host}:{config.port}",
            expected="a web server that starts with the keys in secrets/",
            got="an error, which logs/daemon.log has",
            hint="If the server's certificate or key is at fault, make new ones: headwater server renew DIR",
        )
    try:
        yield thread, "{}:{}".format(*listener.getsockname()[:2])
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
