"""WorkerPool: processes that execute requests side by side, each with its own model and data.

A training fixes its thread count, so which process runs it does not change a bit of the result.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from flwr.app import Error

from headwater.client.app import answer
from headwater.client.runtime import ClientRuntime
from headwater.client.store import ClientStore, DirectoryStore
from headwater.config import LoadedFederation
from headwater.config.federation import Federation
from headwater.errors import HeadwaterError, TrainingError

T = TypeVar("T")


class WorkerPool:
    """``count`` processes; close it, or use it as a context manager.

    Args:
        count: processes.
        loaded: the federation whose clients they execute.
        store: folder of the clients' error feedback.
    """

    def __init__(self, count: int, loaded: LoadedFederation, store: Path) -> None:
        self._executor = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(loaded, store, os.getpid()),
        )

    def run(
        self, requests: Iterable[tuple[str, str, tuple[bytes, ...]]]
    ) -> Iterator[tuple[str, bytes | Error]]:
        """Execute ``(id, client, (envelope, state))`` requests; yield ``(id, reply)`` as each is ready.

        Raises:
            TrainingError: a worker process died.
        """
        futures: dict[Future[bytes], str] = {
            self._executor.submit(_answer, client, *parts): message_id
            for message_id, client, parts in requests
        }
        for future in as_completed(futures):
            message_id = futures.pop(future)
            try:
                yield message_id, future.result()
            except HeadwaterError as error:
                yield message_id, Error(code=2, reason=str(error))
            except BrokenProcessPool as error:
                raise TrainingError(
                    "worker process",
                    expected="to live as long as the run",
                    got="a sudden end, often for want of memory",
                    hint="Use fewer --workers, then --resume.",
                ) from error

    def call(
        self,
        function: Callable[[ClientRuntime, str, Federation], T],
        names: Sequence[str],
        settings: Federation,
    ) -> list[T]:
        """``function(runtime, name, settings)`` for every name, in order."""
        futures = [self._executor.submit(_call, function, name, settings) for name in names]
        return [future.result() for future in futures]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


_process: tuple[ClientRuntime, ClientStore] | None = None


def _start(loaded: LoadedFederation, store: Path, parent: int) -> None:
    """Make this process a worker: ignore Ctrl-C, end with the parent, load model and data once."""
    global _process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _process = ClientRuntime.open(loaded), DirectoryStore(store, durable=False)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _call(function: Callable[[ClientRuntime, str, Federation], T], name: str, settings: Federation) -> T:
    assert _process is not None
    return function(_process[0], name, settings)


def _answer(client: str, envelope: bytes, state: bytes) -> bytes:
    assert _process is not None
    runtime, store = _process
    return answer(envelope, state, client, store, runtime)
