"""A request authenticator with an app behind it, asked without a socket."""

from __future__ import annotations

import asyncio

from headwater import __version__
from headwater.flower.fleet_server import ACTIVATE, FleetServer
from headwater.security.signing import Identity
from headwater.server.agent_port.request_auth import Limits, RequestAuthenticator
from tests.flower_layer.deployment import Registry

PULL = "/v1/fleet/pull-messages"
NOW = 1.8e9


class FakePort:
    """A request authenticator with an app behind it that notes what comes through."""

    def __init__(self, limits=None):
        self.now, self.registry = NOW, Registry()
        self.link = FleetServer(max_reply_bytes=lambda name: 2**20)
        self.through, self.wait = [], None
        self.authenticator = RequestAuthenticator(
            self.app, self.link, self.registry, limits or Limits(body_s=0.2), clock=lambda: self.now
        )
        self.a = self.enrol("a")

    def enrol(self, name):
        identity = Identity.create(name)
        self.registry.add(identity)
        self.link.register(name, identity.public.node_key)
        return identity

    async def app(self, scope, receive, send):
        message = await receive()
        self.through.append((scope["headwater.client"], scope["path"], message["body"]))
        if self.wait:
            await self.wait.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    def headers(self, identity, path, body, **change):
        """As an agent sends them; ``change`` alters what is signed."""
        facts = {
            "method": "POST",
            "path": path,
            "body": body,
            "instance": "1" * 32,
            "version": __version__,
            "now_ms": int(self.now * 1000),
        }
        return identity.request_headers(**facts | change) | {"content-length": str(len(body))}

    def ask(self, path=PULL, body=b"body", headers=None, *, identity=None, pieces=None, scope=(), **change):
        """Status, text and headers of the answer."""
        headers = self.headers(identity or self.a, path, body, **change) if headers is None else headers
        return asyncio.run(self.ask_async(path, body, headers, pieces, dict(scope)))

    async def ask_async(self, path, body, headers, pieces=None, scope=None):
        pairs = headers.items() if isinstance(headers, dict) else headers
        pieces = iter([body] if pieces is None else pieces)
        rest = [next(pieces, None)]
        self.read = 0

        async def receive():
            if rest[0] is None:
                await asyncio.sleep(3600)
            piece, rest[0] = rest[0], next(pieces, None)
            self.read += len(piece)
            return {"type": "http.request", "body": piece, "more_body": rest[0] is not None}

        sent = []

        async def send(message):
            sent.append(message)

        await self.authenticator(
            {
                "type": "http",
                "path": path,
                "method": "POST",
                "query_string": b"",
                "headers": [(k.encode(), v.encode()) for k, v in pairs],
            }
            | (scope or {}),
            receive,
            send,
        )
        if not sent:
            return None, "", {}
        text = b"".join(m["body"] for m in sent[1:]).decode()
        return sent[0]["status"], text, dict(sent[0]["headers"])

    def activate(self, **change):
        assert self.ask(ACTIVATE, **change)[0] == 200


def refused(fleet_port, reason, name="", *, times=1):
    assert fleet_port.authenticator.refused == ({reason: times} if times else {})
    assert fleet_port.authenticator.refused_by == ({(name, reason): times} if name else {})
    assert not fleet_port.through


def silent(answer):
    """What everyone without a valid key sees."""
    assert answer == (403, "", {b"content-length": b"0", b"connection": b"close"})
