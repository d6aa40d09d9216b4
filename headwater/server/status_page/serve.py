"""Serve the page on loopback: :func:`serving`. Bounded in connections and in the time each may take to ask.

uvicorn by itself keeps a connection that says nothing for ever; a local user without a token could take all
of the daemon's file descriptors. Here a connection that has not asked within :data:`ASK_WITHIN_S` is closed,
and where there are too many, the oldest (one that asks nothing, if there is one) makes room for the newest.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from headwater.asgi import App
from headwater.errors import ConfigError
from headwater.server.http_protocol import DeadlineProtocol, Limits

MOST_CONNECTIONS = 64
ASK_WITHIN_S = 10.0
_STOP_S = 5.0


@contextlib.contextmanager
def serving(
    app: App, port: int, *, choose: str = "Choose another in server.toml, [listen] web."
) -> Iterator[int]:
    """Serve ``app`` on 127.0.0.1 in a thread until the context ends.

    Args:
        app: from :func:`headwater.server.status_page.app.make_app`.
        port: 0 takes a free one.
        choose: what to do where it is taken.

    Yields:
        The port.

    Raises:
        ConfigError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"web port {port}",
            expected="a free port on 127.0.0.1",
            got=error.strerror or str(error),
            hint=choose,
        ) from None
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=_PageProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who connects is who connects
            timeout_keep_alive=int(ASK_WITHIN_S),
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=16_384,
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), name="web", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(_STOP_S)
        listener.close()
        if thread.is_alive():
            logging.getLogger(__name__).warning("the web page did not end within %.0f s", _STOP_S)


class _PageProtocol(DeadlineProtocol):
    """One connection to the page."""

    limits = Limits(head_s=ASK_WITHIN_S, idle_s=ASK_WITHIN_S, connections=MOST_CONNECTIONS)
