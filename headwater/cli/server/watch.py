"""``headwater server watch``: :func:`follow`.

On a terminal the status tables, kept up to date, with the events above them; elsewhere a line per event. A
daemon that is gone is waited for: the connection is tried again, for ever, and goes on after the last event.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from headwater.cli.interrupts import interruptible
from headwater.cli.output import as_json
from headwater.cli.tables import event_line, run_line, status_view
from headwater.errors import ConnectionLost, HeadwaterError
from headwater.protocol.control import Status, WatchEvent

if TYPE_CHECKING:
    from headwater.proto.control import ControlClient

ENDED = ("finished", "stopped")
REFRESH_S = 1.0


def follow(client: ControlClient, *, after: int, as_json: bool) -> int:
    """Print events until Ctrl-C, which is how it is meant to end: the exit code is 0 then.

    Raises:
        HeadwaterError: the daemon was not there to begin with, or refuses.
    """
    status = client.status()  # an error here is told in one line, before any table
    console = Console(highlight=False)
    news: queue.Queue[WatchEvent | HeadwaterError] = queue.Queue(maxsize=10_000)
    ended = threading.Event()
    shown = _Lines(as_json) if as_json or not console.is_terminal else _Tables(console, client)
    if isinstance(shown, _Lines) and not as_json and not after:  # else the events tell it
        shown.begin(status)

    def read() -> None:
        try:
            for event in client.watch(after, ended.is_set, on_gap=shown.gap):
                news.put(event)
        except HeadwaterError as error:
            news.put(error)

    reader = threading.Thread(target=read, name="watch", daemon=True)
    reader.start()
    try:
        with interruptible(), shown:
            while True:
                try:
                    found = news.get(timeout=REFRESH_S)
                except queue.Empty:
                    shown.refresh()
                    continue
                if isinstance(found, HeadwaterError):
                    raise found
                shown.event(found)
    except KeyboardInterrupt:
        return 0
    finally:
        ended.set()
        client.close()
        reader.join(timeout=2)


class _Lines:
    """One line per event, at once, also into a pipe."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, status: Status) -> None:
        """The state of the runs that have not ended, or of the latest: long may pass without an event."""
        rows = [row for row in status.runs if row.state not in ENDED] or status.runs[-1:]
        for row in rows:
            self._console.print(run_line(row))
        if not rows:
            self._console.print("no run was submitted")
        self._console.file.flush()

    def event(self, event: WatchEvent) -> None:
        if self._json:
            print(as_json(event), flush=True)
        else:
            self._console.print(event_line(event, time.time()))
            self._console.file.flush()

    def refresh(self) -> None:
        """Nothing to keep up to date; but who reads may have gone."""

    def gap(self, error: HeadwaterError, wait_s: float) -> None:
        print(
            f"headwater: {error.who}: {error.got}; trying again in {wait_s:.1f} s",
            file=sys.stderr,
            flush=True,
        )


class _Tables:
    """The tables below, events above."""

    def __init__(self, console: Console, client: ControlClient) -> None:
        self._console, self._client = console, client
        self._status, self._told, self._lost = client.status(), time.time(), ""
        self._asked = time.monotonic()
        self._live = Live(self._view(), console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> None:
        self._live.start(refresh=True)

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def event(self, event: WatchEvent) -> None:
        self._console.print(event_line(event, time.time()))
        if time.monotonic() - self._asked >= REFRESH_S:  # not once per event of a burst
            self.refresh()

    def refresh(self) -> None:
        """Ask again; a daemon that does not answer leaves its last tables, and a line that says so."""
        self._asked = time.monotonic()
        try:
            self._status, self._told, self._lost = self._client.status(), time.time(), ""
        except ConnectionLost as error:
            self._lost = f"{error.who}: {error.got}; trying again"
        self._live.update(self._view(), refresh=True)

    def gap(self, error: HeadwaterError, wait_s: float) -> None:
        """The next refresh says it."""

    def _view(self) -> Group:
        lost = Text(f"\n{self._lost}" if self._lost else "", style="bold red")
        return Group(Text(), status_view(self._status, self._told), lost)
