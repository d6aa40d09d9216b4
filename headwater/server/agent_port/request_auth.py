"""RequestAuthenticator: decides who may send a byte to the federation's open port.

Flower's own app reads and parses a body before it asks who sent it. Here a request is judged by its head
alone: path, a claim signed by an enrolled key, time and nonce, the newest process of that key, version,
length, quota. Only then its body is read, in bounded time, and compared with the hash that was signed.
To whoever shows no valid key every refusal looks the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from headwater import __version__
from headwater.asgi import App, Receive, Scope, Send
from headwater.errors import DecodeError, UpdateRejected
from headwater.flower.fleet_server import ACTIVATE, CLIENT, PATHS, PUSH_MESSAGES, PUSH_OBJECT, FleetServer
from headwater.security.signing import PublicIdentity, RequestClaim, verify_request
from headwater.server.http_protocol import PROVEN

WINDOW_S = 300
"""How far a request's time may be from ours."""
_FORMER = 16
_ANSWERS = {
    401: "another's node",
    403: "another's message",
    410: "earlier start",
    413: "reply too large",
    422: "garbled",
    429: "full",
}
"""What a refusal behind the request authenticator is counted as."""
_HOUR_S = 3600


@dataclass(frozen=True)
class Limits:
    """What one request and one client may cost."""

    control_bytes: int = 2**16
    """Body of every call but the two below."""
    message_bytes: int = 2**20
    """Body of push-messages: the ids of a reply's objects, 70 bytes for each MiB of it."""
    object_bytes: int = 2**20 + 2**17
    """Body of push-object: one chunk of a MiB and its wrapping, or the index of a large array."""
    bytes_per_hour: int = 2**34
    """Per client, both ways."""
    requests_at_once: int = 16
    """Per client; an agent has five, and those of a line that broke end only with their time."""
    requests_in_window: int = 2**16
    """Per client in 10 minutes, the time for which its nonces are remembered."""
    body_s: float = 120.0
    """Seconds for a body; a MiB in 120 s is 70 kbit/s."""

    def body_bytes(self, path: str) -> int:
        """The longest body for this path."""
        return {PUSH_OBJECT: self.object_bytes, PUSH_MESSAGES: self.message_bytes}.get(
            path, self.control_bytes
        )


class Record(Protocol):
    """What the request authenticator asks of a row of the registry."""

    @property
    def public(self) -> PublicIdentity:
        """Name and keys."""

    @property
    def revoked_at(self) -> str | None:
        """None while the client may come in."""


class Registry(Protocol):
    """What the request authenticator asks of the registry."""

    def get(self, name: str) -> Record | None:
        """The enrolled client of that name."""


class _Refusal(Exception):
    """No, and why: ``reason`` is counted, ``text`` goes to a proven caller."""

    def __init__(self, reason: str, *, status: int = 403, text: str = "") -> None:
        self.reason, self.status, self.text = reason, status, text
        super().__init__(reason)


@dataclass
class _Caller:
    """What is remembered of one client; all of it bounded."""

    instance: str = ""
    former: deque[str] = field(default_factory=lambda: deque(maxlen=_FORMER))
    nonces: dict[bytes, float] = field(default_factory=dict)
    hour: int = 0
    bytes: int = 0
    at_once: int = 0


class RequestAuthenticator:
    """Pure ASGI, outermost.

    Args:
        app: what is behind it, usually ``link.app``.
        link: told of every request of a proven client.
        registry: who is enrolled.
        limits: see :class:`Limits`.
        clock: Unix seconds.
        version: ours; a client's major.minor must be the same.
    """

    def __init__(
        self,
        app: App,
        link: FleetServer,
        registry: Registry,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.time,
        version: str = __version__,
    ) -> None:
        self._app, self._link, self._registry, self._limits = app, link, registry, limits
        self._clock, self._version = clock, version
        self._callers: dict[str, _Caller] = {}
        self.refused: Counter[str] = Counter()
        """Refusals by reason."""
        self.refused_by: Counter[tuple[str, str]] = Counter()
        """Refusals by client and reason, where the client was proven."""

    def refusals(self) -> dict[str, int]:
        """Every refusal once: by reason, and with the client behind it where one was proven."""
        counts = Counter(self.refused)
        for (name, reason), count in list(self.refused_by.items()):
            counts[reason] -= count
            counts[f"{reason} ({name})"] = count
        return {reason: count for reason, count in counts.items() if count > 0}

    def _count(self, reason: str, proven: str) -> None:
        self.refused[reason] += 1
        if proven:
            self.refused_by[proven, reason] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            return
        proven = ""
        try:
            claim = self._identify(scope)
            proven = claim.client
            caller = self._admit(claim, scope)
            if (tell := scope.get(PROVEN)) is not None:
                tell(proven)
        except _Refusal as refusal:
            await self._refuse(refusal, proven, scope, receive, send)
            return
        caller.at_once += 1
        held = [caller]

        async def release_and_send(message: MutableMapping[str, Any]) -> None:
            # before the last byte leaves: the next request may be here before this one is put away
            if held and message["type"] == "http.response.body" and not message.get("more_body", False):
                held.pop().at_once -= 1
            await send(message)

        try:
            body = await self._body(claim, scope["path"], receive)
            await self._pass(claim, caller, body, scope, receive, release_and_send)
        except _Refusal as refusal:
            await self._refuse(refusal, proven, scope, None, release_and_send)
        finally:
            if held:
                held.pop().at_once -= 1

    def _identify(self, scope: Scope) -> RequestClaim:
        """Path, claim, key, signature: whose request this is."""
        path = scope["path"]
        if path not in PATHS or scope["method"] != "POST" or scope["query_string"]:
            raise _Refusal("path")
        try:
            claim = RequestClaim.read(scope["headers"])
        except DecodeError as error:
            raise _Refusal("headers") from error
        record = self._registry.get(claim.client)
        if record is None:
            raise _Refusal("unknown")
        if record.revoked_at is not None:
            raise _Refusal("revoked")
        try:
            verify_request(record.public, claim, method="POST", path=path)
        except UpdateRejected as error:
            raise _Refusal("signature") from error
        return claim

    def _admit(self, claim: RequestClaim, scope: Scope) -> _Caller:
        """Time, nonce, instance, version, length, quota: whether it may be read."""
        now, path = self._clock(), scope["path"]
        caller = self._callers.setdefault(claim.client, _Caller())
        if abs(claim.time_ms / 1000 - now) > WINDOW_S:
            raise _Refusal("time")
        self._use_nonce(caller, claim, now)
        if claim.instance in caller.former:
            raise _Refusal("replaced", status=409, text="another agent with your keys has taken over")
        if claim.instance != caller.instance and path != ACTIVATE:
            raise _Refusal("inactive", status=428, text="the server does not know this session: activate")
        if claim.version.split(".")[:2] != self._version.split(".")[:2]:
            text = f"this server is headwater {self._version}, you are {claim.version}"
            raise _Refusal("version", status=426, text=text)
        length, most = _content_length(scope), self._limits.body_bytes(path)
        if length is None:
            raise _Refusal("no length", status=411, text="content-length is required")
        if length != claim.length:
            raise _Refusal("length")
        if length > most:
            raise _Refusal("too large", status=413, text=f"at most {most} bytes")
        if path == PUSH_OBJECT and length > self._link.room(claim.client):
            raise _Refusal("full", status=429, text="your replies that wait here must be fetched first")
        hour = int(now // _HOUR_S)
        if caller.hour != hour:
            caller.hour, caller.bytes = hour, 0
        if caller.bytes + length > self._limits.bytes_per_hour:
            raise _Refusal("bytes per hour", status=429, text="come back next hour")
        if caller.at_once >= self._limits.requests_at_once:
            raise _Refusal("at once", status=429, text="too many requests at once")
        caller.bytes += length
        return caller

    def _use_nonce(self, caller: _Caller, claim: RequestClaim, now: float) -> None:
        nonces = caller.nonces
        while nonces and nonces[oldest := next(iter(nonces))] < now:
            del nonces[oldest]
        nonce = bytes.fromhex(claim.nonce)
        if nonce in nonces:
            raise _Refusal("replayed")
        if len(nonces) >= self._limits.requests_in_window:
            raise _Refusal("requests", status=429, text="too many requests")
        # a time up to WINDOW_S ahead of ours is let in for twice as long
        nonces[nonce] = now + 2 * WINDOW_S

    async def _body(self, claim: RequestClaim, path: str, receive: Receive) -> bytes:
        """The body that was signed."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Refusal("broken off", status=408)
                    piece = message.get("body", b"")
                    if path == PUSH_OBJECT:
                        self._link.received(claim.client, len(piece))
                    body += piece
                    more = message.get("more_body", False)
                    if len(body) > claim.length:
                        raise _Refusal("length")
        except TimeoutError as error:
            raise _Refusal("slow", status=408, text=f"a body has {self._limits.body_s:g} s") from error
        if len(body) != claim.length or hashlib.sha256(body).hexdigest() != claim.body_sha256:
            raise _Refusal("body")
        return bytes(body)

    async def _pass(
        self, claim: RequestClaim, caller: _Caller, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Hand the request on, under its proven name."""
        name, path = claim.client, scope["path"]
        if path == ACTIVATE and claim.instance != caller.instance:
            if caller.instance:
                caller.former.append(caller.instance)
            caller.instance = claim.instance
        self._link.before(name, path)
        unread = True

        async def receive_body() -> MutableMapping[str, Any]:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        async def count(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._link.after(name, path, message["status"])  # before the client can know
                if message["status"] >= 400:
                    self._count(_ANSWERS.get(message["status"], "not answered"), name)
            else:
                caller.bytes += len(message.get("body", b""))
            await send(message)

        await self._app({**scope, CLIENT: name}, receive_body, count)

    async def _refuse(
        self, refusal: _Refusal, proven: str, scope: Scope, receive: Receive | None, send: Send
    ) -> None:
        """Say no. A proven caller's short body is read first: closed on, it would not hear the answer."""
        self._count(refusal.reason, proven)
        text = f"{refusal.text}\n".encode() if proven and refusal.text else b""
        headers = [(b"content-length", str(len(text)).encode())]
        length = _content_length(scope)
        if receive is None or not proven or length is None or length > self._limits.body_bytes(scope["path"]):
            headers.append((b"connection", b"close"))
        elif not await self._discard(receive):
            return
        if text:
            headers.append((b"content-type", b"text/plain; charset=utf-8"))
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    async def _discard(self, receive: Receive) -> bool:
        """Whether the whole body came in time."""
        try:
            async with asyncio.timeout(self._limits.body_s):
                while (message := await receive())["type"] == "http.request":
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            pass
        return False


def _content_length(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return int(values[0]) if len(values) == 1 and values[0].isdigit() and len(values[0]) < 16 else None
