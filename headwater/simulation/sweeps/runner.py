"""Points, one after the other here or several at once: :class:`PointRunner`, :class:`PointPool`."""

from __future__ import annotations

import multiprocessing.process
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headwater.client.execution.faults import told_apart
from headwater.config import LoadedFederation
from headwater.config.traits import ModelTraits
from headwater.errors import HeadwaterError
from headwater.server.events import Event
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from headwater.simulation.sweeps.shared import SharedInputs
from headwater.simulation.workers import live_for_parent, parent_handles_signals, worker_context, worker_died


@dataclass(frozen=True)
class Task:
    """A federation and the run folder that it is run in."""

    loaded: LoadedFederation
    folder: Path


@dataclass(frozen=True)
class Done:
    """How a task ended: with a summary, or an error.

    Args:
        task: which.
        summary: the run's; None if it failed, or was not begun because it should stop.
        error: of a task that failed.
    """

    task: Task
    summary: dict[str, Any] | None = None
    error: HeadwaterError | None = None


Telling = Callable[[Task, Event], None]


class Runner(Protocol):
    """Does tasks. Errors of a task are in what it gives; it raises only what ends them all."""

    def check(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Whether base and adapter of each go together; in any order."""

    def run(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Done]:
        """Each to its end, or to the end of its open round if it should stop; in any order."""


class PointRunner:
    """In this process, with one base model for all.

    Args:
        telling: is told what happens in a run.
    """

    def __init__(self, telling: Telling = lambda task, event: None) -> None:
        self._telling, self.inputs = telling, SharedInputs()

    def check(self, tasks: Iterable[Task]) -> Iterator[Done]:  # noqa: D102 - the protocol's
        for task in tasks:
            yield self._try(task, "open the model", self._opens)

    def run(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Done]:  # noqa: D102
        for task in tasks:
            if should_stop():
                return
            yield self._try(task, "run the point", lambda t: self._run(t, should_stop))

    def _opens(self, task: Task) -> None:
        self.inputs.context(task.loaded).require_cohorts()

    def _run(self, task: Task, should_stop: Callable[[], bool]) -> dict[str, Any]:
        folder = RunFolder(task.folder)
        if not folder.checkpoint.exists():
            folder = RunFolder.create(task.folder, task.loaded, {"engine": "inprocess"})
        return simulate(
            task.loaded,
            folder,
            observer=lambda event: self._telling(task, event),
            should_stop=should_stop,
            opened=self.inputs.open,
        )

    def _try(self, task: Task, doing: str, work: Callable[[Task], dict[str, Any] | None]) -> Done:
        try:
            with told_apart(f"point {task.folder.name}", doing):
                return Done(task, work(task))
        except HeadwaterError as error:
            self.inputs.forget()
            return Done(task, error=error)


class PointPool:
    """In ``count`` processes, each with one base model. Use it as a context manager.

    Args:
        count: processes.
        model: ``[model]`` of the points.
    """

    def __init__(self, count: int, model: ModelTraits) -> None:
        context = worker_context(model)
        self._stop = context.Event()
        self._executor = ProcessPoolExecutor(
            count, mp_context=context, initializer=_start, initargs=(self._stop,)
        )
        self._count = count
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}

    def check(self, tasks: Iterable[Task]) -> Iterator[Done]:  # noqa: D102 - the protocol's
        return self._each(_check, tasks, lambda: False)

    def run(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Done]:  # noqa: D102
        return self._each(_run, tasks, should_stop)

    def _each(
        self, function: Callable[[Task], Done], tasks: Iterable[Task], should_stop: Callable[[], bool]
    ) -> Iterator[Done]:
        """As many under way as there are processes: what was not begun can still be left."""
        left = iter(tasks)
        open_: set[Future[Done]] = set()
        try:
            while True:
                if should_stop():
                    self._stop.set()
                    left = iter(())
                while len(open_) < self._count and (task := next(left, None)) is not None:
                    open_.add(self._submit(function, task))
                if not open_:
                    return
                done, open_ = wait(open_, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            hint = "Use fewer --workers if memory is short, then give the same command again."
            raise worker_died(self._processes.values(), hint=hint) from error

    def _submit(self, function: Callable[[Task], Done], task: Task) -> Future[Done]:
        with parent_handles_signals():  # a submission starts a process where none is idle
            future = self._executor.submit(function, task)
        self._processes |= self._executor._processes or {}  # the executor tells nobody how they end
        return future

    def __enter__(self) -> PointPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:  # nobody waits for what is running: a second Ctrl-C, an error
            for process in {**self._processes, **(self._executor._processes or {})}.values():
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


_POLL_S = 0.2
"""Between two looks whether to stop."""

# --- in a process of the pool ---------------------------------------------------------------------

_here: tuple[PointRunner, Callable[[], bool]] | None = None


class _Flag(Protocol):
    def is_set(self) -> bool: ...


def _start(stop: _Flag) -> None:
    global _here
    live_for_parent()
    _here = PointRunner(), stop.is_set


def _check(task: Task) -> Done:
    assert _here is not None, "a worker is started by a pool"
    (done,) = _here[0].check([task])
    return done


def _run(task: Task) -> Done:
    assert _here is not None, "a worker is started by a pool"
    runner, should_stop = _here
    return next(runner.run([task], should_stop), Done(task))
