"""Workplace: where clients of a simulation are worked for: this process, workers, Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from flwr.app import Error

from headwater.client.execution.answer import answer, answer_batch
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.errors import HeadwaterError, InternalError, StorageError

T = TypeVar("T")
Encoded = tuple[bytes, bytes]
"""A request's envelope and its state's body."""


class Workplace(ABC):
    """Where clients are worked for.

    Attributes:
        width: jobs that are out at once, so that nobody there is idle.
    """

    width: int

    @abstractmethod
    def submit(self, client: str, envelope: bytes, state: bytes) -> Future[bytes]:
        """Have a request to ``client`` answered."""

    @abstractmethod
    def submit_batch(self, requests: Sequence[Encoded]) -> Future[list[bytes]]:
        """Have trainings answered that are one batch."""

    @abstractmethod
    def result(self, future: Future[T]) -> T | Error:
        """What came of a submission, when it is there; Flower's error where it was not understood.

        Raises:
            TrainingError: a process died.
            WantOfMemory: a batch was too large; none of its clients has failed.
            StorageError, InternalError: see :mod:`headwater.client.execution.faults`.
        """


class ThisProcess(Workplace):
    """Works in this process, at once.

    Args:
        runtime: model and data of the clients.
        store: their error feedback.
    """

    width = 1

    def __init__(self, runtime: ClientRuntime, store: ClientStore) -> None:
        self._runtime, self._store = runtime, store

    def submit(self, client: str, envelope: bytes, state: bytes) -> Future[bytes]:  # noqa: D102 - inherited
        return _done(lambda: answer(envelope, state, client, self._store, self._runtime))

    def submit_batch(self, requests: Sequence[Encoded]) -> Future[list[bytes]]:  # noqa: D102 - inherited
        return _done(lambda: answer_batch(requests, self._store, self._runtime))

    def result(self, future: Future[T]) -> T | Error:  # noqa: D102 - inherited
        return outcome(future)


def outcome(future: Future[T]) -> T | Error:
    """A future's result; Flower's error for those of ours that do not end the run."""
    try:
        return future.result()
    except (StorageError, InternalError):
        raise
    except HeadwaterError as error:
        return Error(code=2, reason=str(error))


def _done(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # whoever asks for the result is told, as by a pool
        future.set_exception(error)
    return future
