"""Who may hold a connection to the fleet port: :class:`LimitedServer`, uvicorn with bounded connections.

A connection costs a file and some hundred KiB from the moment it is accepted, long before a request shows
whose it is; a server that accepts all comers until its files are used up shuts its own agents out. Here a
connection is *unauthenticated* until a request on it has been proven. Those have a fixed number of
places: where all are taken, the newest gets that of the oldest unauthenticated one, of the address that holds
most of them. So whoever crowds the port pushes out himself, and a connection that an agent has proven is
never given up for one that nobody has.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from headwater.server.http_protocol import DeadlineProtocol

UNAUTHENTICATED = 256
"""Connections at once on which no enrolled key was proven."""
EACH = 16
"""Connections at once of one client; an agent has five, and those of a broken line end with their time."""
HANDSHAKE_S = 5.0
"""Seconds for TLS to be agreed on."""
_FILES = 2**16
_PAUSE_S = 0.05


@dataclass(eq=False)
class _Connection:
    """One connection."""

    address: str
    task: asyncio.Task[None] | None = None
    protocol: DeadlineProtocol | None = None
    name: str = ""

    def leave(self) -> None:
        """Be ended, at once."""
        if self.protocol is not None and self.protocol.transport is not None:
            self.protocol.transport.abort()
        elif self.task is not None:
            self.task.cancel()


class ConnectionLimiter:
    """Accepts connections and keeps their number bounded. Lives in one event loop.

    Args:
        make_protocol: makes a protocol for a connection.
        config: whose TLS to speak.
    """

    def __init__(self, make_protocol: Callable[[], DeadlineProtocol], config: uvicorn.Config) -> None:
        self._make_protocol, self._config = make_protocol, config
        self._unauthenticated: dict[str, OrderedDict[_Connection, None]] = {}
        self._proven: dict[str, OrderedDict[_Connection, None]] = {}
        self._count = 0

    async def accept(self, listener: socket.socket) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError:  # no file left, or the peer is gone
                self._end_oldest()
                await asyncio.sleep(_PAUSE_S)
                continue
            connection = _Connection(network_of(address[0]))
            self._unauthenticated.setdefault(connection.address, OrderedDict())[connection] = None
            self._count += 1
            connection.task = loop.create_task(self._serve(connection, accepted))
            if self._count > UNAUTHENTICATED:
                self._end_oldest()

    async def _serve(self, connection: _Connection, accepted: socket.socket) -> None:
        def make_protocol() -> DeadlineProtocol:
            protocol = connection.protocol = self._make_protocol()
            protocol.proven = lambda name: self._prove(connection, name)
            protocol.ended = lambda: self._forget(connection)
            return protocol

        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                make_protocol, accepted, ssl=self._config.ssl, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (OSError, asyncio.CancelledError):  # it does not speak TLS with us, or had to go
            self._forget(connection)
            accepted.close()

    def _prove(self, connection: _Connection, name: str) -> None:
        """A request of ``name`` was let in on this connection."""
        if connection.name != name:
            self._forget(connection)
            connection.name = name
            self._proven.setdefault(name, OrderedDict())[connection] = None
        mine = self._proven[name]
        mine.move_to_end(connection)
        if len(mine) > EACH:
            self._end(next(iter(mine)))

    def _end_oldest(self) -> None:
        """End the oldest unauthenticated connection of the address with most of them."""
        crowd = max(self._unauthenticated.values(), key=len, default=None)
        if crowd:
            self._end(next(iter(crowd)))

    def _end(self, connection: _Connection) -> None:
        self._forget(connection)
        connection.leave()

    def _forget(self, connection: _Connection) -> None:
        kind, key = (
            (self._proven, connection.name)
            if connection.name
            else (self._unauthenticated, connection.address)
        )
        group = kind.get(key, OrderedDict())
        if connection in group:
            del group[connection]
            self._count -= not connection.name
        if not group:
            kind.pop(key, None)


class LimitedServer(uvicorn.Server):
    """uvicorn, whose listening sockets a :class:`ConnectionLimiter` attends to.

    Args:
        config: from :func:`headwater.server.http_protocol.fleet_port`.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on ``sockets``."""
        for listener in sockets or []:
            listener.listen(self.config.backlog)  # first: uvicorn says that it has started
            listener.setblocking(False)
        await super().startup(sockets=[])
        _more_files()
        limiter = ConnectionLimiter(self._make_protocol, self.config)
        self._accepting = [asyncio.create_task(limiter.accept(listener)) for listener in sockets or []]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, end what is open."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    def _make_protocol(self) -> DeadlineProtocol:
        return DeadlineProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def network_of(host: str) -> str:
    """What one party may have of many addresses: an IPv4 address, or an IPv6 network of 64 bits."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return host


def _more_files() -> None:
    """Most systems let a process open 1,024 files, and more if it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
