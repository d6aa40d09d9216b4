"""The daemon's one log: :func:`log_to`. Lines for people, in a rotating file and on standard error.

::

    2026-03-01T09:15:02Z WARNING  server    round 7: client ann: late
    │                    │        └ who: ours by room, flower, web (uvicorn), or another library
    └ UTC                └ level

Everything that any library logs comes here, Flower's and uvicorn's own handlers are taken away. Text may
come from clients: a line is one line, without control characters, at most :data:`MOST_LINE` characters;
only tracebacks have more lines, each begins with ``    | ``. One place in a library says at most
:data:`MOST_ALIKE` lines a minute (ours: :data:`MOST_OURS`), so a flood of bad requests does not push out what
matters, and the files never take more than their number times their size.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType

from headwater.errors import StorageError
from headwater.text import plain

MOST_LINE = 2_000
MOST_TRACE_LINES = 60
MOST_ALIKE = 30
MOST_OURS = 3_000
_ALIKE_S = 60.0
_WHO = {"flwr": "flower", "uvicorn": "web", "uvicorn.error": "web", "py.warnings": "python"}
_QUIET = ("uvicorn.access", "httpx", "httpcore", "urllib3", "asyncio", "grpc")
"""Their news are ours to tell: below WARNING they say nothing."""


@contextlib.contextmanager
def log_to(
    path: Path, *, most_bytes: int = 10_000_000, files: int = 5, level: int = logging.INFO
) -> Iterator[None]:
    """Log to ``path`` and standard error until the context ends; then everything is as it was.

    Uncaught exceptions of threads are logged too.

    Args:
        path: the newest file, rights 0600; older ones are ``path.1``, ``path.2`` …
        most_bytes: size at which a file is put aside.
        files: how many there are at most, the newest one included; at least 2.
        level: what is less important is dropped.

    Raises:
        StorageError: the folder cannot be written. Later failures to write are borne: the lines go to
            standard error alone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _File(path, maxBytes=most_bytes, backupCount=max(files, 2) - 1, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"log {path}",
            expected="a folder that can be written",
            got=error.strerror or str(error),
            hint="Mend the rights, or free space.",
        ) from None
    stream = _Tee(file, _Console(sys.stderr))
    root = logging.getLogger()
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in _foreign(root)]
    hook = threading.excepthook
    try:
        for logger, *_ in before:
            logger.handlers, logger.propagate = [], True
            logger.setLevel(logging.WARNING if logger.name in _QUIET else logging.NOTSET)
        root.handlers = [stream]
        root.setLevel(level)
        logging.captureWarnings(True)
        threading.excepthook = _log_thread
        yield
    finally:
        threading.excepthook = hook
        logging.captureWarnings(False)
        for logger, old, old_level, propagate in before:
            logger.handlers, logger.propagate = old, propagate
            logger.setLevel(old_level)
        file.close()


def _foreign(root: logging.Logger) -> list[logging.Logger]:
    """The root, and every logger that has handlers or a level of its own, or must be quiet."""
    known = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    own = [logger for logger in known if logger.handlers or logger.level or not logger.propagate]
    named = [logging.getLogger(name) for name in (*_QUIET, *_WHO)]
    return [root, *dict.fromkeys([*own, *named])]


def _log_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is SystemExit or failed.exc_value is None:
        return
    name = failed.thread.name if failed.thread else "a thread"
    about = (failed.exc_type, failed.exc_value, failed.exc_traceback)
    logging.getLogger("headwater.server").error("thread %s ended", name, exc_info=about)


class _Tee(logging.Handler):
    """Judges and formats a record once, for the file and for the console."""

    def __init__(self, *handlers: logging.Handler) -> None:
        super().__init__()
        self._handlers = handlers
        self.addFilter(_tell_cut_off)
        self.addFilter(_Calm())
        for handler in handlers:
            handler.setFormatter(_Line())

    def emit(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            handler.handle(record)


class _File(RotatingFileHandler):
    """Readable by its owner only; a full disk is no reason to stop."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding, errors="replace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        with contextlib.suppress(OSError):  # closing writes what is left, and fails again
            if self.stream is not None:
                self.stream.close()
        self.stream = None  # the next record opens it again


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs only
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """A closed standard error is no reason to stop either."""


def _tell_cut_off(record: logging.LogRecord) -> bool:
    """A request that is cut off because the daemon ends is no error, though uvicorn logs it as one, twice."""
    if record.name == "uvicorn.error" and record.levelno == logging.ERROR:
        cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
        if cancelled or str(record.msg).startswith("Cancel %s running task"):
            record.levelno, record.levelname = logging.INFO, "INFO"
            if cancelled:
                record.msg, record.args, record.exc_info = (
                    "a request was cut off: the port closes",
                    None,
                    None,
                )
    return True


class _Calm(logging.Filter):
    """Lets what one place says through so often a minute, then says how many more there were."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        most = MOST_OURS if record.name.startswith("headwater.") else MOST_ALIKE
        key, now = (record.pathname, record.lineno), time.monotonic()
        since, count = self._seen.get(key, (now, 0))
        if now - since >= _ALIKE_S:
            if count > most:
                record.msg, record.args = f"{record.getMessage()} (and {count - most:,} more)", None
            since, count = now, 0
        self._seen[key] = (since, count + 1)  # places are lines of code: bounded
        return count < most


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        head = f"{when} {record.levelname:<8} {_who(record.name):<9}"
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # a library's wrong arguments
            message = f"{record.msg} {record.args}"
        lines = [f"{head} {plain(message, MOST_LINE)}"]
        if record.exc_info:
            lines += [f"    | {plain_line(text)}" for text in _trace(self, record.exc_info)]
        return "\n".join(lines)


def _who(name: str) -> str:
    if name.startswith("headwater."):
        return name.split(".")[1]
    return _WHO.get(name) or _WHO.get(name.split(".")[0]) or plain(name.split(".")[0], 20)


def _trace(
    formatter: logging.Formatter,
    about: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
) -> list[str]:
    lines = formatter.formatException(about).splitlines()
    if len(lines) > MOST_TRACE_LINES:
        half = MOST_TRACE_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines …", *lines[-half:]]
    return lines


def plain_line(text: str) -> str:
    """A line of a traceback: its indentation stays, what would harm a terminal does not."""
    return text[: len(text) - len(text.lstrip(" "))] + plain(text, MOST_LINE)
