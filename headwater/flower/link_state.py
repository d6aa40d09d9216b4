"""HeadwaterLinkState: Flower's LinkState with messages that wait for ever and replies that nobody can flood.

Of Flower's ``InMemoryLinkState`` come the nodes and their keys, the run, and the store of requests and of
their objects. Three things are ours. *Time*: no clock of the server expires a message or takes a node
off. *Delivery*: a request is handed out until its receiver confirms it, and again after it comes back
from a crash, until it is answered or cancelled. *Replies*: each is kept apart from all others until
it is whole, so that a client can neither fill the memory nor touch another's objects.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import HTTPException
from flwr.app import Message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, Status
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.task_pb2 import TaskStatus
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

from headwater.errors import DecodeError
from headwater.flower.message_objects import most_objects, reply_objects, wrapped
from headwater.flower.names_of_1_43 import NamesOf143

FOREVER_S = 100 * 365 * 86400.0
"""A time to live that no jump of a clock reaches, and small enough for exact sums of seconds."""
CUT_S = 1.0
"""A reply that was cut short before it took so long says more about latency than about its link."""
_TICK_S = 1e-3


@dataclass
class Upload:
    """A reply that is coming in, or is whole: ``missing`` is 0.

    It was announced at ``began_s`` of the server's clock, when ``before`` bytes had come from its node, and
    was whole at ``ended_s``.
    """

    node: int
    root: str
    session: str
    contents: dict[str, bytes | None]
    missing: int
    began_s: float
    before: int
    size: int = 0
    ended_s: float | None = None


class HeadwaterLinkState(NamesOf143, InMemoryLinkState):
    """Requests out, replies in.

    Args:
        max_reply_bytes: of a node's replies that wait here at any time, without Flower's wrapping.
        clock: monotonic seconds; nothing but the speed of replies depends on it.
    """

    def __init__(
        self, max_reply_bytes: Callable[[int], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        # what goes out was hashed by this process; what comes in is not kept there
        super().__init__(NoOpFederationManager(), InMemoryObjectStore(verify=False))
        self._max_reply_bytes, self._clock = max_reply_bytes, clock
        self.outbox: dict[int, dict[str, Message]] = {}
        self.uploads: dict[str, Upload] = {}
        self._sessions: dict[str, str] = {}
        self._stored: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self.run_id = self.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP
        )  # fmt: skip
        # set, not claimed: a claimed task ends without the heartbeats of a Flower executor
        (task,) = self.task_store.values()
        task.status.CopyFrom(TaskStatus(status=Status.RUNNING, sub_status="", details=""))

    # --- nodes -------------------------------------------------------------------------------------

    def add_node(self, public_key: bytes) -> int:
        """A node for this key; messages can be sent to it before it is first seen."""
        with self.lock:
            node = self.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0)
            self.activate_node(node, 0)
            self.outbox[node] = {}
            return node

    def remove_node(self, node: int) -> None:
        """Forget a node with all that waits for it or came from it; its key may be used again."""
        with self.lock:
            for message_id in list(self.outbox.pop(node, {})):
                self.drop(message_id)
            info = self.nodes.pop(node)
            self.node_public_key_to_node_id.pop(info.public_key, None)
            self.owner_to_node_ids[NOOP_FLWR_AID].discard(node)
            self._stored.pop(node, None)
            self._received.pop(node, None)

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Let a node in whatever it was before; what it did not answer is delivered to it again."""
        with self.lock:
            node = self.nodes.get(node_id)
            if node is None:
                return False
            node.status, node.online_until = NodeStatus.ONLINE, float("inf")
            for message in self.outbox.get(node_id, {}).values():
                message.metadata.delivered_at = ""
            return True

    def acknowledge_node_heartbeat(self, node_id: int, heartbeat_interval: float) -> bool:
        """Whether the node exists: that it is there, :class:`~.fleet_server.FleetServer` keeps."""
        return node_id in self.nodes

    def deactivate_node(self, node_id: int) -> bool:
        """Whether the node exists; Flower would refuse messages for it, here they wait."""
        return node_id in self.nodes

    # --- requests ----------------------------------------------------------------------------------

    def post(self, message: Message) -> None:
        """Hand out a request whose objects are in the object store. Call it with the lock held."""
        message_id = message.metadata.message_id
        if self.store_message_ins(message) is None:
            self.object_store.delete(message_id)
            raise RuntimeError("Flower's LinkState refused a message that this process made")
        self.outbox[message.metadata.dst_node_id][message_id] = message

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """The oldest request that the node has neither confirmed nor answered."""
        with self.lock:
            for message_id, message in self.outbox.get(node_id, {}).items():
                if message.metadata.delivered_at == "" and not self.answered(message_id):
                    return [message]
            return []

    def confirm(self, message_id: str) -> None:
        """Mark a request as received: it is not delivered again unless its receiver restarts."""
        with self.lock:
            if message_id in self.message_ins_store:
                self.message_ins_store[message_id].metadata.delivered_at = "confirmed"

    def drop(self, message_id: str) -> None:
        """Forget this message, with its objects and its reply."""
        with self.lock:
            message = self.message_ins_store.pop(message_id, None)
            if message is None:
                return
            self.outbox.get(message.metadata.dst_node_id, {}).pop(message_id, None)
            self.object_store.delete(message_id)
            self._drop_upload(message_id)

    # --- replies -----------------------------------------------------------------------------------

    def answered(self, message_id: str) -> bool:
        """Whether the reply to this message is here, whole."""
        upload = self.uploads.get(message_id)
        return upload is not None and upload.missing == 0

    def take(self, message_id: str) -> tuple[Message, str, dict[str, bytes]] | None:
        """Request, root and objects of a whole reply; with that, both are gone. None: not whole yet."""
        with self.lock:
            if not self.answered(message_id):
                return None
            request, upload = self.message_ins_store[message_id], self.uploads[message_id]
            contents = {i: content for i, content in upload.contents.items() if content is not None}
            self.drop(message_id)
            return request, upload.root, contents

    def received(self, node: int, size: int) -> None:
        """So many more bytes of objects have come from this node, whatever becomes of them."""
        with self.lock:
            if node in self.outbox:
                self._received[node] = self._received.get(node, 0) + size

    def bytes_per_s(self, message_id: str) -> int | None:
        """How fast the reply to this message came, or comes: from its announcement to its last object.

        Breaks of the line count as time of the way. None: nothing is announced, or it has been coming for
        less than :data:`CUT_S`.
        """
        with self.lock:
            upload = self.uploads.get(message_id)
            if upload is None:
                return None
            if upload.ended_s is not None:
                return int(upload.size / max(_TICK_S, upload.ended_s - upload.began_s))
            took = self._clock() - upload.began_s
            size = max(upload.size, self._received.get(upload.node, 0) - upload.before)
            return None if took < CUT_S else int(size / took)

    def max_reply_bytes(self, node: int) -> int:
        """The bound of :meth:`stored_bytes`, with Flower's wrapping."""
        return wrapped(self._max_reply_bytes(node))

    def stored_bytes(self, node: int) -> int:
        """Bytes of this node's replies that wait here."""
        return self._stored.get(node, 0)

    def whole_bytes(self, node: int) -> int:
        """Those of them that only wait to be pulled."""
        with self.lock:
            return sum(u.size for u in self.uploads.values() if u.node == node and u.missing == 0)

    def owns(self, node: int, session: str) -> bool:
        """Whether this upload session is unknown, or the node's."""
        upload = self.uploads.get(self._sessions.get(session, ""))
        return upload is None or upload.node == node

    def start_session(self, run_id: int) -> str:
        """A name for an upload; nothing is kept until there is a message to it."""
        return secrets.token_hex(16)

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """Announce a reply; return whether somebody waits for it, and the objects still to come.

        The same reply again goes on where it broke off. Another one takes its place while it is not
        whole; once it is, the first one stays.
        """
        request_id, node = message.metadata.reply_to_message_id, message.metadata.src_node_id
        with self.lock:
            if request_id not in self.message_ins_store:
                return False, []  # cancelled or answered: what comes late is not kept
            upload = self.uploads.get(request_id)
            if upload is not None and upload.missing == 0:
                return True, []
            if upload is None or upload.root != object_tree.object_id:
                most = most_objects(self._max_reply_bytes(node))
                try:
                    ids = reply_objects(object_tree, most=most)
                except DecodeError as error:
                    raise HTTPException(422, str(error)) from error
                self._drop_upload(request_id)
                began_s, before = self._clock(), self._received.get(node, 0)
                root, contents = object_tree.object_id, dict.fromkeys(ids)
                upload = Upload(node, root, session_id, contents, len(ids), began_s, before)
                self.uploads[request_id] = upload
            self._sessions.pop(upload.session, None)
            upload.session = session_id
            self._sessions[session_id] = request_id
            return True, [i for i, content in upload.contents.items() if content is None]

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """Take one object of an announced reply; False if nobody waits for it."""
        if get_object_id(object_content) != object_id:
            raise HTTPException(422, "the object is not what its hash says")
        with self.lock:
            request_id = self._sessions.get(session_id, "")
            upload = self.uploads.get(request_id)
            if upload is None or object_id not in upload.contents:
                return False
            if upload.contents[object_id] is not None:
                return True
            bound, size = self.max_reply_bytes(upload.node), len(object_content)
            if upload.size + size > bound:
                self._drop_upload(request_id)
                raise HTTPException(413, f"a reply may have {bound} bytes here")
            if self.stored_bytes(upload.node) + size > bound:
                raise HTTPException(429, f"{bound} bytes of your replies wait here already")
            upload.contents[object_id] = object_content
            upload.size += size
            upload.missing -= 1
            self._stored[upload.node] = self.stored_bytes(upload.node) + size
            if upload.missing == 0:
                upload.ended_s = self._clock()
                self.object_store.delete(request_id)  # the request will not be asked for again
            return True

    def _drop_upload(self, request_id: str) -> None:
        upload = self.uploads.pop(request_id, None)
        if upload is not None:
            self._sessions.pop(upload.session, None)
            self._stored[upload.node] = self.stored_bytes(upload.node) - upload.size
