"""The daemon's Grid over :class:`headwater.flower.link_state.HeadwaterLinkState`: :class:`LinkGrid`.

No sockets, no polling of a SuperLink: requests are laid into the state that the Fleet API serves from,
and replies are taken out of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Array, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from headwater.errors import DecodeError
from headwater.flower.link_state import FOREVER_S, HeadwaterLinkState
from headwater.flower.message_objects import open_objects, seal
from headwater.flower.one_run import OneRunGrid
from headwater.flower.records import pack

PULL_BYTES = 2**26
"""Replies of more than this together come in several pulls; one always comes."""
_POLL_S = 0.05


class LinkGrid(OneRunGrid):
    """Messages wait until they are fetched, answered or cancelled; a client that is away is no error.

    Args:
        link_state: where the Fleet API serves from.
        node_ids: the nodes that are there.
    """

    def __init__(self, link_state: HeadwaterLinkState, node_ids: Callable[[], list[int]]) -> None:
        self._link_state, self._node_ids = link_state, node_ids
        self._last = 0.0
        self._speeds: dict[str, int] = {}  # of replies that were pulled

    def get_node_ids(self) -> Iterable[int]:
        """The registered nodes that were heard of lately."""
        return self._node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """An id for each message; None, as from Flower's grids, where the node is not registered."""
        shared: dict[int, Array] = {}
        with no_object_id_recompute():
            ids: list[str | None] = [self._push(message, shared) for message in messages]
        return ids  # type: ignore[return-value]  # Flower's grids do the same; Exchange expects it

    def _push(self, message: Message, shared: dict[int, Array]) -> str | None:
        asked = message.metadata
        # Flower names a message by its hash: two of the same content must differ in their time
        self._last = max(time.time(), self._last + 1e-5)
        metadata = Metadata(
            run_id=self._link_state.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=asked.dst_node_id,
            reply_to_message_id="",
            group_id=asked.group_id,
            created_at=self._last,
            ttl=FOREVER_S,
            message_type=asked.message_type,
        )
        sealed = make_message(metadata, content=seal(message.content, shared))
        metadata.__dict__["_message_id"] = sealed.object_id  # as Flower's own grids do
        objects, tree = get_all_nested_objects(sealed), get_object_tree(sealed)
        store, ready = self._link_state.object_store, dict[str, bytes]()
        while asked.dst_node_id in self._link_state.outbox:
            # a state of hundreds of MB takes seconds, and every request of every client needs the lock
            ready |= {i: objects[i].deflate() for i in objects if i not in ready and i not in store}
            with self._link_state.lock:
                if asked.dst_node_id not in self._link_state.outbox:
                    break
                if any(i not in ready and i not in store for i in objects):
                    continue  # another message that held them too was dropped meanwhile
                for object_id in store.preregister(self._link_state.run_id, tree):
                    store.put(object_id, ready[object_id])
                self._link_state.post(remove_content_from_message(sealed))
                return metadata.message_id
        return None

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these that are here whole; each leaves with its request and all objects.

        A message that is not known (cancelled, or its client was unregistered) gives an error, and so
        does a reply that cannot be read.
        """
        replies, size = [], 0
        for message_id in message_ids:
            if size >= PULL_BYTES:
                break
            with self._link_state.lock:
                request = self._link_state.message_ins_store.get(message_id)
                speed = self._link_state.bytes_per_s(message_id)
                taken = self._link_state.take(message_id)
                bound = (
                    0 if request is None else self._link_state.max_reply_bytes(request.metadata.dst_node_id)
                )
            if request is None:
                replies.append(_gone(message_id, self._link_state.run_id))
            elif taken is not None:
                _, root, contents = taken
                self._speeds |= {} if speed is None else {message_id: speed}
                size += sum(map(len, contents.values()))
                try:
                    parts = open_objects(root, contents, max_bytes=bound)
                    answer: RecordDict | Error = pack(**parts)
                except DecodeError as error:
                    answer = Error(ErrorCode.UNKNOWN, str(error))
                # whom it answers is what was asked, not what the reply says
                replies.append(Message(answer, reply_to=request))
        return replies

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Forget these messages, with their replies and half replies."""
        for message_id in message_ids:
            self._speeds.pop(message_id, None)
            self._link_state.drop(message_id)

    def bytes_per_s(self, message_id: str) -> int | None:
        """How fast a pulled reply came, said once, or one comes that is not whole; None: nobody knows."""
        if message_id in self._speeds:
            return self._speeds.pop(message_id)
        with self._link_state.lock:
            whole = self._link_state.answered(message_id)
            return None if whole else self._link_state.bytes_per_s(message_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until every message is answered or ``timeout`` seconds are over."""
        waiting = {i for i in self.push_messages(messages) if i is not None}
        until = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (until is None or time.monotonic() < until):
            answered = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in answered}
            replies += answered
            if not answered:
                time.sleep(_POLL_S)
        return replies


def _gone(message_id: str, run_id: int) -> Message:
    """What a pull gives for a message that is not here."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=FOREVER_S,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(
        metadata,
        error=Error(
            ErrorCode.MESSAGE_UNAVAILABLE,
            "no reply can come any more: the keys of the client that was asked were revoked",
        ),
    )
