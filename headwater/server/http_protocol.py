"""The HTTP protocol of the open port: uvicorn, set up so that an unauthenticated connection costs little.

The request authenticator judges requests; this keeps a connection from lasting without one. uvicorn has no
deadline for a request's head: a peer that sends a byte a minute holds a connection for ever.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from headwater.asgi import App

HEAD_S = 10.0
"""Seconds from a connection's start to the end of its first request's head."""
IDLE_S = 75
"""Seconds between the requests of a connection: agents keep theirs between polls and heartbeats."""
CLOSE_S = 1.0
"""Seconds for a peer to hear the last answer before a closed connection is dropped."""
HEAD_BYTES = 2**14


NOT_HTTP = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take.

    Args:
        head_s: seconds from its start to the end of its first request's head.
        idle_s: seconds between its requests.
        close_s: seconds for a peer to hear the last answer before a closed connection is dropped.
        connections: so many at one time; the oldest, if there is one that asks nothing, makes room for the
            newest. None: somebody else counts them.
    """

    head_s: float = HEAD_S
    idle_s: float = IDLE_S
    close_s: float = CLOSE_S
    connections: int | None = None


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for each request's head, and a bare 403 for bytes that are not HTTP.

    Attributes:
        limits: of each connection.
        proven: is told whose a request is, when the request authenticator knows.
        ended: is told when the connection ends.
    """

    limits: ClassVar[Limits] = Limits()
    proven: Callable[[str], None] | None = None
    ended: Callable[[], None] | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to wait for the first head."""
        self._make_room()
        self._opened_s = self.loop.time()
        super().connection_made(transport)
        self._wait(self.limits.head_s)

    def _make_room(self) -> None:
        """Give up the oldest connection where there are too many, an idle one if there is one."""
        most = self.limits.connections
        if most is None:
            return
        others = [c for c in self.connections if isinstance(c, DeadlineProtocol)]
        others = [c for c in others if not c.transport.is_closing()]
        if len(others) >= most:
            min(others, key=lambda c: (c._busy, c._opened_s)).transport.abort()

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._wait(None)
        super().connection_lost(exc)
        if self.ended is not None:
            self.ended()

    def handle_events(self) -> None:
        """A head that is whole ends the wait."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.scope[PROVEN] = self.proven  # type: ignore[literal-required]  # ours; the app starts later
            self._wait(None)

    def on_response_complete(self) -> None:
        """Wait for the next head, or for the end."""
        limits = self.limits
        self._wait(limits.close_s if self.transport.is_closing() else limits.idle_s + limits.head_s)
        super().on_response_complete()  # last: a pipelined request begins inside

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP with the same 403 as every other refusal."""
        if self.conn.our_state is h11.IDLE:  # no answer to an earlier request is on its way
            self.transport.write(NOT_HTTP)
        self.transport.close()
        self._wait(self.limits.close_s)

    def _wait(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        # abort: closing waits for the peer's TLS goodbye, and throws away what it sends until then
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def fleet_port(app: App, *, host: str, port: int, certificate: Path, key: Path) -> uvicorn.Config:
    """Settings for ``uvicorn.Server``: TLS 1.3, HTTP/1.1, no WebSockets, no proxies, no access log.

    Args:
        app: a :class:`headwater.server.agent_port.request_auth.RequestAuthenticator`.
        host: to listen on.
        port: to listen on.
        certificate: PEM, of the server.
        key: PEM.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=DeadlineProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=HEAD_BYTES,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_context_factory=_tls,
    )


def _tls(config: uvicorn.Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


PROVEN = "headwater.proven"
"""Key of the ASGI scope under which a port puts whom to tell the name behind a request, once it is proven."""
