"""WorkerPool: processes that work for clients side by side, each with its own model and data.

A training fixes its thread count, so which process runs it does not change a bit of the result.

Signals are for the parent. A signal to the whole process group (Ctrl-C, Slurm, systemd, ``timeout``) must not
take away the workers of a round that is to be finished: they start with SIGINT and SIGTERM blocked, from the
first instruction on, and end when the parent says so or is gone.

On Linux workers are forked from a process that has imported what they need and computed nothing
(:mod:`headwater.simulation.preload`): imports are paid once, and all workers share their pages.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from flwr.app import Error

from headwater.client.execution.answer import answer, answer_batch
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore, SharedStore
from headwater.config import LoadedFederation
from headwater.config.traits import ModelTraits
from headwater.errors import ConfigError, TrainingError
from headwater.simulation.attackers.attacks import with_attacks
from headwater.simulation.workplace import Encoded, Workplace, outcome

HANDLED_BY_PARENT = (signal.SIGINT, signal.SIGTERM)
Prepare = Callable[[ClientRuntime], None]
T = TypeVar("T")


class WorkerPool(Workplace):
    """``count`` processes; close it, or use it as a context manager.

    Args:
        count: processes.
        loaded: the federation whose clients they work for.
        store: folder of what the clients keep.
        cohort: most clients of a batch; the file's if None.
        prepare: is given what each process has opened; a function that can be pickled.

    Raises:
        ConfigError: ``prepare`` cannot be pickled.
    """

    def __init__(
        self,
        count: int,
        loaded: LoadedFederation,
        store: Path,
        cohort: int | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        _require_portable(prepare, count)
        self.width = 2 * count
        self._executor = ProcessPoolExecutor(
            count,
            mp_context=worker_context(loaded.settings.model),
            initializer=_start,
            initargs=(loaded, store, cohort, prepare),
        )
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}

    def submit(self, client: str, envelope: bytes, state: bytes) -> Future[bytes]:  # noqa: D102 - inherited
        return self._submitted(_answer, client, envelope, state)

    def submit_batch(self, requests: Sequence[Encoded]) -> Future[list[bytes]]:  # noqa: D102 - inherited
        return self._submitted(_answer_batch, requests)

    def _submitted(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        try:
            return self._submit(function, *arguments)
        except BrokenProcessPool as error:
            raise self._died() from error

    def _submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        with parent_handles_signals():  # a submission starts a process where none is idle
            future = self._executor.submit(function, *arguments)
        self._processes |= self._executor._processes or {}  # the executor tells nobody how they end
        return future

    def result(self, future: Future[T]) -> T | Error:  # noqa: D102 - inherited
        try:
            return outcome(future)
        except BrokenProcessPool as error:
            raise self._died() from error

    def call(self, function: Callable[[ClientRuntime, str], T], names: Sequence[str]) -> list[T]:
        """``function(runtime, name)`` for every name, in order.

        Raises:
            TrainingError: a worker process died.
        """
        try:
            return [f.result() for f in [self._submit(_call, function, n) for n in names]]
        except BrokenProcessPool as error:
            raise self._died() from error

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:  # nobody waits for what is running: a second Ctrl-C, an error
            for process in {**self._processes, **(self._executor._processes or {})}.values():
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _died(self) -> TrainingError:
        return worker_died(
            self._processes.values(), hint="Use fewer --workers if memory is short, then --resume."
        )


def _require_portable(prepare: Prepare | None, count: int) -> None:
    """Refuse a script that no other process can find."""
    try:
        pickle.dumps(prepare)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"workers {count}",
            expected="a script whose function other processes find by its name",
            got=f"{type(error).__name__}: {error}"[:200],
            hint="Define it at the top of a module, not inside a function, or leave workers out.",
        ) from error


def worker_context(model: ModelTraits) -> multiprocessing.context.BaseContext:
    """How workers start. What the first pool of a process preloads, later ones find."""
    if sys.platform != "linux":  # macOS has libraries that do not survive a fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["headwater.simulation.preload" if model.pretrained else __name__])
    return context


def worker_died(processes: Iterable[multiprocessing.process.BaseProcess], *, hint: str) -> TrainingError:
    """How the first of these that ended without being told to ended."""
    ends_s = time.monotonic() + 1.0
    codes: list[int] = []
    while not codes and time.monotonic() < ends_s:
        codes = [p.exitcode for p in processes if p.exitcode]
        time.sleep(0.01)
    return TrainingError(
        "worker process",
        expected="to live as long as the run",
        got=_how(codes[0] if codes else None),
        hint=hint,
    )


def _how(code: int | None) -> str:
    if code is None:
        return "a sudden end, often for want of memory"
    if code >= 0:
        return f"its end with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hungry = ", often for want of memory" if -code in (signal.SIGKILL, signal.SIGABRT, signal.SIGBUS) else ""
    return f"a sudden end by signal {name}{hungry}"


@contextmanager
def parent_handles_signals() -> Iterator[None]:
    """SIGINT and SIGTERM do not reach processes that are started within; this one hears them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_BY_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the worker --------------------------------------------------------------------------------

_process: tuple[ClientRuntime, ClientStore] | None = None


def _start(loaded: LoadedFederation, store: Path, cohort: int | None, prepare: Prepare | None) -> None:
    """Make this process a worker: end with the parent and by nothing else, load model and data once."""
    global _process
    live_for_parent()
    runtime = with_attacks(ClientRuntime.open(loaded, check=False, cohort=cohort))
    if prepare is not None:
        prepare(runtime)
    _process = runtime, SharedStore(store)


def live_for_parent() -> None:
    """Let signals end this process no more, but the end of its parent, however that comes."""
    for number in HANDLED_BY_PARENT:  # blocked already; what a library starts from here inherits this instead
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers: they look after it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"
    parent.join()
    os._exit(1)


def _opened() -> tuple[ClientRuntime, ClientStore]:
    if _process is None:
        raise TrainingError("worker process", expected="to be started by a pool", got="no model and data")
    return _process


def _answer(client: str, envelope: bytes, state: bytes) -> bytes:
    runtime, store = _opened()
    return answer(envelope, state, client, store, runtime)


def _answer_batch(requests: Sequence[Encoded]) -> list[bytes]:
    runtime, store = _opened()
    return answer_batch(requests, store, runtime)


def _call(function: Callable[[ClientRuntime, str], T], name: str) -> T:
    return function(_opened()[0], name)
