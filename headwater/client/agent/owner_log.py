"""What the owner can read: a log of one line per event, and a status file for ``headwater client status``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

from headwater import __version__
from headwater.client.agent.data_stamp import RowsRead
from headwater.errors import StorageError
from headwater.files import write_atomically

LOG_BYTES, LOG_FILES = 1_000_000, 3
_LONGEST = 2000
_CONTACT_S = 10.0


class OwnerLog:
    """Lines with the local time, to stderr and to a file that rotates: 1 MB, three of them."""

    def __init__(self, path: Path) -> None:
        self._logger = logging.Logger("headwater.agent")
        handlers: list[logging.Handler] = [
            logging.StreamHandler(sys.stderr),
            RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8"),
        ]
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            handler.handleError = _drop  # type: ignore[method-assign]  # a full disk must not end the agent
            self._logger.addHandler(handler)

    def say(self, text: str) -> None:
        """Write one line; what a server sent can neither break nor colour it."""
        self._logger.info("%s", "".join(c if c.isprintable() else "·" for c in text[:_LONGEST]))


def _drop(record: logging.LogRecord) -> None:
    """Nothing: the line is lost."""


class StatusFile:
    """What the agent is doing, in a small file that is replaced whole.

    Args:
        path: the file.
        server: host and port.
        config: digest of the agent file that the agent was started with.
    """

    def __init__(self, path: Path, server: str, config: str = "") -> None:
        self._path, self._lock = path, threading.Lock()
        self._content: dict[str, str | float | list[str] | None] = {
            "pid": os.getpid(),
            "version": __version__,
            "server": server,
            "started": time.time(),
            "contact": None,
            "state": "starting",
            "again": 0.0,
            "doing": "idle",
            "task": None,
            "config": config,
            "rows": None,
        }
        self._write()

    def contact(self, state: str) -> None:
        """The server answered."""
        self._change(contact=time.time(), state=state, again=0.0)

    def note(self, state: str, again: float = 0.0) -> None:
        """How the connection is, and when it is tried again, in Unix seconds."""
        self._change(state=state, again=again)

    def task(self, kind: str) -> None:
        """The server asked for something."""
        self._change(doing=kind, task=time.time())

    def doing(self, what: str) -> None:
        """What the agent is busy with."""
        self._change(doing=what)

    def rows(self, read: RowsRead | None) -> None:
        """The owner's rows that are in memory."""
        self._change(rows=None if read is None else read.list())

    def _change(self, **changes: str | float | list[str] | None) -> None:
        with self._lock:
            words = {k: v for k, v in changes.items() if k != "contact"}
            fresh = any(self._content[k] != v for k, v in words.items())
            self._content |= changes
            late = time.monotonic() - self._written >= _CONTACT_S
            if not fresh and not ("contact" in changes and late):
                return
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(StorageError):  # nothing is lost but this view
            write_atomically(self._path, json.dumps(self._content).encode(), durable=False)
