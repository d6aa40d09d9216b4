"""The server's end of Flower's Fleet API: :class:`FleetServer`.

Its ``app`` speaks eight of Flower's calls and nothing else: no registration, no Control API, no Runtime
API, no documentation pages. It answers only requests that the request authenticator has put a
proven name on (:data:`CLIENT` in the ASGI scope), and checks once more, as Flower does, that the node is that
name's. Its ``grid`` is what a ServerApp would see.
"""

from __future__ import annotations

import base64
import functools
import logging
import threading
import time
from collections.abc import Callable

from fastapi import HTTPException
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PushObjectRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from google.protobuf.message import Message as Protobuf

from headwater.asgi import Receive, Scope, Send
from headwater.flower.fleet_api import FleetApi
from headwater.flower.grid import LinkGrid
from headwater.flower.link_state import HeadwaterLinkState
from headwater.flower.message_objects import wrapped
from headwater.flower.records import assume_task_identity

CLIENT = "headwater.client"
"""Key of the ASGI scope under which the request authenticator hands on the name that it has proven."""
ACTIVATE = "/v1/fleet/activate-node"
DEACTIVATE = "/v1/fleet/deactivate-node"
PUSH_OBJECT = "/v1/fleet/push-object"
PUSH_MESSAGES = "/v1/fleet/push-messages"
PATHS = frozenset(
    {ACTIVATE, DEACTIVATE, PUSH_OBJECT, PUSH_MESSAGES}
    | {f"/v1/fleet/{n}" for n in ("send-node-heartbeat", "pull-messages", "pull-object")}
    | {"/v1/fleet/confirm-message-received"}
)
"""All that ``app`` answers."""


class FleetServer:
    """Nodes, messages and objects of one daemon start; nothing of it outlives the process. Thread-safe.

    Args:
        max_reply_bytes: by name: bytes of replies that may wait here (Flower's wrapping comes on top).
            Called under a lock, once for each object that comes in: it should look up, not wait.
        online_s: how long after its last request a client counts as there; agents send a heartbeat
            every 30 s.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_reply_bytes: Callable[[str], int],
        online_s: float = 90.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Flower tells of every poll of every node at INFO
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self._online_s, self._clock = online_s, clock
        self._nodes: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._keys: dict[str, str] = {}
        self._seen: dict[str, float] = {}
        self._active: set[str] = set()
        self._begun: dict[str, int] = {}
        self._lock = threading.RLock()
        self._max_reply_bytes = max_reply_bytes
        self._link_state = HeadwaterLinkState(lambda node: max_reply_bytes(self.name_of(node)), clock)
        assume_task_identity(self._link_state.run_id, SUPERLINK_NODE_ID)
        self._grid = LinkGrid(self._link_state, self._online_nodes)
        self._api = FleetApi(self._link_state, functools.partial(_check, self._link_state))

    @property
    def grid(self) -> Grid:
        """The nodes that are online; messages to any registered one."""
        return self._grid

    def register(self, name: str, node_key: bytes) -> int:
        """The node of ``name``; a new one if its key is new.

        Args:
            name: enrolled.
            node_key: its public node key, PEM.
        """
        with self._lock:
            if name in self._nodes:
                if self._keys[name] == base64.b64encode(node_key).decode("ascii"):
                    return self._nodes[name]
                self.unregister(name)
            node = self._link_state.add_node(node_key)
            self._nodes[name], self._names[node] = node, name
            self._keys[name] = base64.b64encode(node_key).decode("ascii")
            return node

    def unregister(self, name: str) -> None:
        """Its node, its messages and objects are gone at once; pulling its replies gives errors."""
        with self._lock:
            node = self._nodes.pop(name, None)
            if node is None:
                return
            self._link_state.remove_node(node)
            self._api.forget(base64.b64decode(self._keys[name]))
            del self._names[node], self._keys[name]
            self._seen.pop(name, None)
            self._active.discard(name)  # its sessions are counted on: the next device of that name is new

    def name_of(self, node_id: int) -> str:
        """The client behind a node; KeyError if there is none."""
        return self._names[node_id]

    def node_of(self, name: str) -> int | None:
        """The node of a registered client."""
        return self._nodes.get(name)

    def names(self) -> tuple[str, ...]:
        """Every registered client."""
        with self._lock:
            return tuple(self._nodes)

    def seen(self, name: str) -> float | None:
        """Monotonic time of the last authenticated request of ``name``; None if there was none."""
        return self._seen.get(name)

    def online(self) -> frozenset[str]:
        """The clients that activated, did not say goodbye, and were heard of within ``online_s``."""
        with self._lock:
            since = self._clock() - self._online_s
            return frozenset(name for name in self._active if self._seen.get(name, since) > since)

    def sessions(self) -> dict[str, int]:
        """The clients that are online, each with a number that changes when it comes back."""
        with self._lock:
            return {name: self._begun[name] for name in sorted(self.online())}

    def _online_nodes(self) -> list[int]:
        with self._lock:
            return [self._nodes[name] for name in sorted(self.online())]

    def stored_bytes(self, name: str) -> int:
        """Bytes of this client's replies that wait here."""
        node = self._nodes.get(name)
        return 0 if node is None else self._link_state.stored_bytes(node)

    def room(self, name: str) -> int:
        """Bytes that a further reply of this client may have before a whole one of it is pulled."""
        node = self._nodes.get(name)
        whole = 0 if node is None else self._link_state.whole_bytes(node)
        return wrapped(self._max_reply_bytes(name)) - whole

    def before(self, name: str, path: str) -> None:
        """Called by the request authenticator when ``name`` has proven itself for a request to ``path``."""
        with self._lock:
            if name in self._nodes:
                self._seen[name] = self._clock()

    def received(self, name: str, size: int) -> None:
        """Called by the request authenticator for every piece of an object's body that comes in."""
        node = self._nodes.get(name)
        if node is not None:
            self._link_state.received(node, size)

    def after(self, name: str, path: str, status: int) -> None:
        """Called by the request authenticator when such a request was answered."""
        with self._lock:
            if status == 200 and path == ACTIVATE and name in self._nodes:
                self._active.add(name)
                self._begun[name] = self._begun.get(name, 0) + 1
            if path == DEACTIVATE:
                self._active.discard(name)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: a request under a proven name goes to Flower's handlers, if the node is that name's."""
        if scope["type"] == "http":
            wanted = self._keys.get(scope.get(CLIENT, ""))
            header = FLEET_HTTP_PUBLIC_KEY_HEADER.encode("ascii")
            keys = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == header]
            if wanted is None or keys != [wanted]:
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            await self._api(scope, receive, send)


def _check(link_state: HeadwaterLinkState, request: Protobuf) -> None:
    """What Flower's handlers take on trust: that a node speaks of its own messages, in this run.

    Raises:
        HTTPException: 410 for a run of an earlier start of the daemon, 403 for others' messages, 422 for
            what is none.
    """
    if getattr(request, "run_id", link_state.run_id) != link_state.run_id:
        raise HTTPException(410, "this message is of an earlier start of the server")
    if isinstance(request, PushMessagesRequest):
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise HTTPException(422, "expected one message")
        metadata, root = request.messages_list[0].metadata, request.message_object_trees[0].object_id
        if metadata.run_id != link_state.run_id:
            raise HTTPException(410, "this message is of an earlier start of the server")
        asked = link_state.message_ins_store.get(metadata.reply_to_message_id)
        if metadata.src_node_id != request.node.node_id or (
            asked is not None and asked.metadata.dst_node_id != metadata.src_node_id
        ):
            raise HTTPException(403, "the message was for another node")
        if metadata.message_id != root or (
            asked is not None and asked.metadata.message_type != metadata.message_type
        ):
            raise HTTPException(422, "the reply does not fit its message")
    elif isinstance(request, PushObjectRequest):
        if not link_state.owns(request.node.node_id, request.session_id):
            raise HTTPException(403, "the upload is another node's")
    elif isinstance(request, ConfirmMessageReceivedRequest):
        asked = link_state.message_ins_store.get(request.message_object_id)
        if asked is not None and asked.metadata.dst_node_id != request.node.node_id:
            raise HTTPException(403, "the message was for another node")
