"""InProcessGrid: a Flower Grid without sockets, processes or Ray.

Messages that are pushed wait; a pull executes them, as cohorts through the one client path
(:func:`headwater.client.execute.execute`), and hands back one reply at a time, so that replies never
pile up. With ``workers`` the cohorts are spread over processes, and the bits stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from headwater.client.execute import evaluate, execute
from headwater.client.runtime import ClientRuntime
from headwater.client.store import ClientStore
from headwater.errors import HeadwaterError
from headwater.flower import assume_task_identity, pack, unpack
from headwater.proto.wire import decode_request, encode_reply
from headwater.protocol.messages import EvaluateRequest, TrainRequest
from headwater.simulation.workers import WorkerPool

FIRST_NODE = 2
"""Flower's node 1 is the server."""


class InProcessGrid(Grid):
    """Nodes of one process: node ``FIRST_NODE + k`` is the k-th client in sorted order.

    Args:
        clients: client names, sorted.
        runtime: model and data of the clients.
        store: their error feedback.
        pool: processes that execute; this process does if None.
    """

    def __init__(
        self,
        clients: Sequence[str],
        runtime: ClientRuntime,
        store: ClientStore,
        pool: WorkerPool | None = None,
    ) -> None:
        assume_task_identity(run_id=1, node_id=1)
        self._names = {FIRST_NODE + k: name for k, name in enumerate(clients)}
        self._runtime, self._store, self._pool = runtime, store, pool
        self._ids = count()
        self._queued: dict[str, Message] = {}
        self._running: Iterator[tuple[str, bytes | Error]] = iter(())
        self._sent: dict[str, Message] = {}
        self._ready: dict[str, tuple[Message, bytes | Error]] = {}

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: they are always there."""
        return list(self._names)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; nothing is executed yet."""
        ids = []
        for message in messages:
            message_id = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id  # Flower's own links set it so
            self._queued[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The next reply among ``message_ids``, executing what is queued; at most one."""
        wanted = set(message_ids)
        while True:
            for message_id in wanted & self._ready.keys():
                message, result = self._ready.pop(message_id)
                content = result if isinstance(result, Error) else pack(reply=result)
                return [Message(content, reply_to=message)]
            if not wanted & (self._queued.keys() | self._sent.keys()):
                return []
            answered = next(self._running, None)
            if answered is None:
                self._sent, self._queued = self._queued, {}
                self._running = self._execute(dict(self._sent))
            else:
                self._ready[answered[0]] = self._sent.pop(answered[0]), answered[1]

    def _execute(self, messages: dict[str, Message]) -> Iterator[tuple[str, bytes | Error]]:
        """Decode all messages, then answer them as cohorts: ``(message id, reply)``."""
        if self._pool is not None:
            yield from self._pool.run(
                (i, self._names[m.metadata.dst_node_id], unpack(m.content, "envelope", "state"))
                for i, m in messages.items()
            )
            return
        train: dict[str, tuple[str, TrainRequest]] = {}
        for message_id, message in messages.items():
            request = decode_request(*unpack(message.content, "envelope", "state"))
            if isinstance(request, TrainRequest):
                train[request.client] = message_id, request
            elif isinstance(request, EvaluateRequest):
                (result,) = evaluate([request], self._runtime)
                yield message_id, result.data
            else:
                yield message_id, self._profile(self._names[message.metadata.dst_node_id])
        for answer in execute([request for _, request in train.values()], self._store, self._runtime):
            yield train[answer.client][0], answer.data

    def _profile(self, name: str) -> bytes | Error:
        try:
            return encode_reply(self._runtime.profile(name))
        except HeadwaterError as error:
            return Error(code=2, reason=str(error))

    # What Flower's interface asks for besides; the server uses none of it.

    def set_run(self, run: object) -> None:
        """Nothing: there is one run."""

    @property
    def run(self) -> None:  # type: ignore[override]  # Flower's Run is internal and has no meaning here
        """No Flower run."""
        return

    def create_message(  # noqa: D102 - deprecated by Flower; kept because the interface demands it
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until every message is answered."""
        ids = set(self.push_messages(messages))
        replies: list[Message] = []
        while len(replies) < len(ids):
            replies.extend(self.pull_messages(ids))
        return replies
