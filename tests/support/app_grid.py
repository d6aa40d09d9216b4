"""A Flower Grid over one ClientApp and a context for each node, in this process: :class:`AppGrid`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto, recorddict_from_proto, recorddict_to_proto

from headwater.flower import assume_task_identity
from headwater.flower.one_run import OneRunGrid


class AppGrid(OneRunGrid):
    """Contents and contexts travel as Flower's protobufs; what an app raises is an error, as on a SuperNode.

    Args:
        app: makes the ClientApp, for each message anew.
        nodes: a node config for each node.
        run_config: of the run.
        between: called before each message.

    Attributes:
        sent: content of each message to a node, and of each reply, in order.
    """

    def __init__(
        self,
        app: Callable[[], ClientApp],
        nodes: Sequence[Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        assume_task_identity(run_id=1, node_id=1)
        self._app, self._between = app, between
        self._ids = count()
        self._replies: dict[str, Message] = {}
        self.contexts = {
            2 + k: Context(1, 2 + k, dict(node), RecordDict(), dict(run_config or {}))
            for k, node in enumerate(nodes)
        }
        self.sent: list[tuple[RecordDict, RecordDict | None]] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            self._replies[message_id] = self._answer(message)
            ids.append(message_id)
        return ids

    def _answer(self, message: Message) -> Message:
        self._between()
        node = message.metadata.dst_node_id
        context = context_from_proto(context_to_proto(self.contexts[node]))
        there = Message(recorddict_from_proto(recorddict_to_proto(message.content)), reply_to=message)
        for name in ("_message_id", "_dst_node_id", "_message_type"):
            there.metadata.__dict__[name] = message.metadata.__dict__[name]
        try:
            reply = self._app()(there, context)
        except Exception as error:
            self.sent.append((message.content, None))
            return Message(Error(2, f"{type(error)}:<{str(error)!r}>"), reply_to=message)
        self.contexts[node] = context
        if reply.has_error():
            return Message(reply.error, reply_to=message)
        content = recorddict_from_proto(recorddict_to_proto(reply.content))
        self.sent.append((message.content, content))
        return Message(content, reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(list(self.push_messages(messages)))
