"""RayPool: Ray actors that work for batches of clients, each with its own model and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import ray
from flwr.app import Error

from headwater.client.execution.answer import answer, answer_batch
from headwater.client.execution.execute import WantOfMemory
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore, SharedStore
from headwater.config import LoadedFederation
from headwater.errors import TrainingError
from headwater.simulation.attackers.attacks import with_attacks
from headwater.simulation.workplace import Encoded, Workplace, outcome

T = TypeVar("T")
TRIES_AGAIN = 1
"""How often Ray gives a batch whose actor died to a new one; what was answered is answered alike."""


class RayPool(Workplace):
    """As many actors as the cluster has CPUs for, with a GPU each where there are any; Ray has been started.

    Args:
        loaded: the federation whose clients they work for.
        store: folder of what the clients keep, which all nodes of the cluster see.
        cohort: most clients of a batch.
        most: actors.
    """

    def __init__(self, loaded: LoadedFederation, store: Path, *, cohort: int, most: int) -> None:
        threads = loaded.settings.federation.threads
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it so
        gpus = int(there.get("GPU", 0))
        count = max(1, min(most, int(there.get("CPU", 1)) // threads, gpus or most))
        self.width = 2 * count
        kind = ray.remote(
            num_cpus=threads,
            num_gpus=1 if gpus else 0,
            max_restarts=-1,
            max_task_retries=TRIES_AGAIN,
        )(_Actor)
        self._actors: list[Any] = [kind.remote(loaded, store, cohort) for _ in range(count)]
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
        except ray.exceptions.OutOfMemoryError as error:  # Ray ended the actor before the kernel would
            raise WantOfMemory from error
        except ray.exceptions.RayActorError as error:
            raise TrainingError(
                "Ray worker",
                expected="to live as long as the run",
                got=f"its end, {1 + TRIES_AGAIN} times over one batch: {str(error).splitlines()[0][:200]}",
                hint="If memory is short, a smaller simulation.cohort in a new run; else --resume it.",
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

    def __init__(self, loaded: LoadedFederation, store: Path, cohort: int) -> None:
        self._opened: tuple[ClientStore, ClientRuntime] = (
            SharedStore(store),
            with_attacks(ClientRuntime.open(loaded, check=False, cohort=cohort)),
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
