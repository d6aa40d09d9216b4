"""WorkerPool: processes that work for clients side by side, each with its own model and data.

A training fixes its thread count, so which process runs it does not change a bit of the result.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from flwr.app import Error

from headwater.client.answer import answer
from headwater.client.runtime import ClientRuntime
from headwater.client.store import ClientStore, DirectoryStore
from headwater.config import LoadedFederation
from headwater.errors import HeadwaterError, TrainingError

T = TypeVar("T")


class WorkerPool:
    """``count`` processes; close it, or use it as a context manager.

    Args:
        count: processes.
        loaded: the federation whose clients they work for.
        store: folder of the clients' error feedback.
    """

    def __init__(self, count: int, loaded: LoadedFederation, store: Path) -> None:
        self._executor = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(loaded, store, os.getpid()),
        )

    def submit(self, client: str, envelope: bytes, state: bytes) -> Future[bytes]:
        """Have a request to ``client`` answered.

        Raises:
            TrainingError: a worker process died.
        """
        try:
            return self._executor.submit(_answer, client, envelope, state)
        except BrokenProcessPool as error:
            raise _died() from error

    def result(self, future: Future[bytes]) -> bytes | Error:
        """The reply of a finished :meth:`submit`; Flower's error where the client raised one of ours.

        Raises:
            TrainingError: a worker process died.
        """
        try:
            return future.result()
        except HeadwaterError as error:
            return Error(code=2, reason=str(error))
        except BrokenProcessPool as error:
            raise _died() from error

    def call(self, function: Callable[[ClientRuntime, str], T], names: Sequence[str]) -> list[T]:
        """``function(runtime, name)`` for every name, in order.

        Raises:
            TrainingError: a worker process died.
        """
        try:
            return [f.result() for f in [self._executor.submit(_call, function, n) for n in names]]
        except BrokenProcessPool as error:
            raise _died() from error

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:  # nobody waits for what is running: a second Ctrl-C, an error
            for process in multiprocessing.active_children():
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _died() -> TrainingError:
    return TrainingError(
        "worker process",
        expected="to live as long as the run",
        got="a sudden end, often for want of memory",
        hint="Use fewer --workers, then --resume.",
    )


# --- in the worker --------------------------------------------------------------------------------

_process: tuple[ClientRuntime, ClientStore] | None = None


def _start(loaded: LoadedFederation, store: Path, parent: int) -> None:
    """Make this process a worker: ignore Ctrl-C, end with the parent, load model and data once."""
    global _process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _process = ClientRuntime.open(loaded, check=False), DirectoryStore(store, durable=False)


def _end_with(parent: int) -> None:
    """A killed parent cannot end its workers: they look after it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _opened() -> tuple[ClientRuntime, ClientStore]:
    if _process is None:
        raise TrainingError("worker process", expected="to be started by a pool", got="no model and data")
    return _process


def _answer(client: str, envelope: bytes, state: bytes) -> bytes:
    runtime, store = _opened()
    return answer(envelope, state, client, store, runtime)


def _call(function: Callable[[ClientRuntime, str], T], name: str) -> T:
    return function(_opened()[0], name)
