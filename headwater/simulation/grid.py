"""Flower Grids without sockets or Ray: :class:`InProcessGrid` and :class:`WorkersGrid`.

Both answer through the one client path (:mod:`headwater.client.execution.execute`), with the same bytes. The
first works in this process, the second spreads messages over worker processes. Where clients are trained as
one batch, :mod:`.cohort_grid` does both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from itertools import count

from flwr.app import Error, Message

from headwater.client.execution.execute import evaluate, execute, introduce, introduction
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.errors import HeadwaterError
from headwater.flower import as_array, assume_task_identity, pack, padding_in, unpack
from headwater.flower.one_run import OneRunGrid
from headwater.proto.wire import decode_request
from headwater.protocol.messages import ClientFailure, ClientProfile, EvaluateRequest, TrainRequest
from headwater.simulation.workers import WorkerPool

FIRST_NODE = 2
"""Flower's node 1 is the server."""
COHORT = 32
"""Clients that are executed at once: what bounds how many clients' examples are held."""


class LocalGrid(OneRunGrid):
    """Nodes of one box: node ``FIRST_NODE + k`` is the k-th client in sorted order.

    Args:
        clients: client names, sorted.
        runtime: with the data of all of them; without it only a message tells what a client has.
    """

    def __init__(self, clients: Sequence[str], runtime: ClientRuntime | None = None) -> None:
        assume_task_identity(run_id=1, node_id=1)
        self._local = runtime
        self._clients = clients
        self._ids = count()

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: they are always there."""
        return range(FIRST_NODE, FIRST_NODE + len(self._clients))

    def introductions(self) -> Callable[[int], ClientProfile | ClientFailure] | None:
        """What says of a node what a message to it would: with 100,000 clients, in a hundredth of the time.

        None where a process without this one's runtime, or a planner's measurements of a device, decide.
        """
        runtime = self._local
        if runtime is None or runtime.measures_devices:
            return None
        return lambda node: introduction(self._clients[node - FIRST_NODE], runtime)

    def _name(self, message: Message) -> str:
        return self._clients[message.metadata.dst_node_id - FIRST_NODE]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; return an id for each."""
        ids = []
        for message in messages:
            message_id = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id  # Flower's own links set it so
            self._deliver(message_id, message)
            ids.append(message_id)
        return ids

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until every message is answered."""
        ids = set(self.push_messages(messages))
        replies: list[Message] = []
        while len(replies) < len(ids):
            replies.extend(self.pull_messages(ids))
        return replies

    @abstractmethod
    def _deliver(self, message_id: str, message: Message) -> None:
        """One message more."""

    @abstractmethod
    def cancel(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for these any more: work that has not begun is not done."""


def _reply(message: Message, result: bytes | Error) -> Message:
    return Message(
        result if isinstance(result, Error) else pack(reply=as_array(result, padding_in(message.content))),
        reply_to=message,
    )


class QueuedGrid(LocalGrid):
    """Messages wait until a pull executes them, those of one pull together, one reply at a time.

    Args:
        clients: client names, sorted.
        runtime: with their data.
    """

    def __init__(self, clients: Sequence[str], runtime: ClientRuntime) -> None:
        super().__init__(clients, runtime)
        self._queued: dict[str, Message] = {}
        self._running = self._execute({})
        self._sent: dict[str, Message] = {}
        self._ready: dict[str, Message] = {}

    def _deliver(self, message_id: str, message: Message) -> None:
        self._queued[message_id] = message

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The next reply among ``message_ids``, executing what is queued; at most one."""
        wanted = set(message_ids)
        while True:
            if ready := wanted & self._ready.keys():
                return [self._ready.pop(min(ready))]
            # looked up one by one: a set would walk through all that is queued, for each reply once
            if not any(i in self._sent or i in self._queued for i in wanted):
                return []
            answered = next(self._running, None)
            if answered is None:
                self._sent, self._queued = self._queued, {}
                self._running = self._execute(dict(self._sent))
            else:
                message_id, result = answered
                if message_id in self._sent:  # else it was cancelled
                    self._ready[message_id] = _reply(self._sent.pop(message_id), result)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop the messages; a cohort of which nothing is wanted ends where it is."""
        for message_id in message_ids:
            for held in (self._queued, self._sent, self._ready):
                held.pop(message_id, None)
        if not self._sent:
            self._running.close()

    @abstractmethod
    def _execute(self, messages: dict[str, Message]) -> Generator[tuple[str, bytes | Error], None, None]:
        """Answer messages that wait: ``(message id, reply)``."""


class InProcessGrid(QueuedGrid):
    """Answers in this process, client after client.

    Args:
        clients: client names, sorted.
        runtime: model and data of the clients.
        store: their error feedback.
    """

    def __init__(self, clients: Sequence[str], runtime: ClientRuntime, store: ClientStore) -> None:
        super().__init__(clients, runtime)
        self._runtime, self._store = runtime, store

    def _execute(self, messages: dict[str, Message]) -> Generator[tuple[str, bytes | Error], None, None]:
        """Decode all messages, then answer them."""
        train: dict[int, list[tuple[str, TrainRequest]]] = {}  # by round: buffered ones overlap
        for message_id, message in messages.items():
            try:
                request = decode_request(*unpack(message.content, "envelope", "state"))
            except HeadwaterError as error:
                yield message_id, Error(code=2, reason=str(error))
                continue
            if isinstance(request, TrainRequest):
                train.setdefault(request.round, []).append((message_id, request))
            elif isinstance(request, EvaluateRequest):
                (result,) = evaluate([request], self._store, self._runtime)
                yield message_id, result.data
            else:
                yield message_id, introduce(self._name(message), self._runtime)
        for tasks in train.values():
            for start in range(0, len(tasks), COHORT):
                cohort = {r.client: (i, r) for i, r in tasks[start : start + COHORT] if i in self._sent}
                for answer in execute([r for _, r in cohort.values()], self._store, self._runtime):
                    yield cohort[answer.client][0], answer.data


class WorkersGrid(LocalGrid):
    """Messages go to worker processes at once; a pull hands back what is done.

    Args:
        clients: client names, sorted.
        pool: the processes.
        runtime: as of :class:`LocalGrid`.
    """

    def __init__(
        self, clients: Sequence[str], pool: WorkerPool, runtime: ClientRuntime | None = None
    ) -> None:
        super().__init__(clients, runtime)
        self._pool = pool
        self._sent: dict[str, tuple[Message, Future[bytes]]] = {}

    def _deliver(self, message_id: str, message: Message) -> None:
        name = self._name(message)
        future = self._pool.submit(name, *unpack(message.content, "envelope", "state"))
        self._sent[message_id] = message, future

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop the messages; one that a worker has begun ends unheard."""
        for message_id in message_ids:
            if message_id in self._sent:
                self._sent.pop(message_id)[1].cancel()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies among ``message_ids`` that are there."""
        replies = []
        for message_id in message_ids:
            if message_id in self._sent and self._sent[message_id][1].done():
                message, future = self._sent.pop(message_id)
                result = self._pool.result(future)
                replies.append(_reply(message, result))
        return replies
