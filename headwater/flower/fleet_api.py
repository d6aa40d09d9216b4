"""Eight of Flower's Fleet calls, without Flower's web stack: :class:`FleetApi`.

Parsing, Flower's handlers and the answer happen in the event loop's own thread: all they do is in memory, and
a call takes a fraction of a millisecond. Flower's FastAPI app does the same in three middlewares and two
thread pool jobs, which took three quarters of the daemon's time with some hundred agents.
"""

from __future__ import annotations

import datetime
import json
import logging
from base64 import b64decode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ConfirmMessageReceivedResponse
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message as Protobuf

from headwater.asgi import Receive, Scope, Send
from headwater.flower.link_state import HeadwaterLinkState

PREFIX = "/v1/fleet/"
_LOG = logging.getLogger("headwater.flower")


@dataclass(frozen=True)
class Call:
    """One path, the protobuf that is posted to it, and what answers."""

    path: str
    request: type[Protobuf]
    answer: Callable[[Any], Protobuf]


class FleetApi:
    """An ASGI app. Who calls has been decided before; that the node is the caller's is checked here.

    Args:
        link_state: nodes, messages and objects.
        check: raises ``HTTPException`` for a request that must not be answered.
    """

    def __init__(self, link_state: HeadwaterLinkState, check: Callable[[Protobuf], None]) -> None:
        self._link_state, self._check = link_state, check
        self.routes = tuple(_calls(link_state))
        self._by_path = {call.path: call for call in self.routes}
        self._signed: dict[bytes, tuple[bytes, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        call = self._by_path.get(scope["path"])
        if call is None or scope["method"] != "POST":
            await _send(send, 404, _detail("Not Found"), b"application/json")
            return
        body = await _body(receive)
        status, content = self._answer(call, dict(scope["headers"]), body)
        await _send(
            send, status, content, PROTOBUF_MEDIA_TYPE.encode() if status == 200 else b"application/json"
        )

    def _answer(self, call: Call, headers: dict[bytes, bytes], body: bytes) -> tuple[int, bytes]:
        try:
            if headers.get(b"content-type", b"").partition(b";")[0].strip() != PROTOBUF_MEDIA_TYPE.encode():
                raise HTTPException(415, f"expected {PROTOBUF_MEDIA_TYPE}")
            request = call.request()
            try:
                request.ParseFromString(body)
            except ProtobufError as error:
                raise HTTPException(400, f"expected a {call.request.__name__}") from error
            self._authenticate(request, headers)
            self._check(request)
            return 200, call.answer(request).SerializeToString()
        except HTTPException as error:
            return error.status_code, _detail(error.detail)
        except FlowerError as error:
            _LOG.warning("%s: %s", call.path, error.message)
            known = API_ERROR_MAP[error.code]
            return known.http_status_code, _detail(known.public_message)
        except Exception:  # what a handler of Flower's raises is no business of the caller's
            _LOG.exception("%s", call.path)
            return 500, _detail("internal error")

    def _authenticate(self, request: Any, headers: dict[bytes, bytes]) -> None:  # noqa: ANN401 - of eight kinds
        """As Flower's ``authenticate_node``: a time signed by the node's key, and the node is that key's.

        Agents sign a time once for many requests; what was verified last for a key is not verified again.

        Raises:
            HTTPException: 401.
        """
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.encode()], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.encode()], validate=True)
            stamp = headers[TIMESTAMP_HEADER.encode()]
            signed_at = datetime.datetime.fromisoformat(stamp.decode("ascii"))
            age = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
            if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
                raise ValueError
            if isinstance(request, ActivateNodeRequest):
                mine = request.public_key == key
            else:
                node = request.node.node_id if hasattr(request, "node") else request.node_id
                mine = self._link_state.get_node_id_by_public_key(key) == node
            if not mine:
                raise ValueError
            if self._signed.get(key) != (stamp, signature):
                if not verify_signature(bytes_to_public_key(key), stamp, signature):
                    raise ValueError
                self._signed[key] = stamp, signature
        except (KeyError, ValueError, TypeError) as error:
            raise HTTPException(401, "Invalid SuperNode authentication") from error

    def forget(self, key: bytes) -> None:
        """The node's key is no longer registered."""
        self._signed.pop(key, None)


def _calls(link_state: HeadwaterLinkState) -> Iterable[Call]:
    """What each of the eight paths does."""
    handlers, store = fleet_handlers, link_state.object_store

    def confirm(request: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:
        # Flower deletes the message here; ours is kept for an agent that comes back from a crash
        link_state.confirm(request.message_object_id)
        return ConfirmMessageReceivedResponse()

    answers: dict[str, Callable[[Any], Protobuf]] = {
        "activate-node": lambda r: handlers.activate_node(r, link_state),
        "deactivate-node": lambda r: handlers.deactivate_node(r, link_state),
        "send-node-heartbeat": lambda r: handlers.send_node_heartbeat(r, link_state),
        "pull-messages": lambda r: handlers.pull_messages(r, link_state, store),
        "push-messages": lambda r: handlers.push_messages(r, link_state),
        "push-object": lambda r: handlers.push_object(r, link_state),
        "pull-object": lambda r: handlers.pull_object(r, link_state),
        "confirm-message-received": confirm,
    }
    for name, answer in answers.items():
        path = f"{PREFIX}{name}"
        yield Call(path, PROTOBUF_REQUEST_TYPES["POST", path], answer)


async def _body(receive: Receive) -> bytes:
    """The request authenticator hands a body on in one piece."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    return body


def _detail(text: object) -> bytes:
    """An error as Flower's clients know it."""
    return json.dumps({"detail": text}).encode()


async def _send(send: Send, status: int, content: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
