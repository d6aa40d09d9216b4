"""Signals that end a command: :func:`interruptible`, :func:`terminable`.

A shell without job control starts what is put into the background (``make demo &``) with SIGINT ignored, and
the process inherits that. Python then installs no handler, so that SIGINT cannot end the command. Commands of
Headwater behave the same however they were started.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT raises ``KeyboardInterrupt`` within, also where it was ignored; afterwards it is as it was.

    Only the main thread can say so; in another one nothing changes.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    ):
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises ``SystemExit(143)`` within, so that half-made files are cleared."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
