"""WebAuth: who may read the web page. Pure ASGI, outermost; nothing behind it runs without a token.

The page is for the machine's organiser. A local user without the token, another site in the organiser's
browser (its requests carry no token, its Host or Origin is wrong) and a rebound DNS name all get a status
code and an empty body. Only the page's empty shell and its assets need no token: they hold no data.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import MutableMapping
from typing import Any

from headwater.asgi import App, Receive, Scope, Send

_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""What Host may say; any port: behind an ssh tunnel it is another one."""
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_RAW = [(key.encode(), value.encode()) for key, value in HEADERS.items()]


class WebAuth:
    """Wraps an application.

    Args:
        app: what is behind it.
        token: the secret; at least 32 characters.
        public: the exact paths that need no token; they may only be read.
    """

    def __init__(self, app: App, token: str, public: frozenset[str]) -> None:
        if len(token) < 32:
            raise ValueError("web token: expected at least 32 characters")  # a mistake in our own code
        self._app, self._public = app, public
        self._token = hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":  # no WebSockets
            await send({"type": "websocket.close", "code": 1008})
        elif status := self._refusal(scope):
            headers = [*_RAW, (b"content-length", b"0"), (b"connection", b"close")]
            if status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, _hardened(send))

    def _refusal(self, scope: Scope) -> int:
        """The status of a refusal; 0 lets the request through."""
        host = _one(scope, b"host")
        if host is None or not _LOOPBACK.fullmatch(host):
            return 421
        origin = _one(scope, b"origin", "")
        if origin is None or (origin and origin != f"http://{host}"):
            return 403
        if scope["path"] in self._public and scope["method"] in ("GET", "HEAD"):
            return 0
        scheme, _, token = (_one(scope, b"authorization") or "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()  # equal lengths: nothing leaks but "no"
        if not hmac.compare_digest(given, self._token) or scheme.lower() != "bearer":
            return 401
        if _one(scope, b"sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403
        return 0


def _hardened(send: Send) -> Send:
    async def send_hardened(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (k, v) for k, v in message.get("headers", []) if k.decode("latin-1").lower() not in HEADERS
            ]
            message = {**message, "headers": [*kept, *_RAW]}
        await send(message)

    return send_hardened


def _one(scope: Scope, name: bytes, default: str | None = None) -> str | None:
    """A header that is there once; ``default`` if absent; None if it is there twice."""
    found = [value for key, value in scope["headers"] if key.lower() == name]
    if not found:
        return default
    return str(found[0], "latin-1") if len(found) == 1 else None
