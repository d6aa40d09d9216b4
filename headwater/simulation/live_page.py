"""The daemon's status page for a simulation, while it runs: :func:`live_page`.

It is the same page behind the same guard: only this machine reaches it, and only who has the link's token
reads it. It only looks on: nothing of the run depends on it.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from headwater import __version__
from headwater.config import LoadedFederation
from headwater.errors import ConfigError, HeadwaterError
from headwater.protocol.control import AdapterRow, Status, WatchEvent
from headwater.server.events import ClientAsked, ClientDone, ClientFailed, ClientKnown, Event, Observer
from headwater.server.metrics import metric_name
from headwater.server.monitoring.counters import ClientFacts
from headwater.server.monitoring.monitor import Monitor
from headwater.server.status_page.app import make_app
from headwater.server.status_page.serve import serving
from headwater.server.storage.run_folder import RunFolder

MOST_CLIENTS = 500
"""Clients that have a row: of more, those that were heard of first."""


@contextlib.contextmanager
def live_page(loaded: LoadedFederation, folder: RunFolder, port: int) -> Iterator[tuple[str, Observer]]:
    """Serve the page on 127.0.0.1 until the context ends.

    Args:
        loaded: the federation.
        folder: of the run; what it has already is shown.
        port: 0 takes a free one.

    Yields:
        The link, with the token that opens it; and the observer that the page learns from.

    Raises:
        ConfigError: the port is taken.
    """
    told, token = _Told(loaded, folder), secrets.token_urlsafe(32)
    app = make_app(told, told.monitor, token=token, rounds=told.rounds, simulation=True)
    with contextlib.closing(told.monitor), serving(app, port, choose="Choose another: --page PORT.") as taken:
        try:
            yield f"http://127.0.0.1:{taken}/#token={token}", told.observe
        except HeadwaterError as error:
            told.monitor.run_state(told.run, "failed", str(error), error.code)
            raise


class _Told:
    """What a page asks of an organiser's daemon, answered for one simulation."""

    def __init__(self, loaded: LoadedFederation, folder: RunFolder) -> None:
        settings = loaded.settings
        self.run, self._rounds = folder.path.name or "run", folder.rounds
        self._heard: dict[str, float] = {}
        self.monitor = Monitor(version=__version__, clients=self._facts)
        metric, federation = metric_name(settings), settings.federation
        self.monitor.run_queued(self.run, federation.name, federation.rounds, metric=metric)
        if folder.rounds.exists():
            self.monitor.run_restored(self.run, folder.each_round(), metric)
        self._tell = self.monitor.observer(self.run)

    def observe(self, event: Event) -> None:
        """Of the run."""
        match event:
            case ClientAsked() | ClientDone() | ClientFailed() | ClientKnown():
                if event.client in self._heard or len(self._heard) < MOST_CLIENTS:
                    self._heard = {**self._heard, event.client: time.monotonic()}  # others read the former
        self._tell(event)

    def rounds(self, run: str) -> Path | None:
        """Its ``rounds.jsonl``."""
        return self._rounds if run == self.run else None

    def status(self) -> Status:
        """Of the run and its clients."""
        return self.monitor.status()

    def adapters(self, run: str = "") -> tuple[AdapterRow, ...]:
        """None: a simulation keeps the last and the best."""
        return ()

    def watch(self, after: int = 0, ended: Callable[[], bool] = lambda: False) -> Iterator[WatchEvent]:
        """As a daemon's."""
        return self.monitor.watch(after, ended)

    def _facts(self) -> list[ClientFacts]:
        now = time.monotonic()
        return [ClientFacts(c, online=True, seen_s_ago=now - at) for c, at in self._heard.items()]

    def _no(self, *arguments: object, **named: object) -> NoReturn:
        raise ConfigError(
            "the page of a simulation",
            expected="a question about the run",
            got="an order",
            hint="The adapter is in the run folder at the end; Ctrl-C ends the run after the open round.",
        )

    submit = pause = resume = stop = change = accept = revoke = export = rollback = forget = unpin = _no
