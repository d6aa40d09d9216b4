"""A device's end of Flower's Fleet API: :class:`FleetClient`.

An object is at most about a MiB, so that a broken line costs one: what was sent or fetched before is not
sent again.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message, Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)
from google.protobuf.message import Message as Protobuf

from headwater.errors import ConnectionLost, DecodeError
from headwater.flower.message_objects import most_objects, open_objects, seal, tree_objects, wrapped
from headwater.flower.padding import Padding
from headwater.flower.records import as_array, pack
from headwater.flower.signed_http import Gone, SignedHttp
from headwater.security.signing import Identity

HEARTBEAT_S = float(HEARTBEAT_DEFAULT_INTERVAL)
"""How often an agent should call :meth:`FleetClient.heartbeat`."""
_AT_ONCE = 4
_FEW = 8
"""So many objects go one after the other: a small message is not worth three more connections."""
_ANSWER_BYTES = 2**23
"""More than any answer has: an object of a MiB, or the ids of 100,000 objects."""
_ATTEMPTS = 3

T = TypeVar("T", bound=Protobuf)


@dataclass(frozen=True)
class Delivery:
    """A request from the server.

    Args:
        message_id: the same when it is delivered again.
        kind: ``query``, ``train`` or ``evaluate``.
        parts: named bytes, as packed by the server.
        origin: Flower's metadata, for the reply.
        padding: of the request, and so of the reply.
    """

    message_id: str
    kind: str
    parts: dict[str, bytes]
    origin: Metadata | None = field(default=None, repr=False, compare=False)
    padding: Padding = "none"


@dataclass
class _Fetching:
    """A request of which some objects are here."""

    message: Message
    root: str
    ids: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class FleetClient:
    """One device's connection to its server.

    :meth:`heartbeat` may be called from another thread at any time; the other methods from one.

    Args:
        server: host and port.
        ca_pem: the only authority that may vouch for it.
        identity: the device's keys.
        version: of this headwater; the server lets in its own major.minor.
        timeout_s: for connecting, and for each silence on a connection.
        max_request_bytes: of one request; more is refused while it is fetched.
        clock: Unix seconds by this device's clock; the server's ``Date`` corrects it.

    Every method but ``close`` raises:
        ConnectionLost: the server was not reached, was restarted or is busy: :meth:`activate` again, later.
        Refused: the server says no (unknown or revoked keys, another agent with these keys, a version
            that does not fit): asking again will not change it.
    """

    def __init__(
        self,
        server: str,
        ca_pem: bytes,
        identity: Identity,
        *,
        version: str,
        timeout_s: float = 60.0,
        max_request_bytes: int = 2**32,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._http = SignedHttp(server, ca_pem, identity, version=version, timeout_s=timeout_s, clock=clock)
        self._server, self._node_key = server, identity.public.node_key
        self._max_request_bytes = max_request_bytes
        self._node = 0
        self._fetching: _Fetching | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections; :meth:`deactivate` says goodbye first."""
        self._http.close()

    def activate(self) -> None:
        """Activate the node, in place of an agent with the same keys. Unanswered requests come again."""
        request = fleet_pb2.ActivateNodeRequest(public_key=self._node_key, heartbeat_interval=HEARTBEAT_S)
        answer = self._call("activate-node", request, fleet_pb2.ActivateNodeResponse)
        with self._lock:
            if answer.node_id != self._node:  # another start of the server: what was half here is gone
                self._node, self._fetching = answer.node_id, None

    def deactivate(self) -> None:
        """Deactivate the node: the server no longer counts on this device."""
        request = fleet_pb2.DeactivateNodeRequest(node_id=self._node)
        self._call("deactivate-node", request, fleet_pb2.DeactivateNodeResponse)

    def heartbeat(self) -> None:
        """Say that this device is there; see :data:`HEARTBEAT_S`."""
        request = heartbeat_pb2.SendNodeHeartbeatRequest(
            node=self._me(), heartbeat_interval=HEARTBEAT_S
        )  # fmt: skip
        self._call("send-node-heartbeat", request, heartbeat_pb2.SendNodeHeartbeatResponse)

    def receive(self) -> Delivery | None:
        """The next request, whole; None if there is none.

        After :class:`ConnectionLost` the next call goes on where it broke off. A request that was
        confirmed is delivered again only after :meth:`activate`, with the same ``message_id``.

        Raises:
            DecodeError: the request is too large or cannot be read; it will not come again.
        """
        with self._lock:
            fetching = self._fetching
        if fetching is None and (fetching := self._pull()) is None:
            return None
        try:
            missing = [i for i in fetching.ids if i not in fetching.contents]
            _each(missing, functools.partial(self._fetch, fetching))
            parts = open_objects(fetching.root, fetching.contents, max_bytes=self._max_request_bytes)
        except Gone:  # cancelled meanwhile
            self._forget(fetching)
            return None
        except DecodeError:
            self._confirm(fetching)
            raise
        self._confirm(fetching)
        origin = fetching.message.metadata
        return Delivery(fetching.root, origin.message_type, parts, origin, parts.padding)

    def reply(self, delivery: Delivery, data: bytes) -> None:
        """Answer a request; safe to call again, only what the server lacks is sent.

        Nothing happens if nobody waits for the answer any more.
        """
        asked = delivery.origin
        if asked is None:
            raise DecodeError("reply", expected="a delivery that came over a connection", got="another")
        announce, objects = sealed_reply(asked, data, delivery.padding)
        announce.node.CopyFrom(self._me())
        try:
            for _ in range(_ATTEMPTS):
                answer = self._call("push-messages", announce, fleet_pb2.PushMessagesResponse)
                missing = [i for i in answer.objects_to_push if i in objects]
                session = answer.session_id

                def send(object_id: str, session: str = session) -> None:
                    self._send(asked.run_id, session, object_id, objects[object_id].deflate())

                if not missing or _all_sent(missing, send):
                    return
        except Gone:
            return
        raise ConnectionLost(
            self._server,
            expected="the server to take every part of the reply",
            got="it asked for the same parts again",
            hint="The agent replies again, later.",
        )

    def _send(self, run: int, session: str, object_id: str, content: bytes) -> None:
        request = message_pb2.PushObjectRequest(
            node=self._me(), run_id=run, object_id=object_id, object_content=content, session_id=session
        )
        if not self._call("push-object", request, message_pb2.PushObjectResponse).stored:
            raise _NotStored

    def _pull(self) -> _Fetching | None:
        request = fleet_pb2.PullMessagesRequest(node=self._me())
        answer = self._call("pull-messages", request, fleet_pb2.PullMessagesResponse)
        if not answer.messages_list or not answer.message_object_trees:
            return None
        tree = answer.message_object_trees[0]
        # an object that is no chunk belongs to a part, and parts are few
        ids = tree_objects(tree, most=64 + most_objects(self._max_request_bytes))
        fetching = _Fetching(message_from_proto(answer.messages_list[0]), tree.object_id, ids)
        with self._lock:
            self._fetching = fetching
        return fetching

    def _fetch(self, fetching: _Fetching, object_id: str) -> None:
        request = message_pb2.PullObjectRequest(
            node=self._me(), run_id=fetching.message.metadata.run_id, object_id=object_id
        )
        answer = self._call("pull-object", request, message_pb2.PullObjectResponse)
        if not answer.object_available:
            raise Gone(self._server, expected="an object", got="none: the request was cancelled")
        content = answer.object_content
        if get_object_id(content) != object_id:
            raise ConnectionLost(self._server, expected=f"object {object_id[:12]}", got="other bytes")
        with self._lock:
            fetching.size += len(content)
            if fetching.size > wrapped(self._max_request_bytes):
                raise DecodeError("request", expected=f"at most {self._max_request_bytes} bytes", got="more")
            fetching.contents[object_id] = content

    def _confirm(self, fetching: _Fetching) -> None:
        request = message_pb2.ConfirmMessageReceivedRequest(
            node=self._me(), run_id=fetching.message.metadata.run_id, message_object_id=fetching.root
        )
        self._call("confirm-message-received", request, message_pb2.ConfirmMessageReceivedResponse)
        self._forget(fetching)

    def _forget(self, fetching: _Fetching) -> None:
        with self._lock:
            if self._fetching is fetching:
                self._fetching = None

    def _me(self) -> Node:
        return Node(node_id=self._node)

    def _call(self, name: str, request: Protobuf, answer: type[T]) -> T:
        return self._http.call(f"/v1/fleet/{name}", request, answer, max_bytes=_ANSWER_BYTES)


class _NotStored(Exception):
    """The server dropped this upload: another one took its place, or nobody waits for it."""


def sealed_reply(
    asked: Metadata, data: bytes, padding: Padding = "none"
) -> tuple[fleet_pb2.PushMessagesRequest, dict[str, InflatableObject]]:
    """The announcement of a reply, and its objects by id.

    The same data gives the same ids whenever it is sent: time and life are the request's.
    """
    metadata = Metadata(
        run_id=asked.run_id,
        message_id="",
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=asked.created_at,
        ttl=asked.ttl,
        message_type=asked.message_type,
    )
    with no_object_id_recompute():
        message = make_message(metadata, content=seal(pack(reply=as_array(data, padding)), {}))
        metadata.__dict__["_message_id"] = message.object_id  # as Flower's own nodes do
        objects, tree = get_all_nested_objects(message), get_object_tree(message)
    announce = fleet_pb2.PushMessagesRequest(
        messages_list=[message_to_proto(remove_content_from_message(message))],
        message_object_trees=[tree],
    )
    return announce, objects


def _all_sent(ids: list[str], send: Callable[[str], None]) -> bool:
    try:
        _each(ids, send)
    except _NotStored:
        return False
    return True


def _each(ids: list[str], act: Callable[[str], None]) -> None:
    """``act`` on each, of many a few at once; the first error ends it, and what was done stays done."""
    if len(ids) <= _FEW:
        for one in ids:
            act(one)
        return
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="headwater-fleet") as pool:
        futures = [pool.submit(act, i) for i in ids]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()
