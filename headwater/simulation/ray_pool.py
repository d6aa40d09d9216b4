"""RayPool: Ray actors that work for batches of clients, each with its own model and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import ray
from flwr.app import Error

from headwater.client.execution.answer import answer, answer_batch
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore, DirectoryStore
from headwater.config import LoadedFederation
from headwater.errors import TrainingError
from headwater.simulation.workplace import Encoded, Workplace, outcome

T = TypeVar("T")
TRIES_AGAIN = 1
"""How often Ray gives a batch whose actor died to a new one; what was answered is answered alike."""


class RayPool(Workplace):
    """As many actors as the cluster has CPUs for, or fewer; Ray has been started.

    Args:
        loaded: the federation whose clients they work for.
        store: folder of the clients' error feedback, which all nodes of the cluster see.
        most: actors.
    """

    def __init__(self, loaded: LoadedFederation, store: Path, *, most: int) -> None:
        threads = loaded.settings.federation.threads
        count = max(1, min(most, int(ray.cluster_resources().get("CPU", 1)) // threads))
        self.width = 2 * count
        kind = ray.remote(num_cpus=threads, max_restarts=-1, max_task_retries=TRIES_AGAIN)(_Actor)
        self._actors = [kind.remote(loaded, store) for _ in range(count)]
        self._out: dict[int, set[Future[Any]]] = {number: set() for number in range(count)}

    def submit(self, client: str, envelope: bytes, state: bytes) -> Future[bytes]:  # noqa: D102 - inherited
        return self._submitted("answer", client, envelope, state)

    def submit_batch(self, requests: Sequence[Encoded]) -> Future[list[bytes]]:  # noqa: D102 - inherited
        return self._submitted("answer_batch", requests)

    def _submitted(self, method: str, *arguments: object) -> Future[Any]:
        """On the actor with the fewest jobs."""
        for out in self._out.values():
            out -= {future for future in out if future.done()}
        number = min(self._out, key=lambda n: len(self._out[n]))
        future: Future[Any] = getattr(self._actors[number], method).remote(*arguments).future()
        self._out[number].add(future)
        return future

    def result(self, future: Future[T]) -> T | Error:  # noqa: D102 - inherited
        try:
            found = future.result()
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            raise TrainingError(
                "Ray worker",
                expected="to live as long as the run",
                got=f"its end, {1 + TRIES_AGAIN} times over one batch: {str(error).splitlines()[0][:200]}",
                hint="If memory is short, a smaller simulation.cohort in a new run; else --resume.",
            ) from error
        if isinstance(found, Exception):
            future = Future()
            future.set_exception(found)
            return outcome(future)
        return found

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *exc: object) -> None:
        for actor in self._actors:
            ray.kill(actor)


class _Actor:
    """In a process of Ray's: model and data of one federation. What goes wrong is handed back as it is."""

    def __init__(self, loaded: LoadedFederation, store: Path) -> None:
        self._opened: tuple[ClientStore, ClientRuntime] = (
            DirectoryStore(store, durable=False),
            ClientRuntime.open(loaded, check=False),
        )

    def answer(self, client: str, envelope: bytes, state: bytes) -> bytes | Exception:
        return _caught(lambda: answer(envelope, state, client, *self._opened))

    def answer_batch(self, requests: Sequence[Encoded]) -> list[bytes] | Exception:
        return _caught(lambda: answer_batch(requests, *self._opened))


def _caught(work: Callable[[], T]) -> T | Exception:
    """Ray would raise an error of its own in place of ours."""
    try:
        return work()
    except Exception as error:
        return error
