"""One signed HTTPS request of a device: :class:`SignedHttp`.

Every request is signed twice: as a whole by the device's signing key, which the server's gate checks
before it reads a body, and by the node key over the time, as Flower's own SuperNode does.
"""

from __future__ import annotations

import base64
import datetime
import email.utils
import secrets
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message as Protobuf

from headwater.errors import ConfigError, ConnectionLost, DecodeError, Refused
from headwater.security.signing import Identity

GONE = 410
"""What the message was about is of an earlier start of the server."""
_COME_BACK = {408, 425, 428, 429}
_REASON_BYTES = 2**10
_CLOCK_SLACK_S = 30.0
_STAMP_S = 60.0
"""How long a time that the node key has signed is used again: it proves the key, the request has its own
signature. Flower takes 300 s."""
_KEPT_S = 60.0
"""How long an idle connection is kept; the server keeps it 75 s. A handshake costs both more than a poll."""

T = TypeVar("T", bound=Protobuf)


class Gone(Refused):
    """Nobody waits for this any more."""


class SignedHttp:
    """A pool of TLS connections to one server. Thread-safe.

    Args:
        server: host and port.
        ca_pem: the only authority that may vouch for it.
        identity: who signs.
        version: of this headwater.
        timeout_s: for connecting, and for each silence on a connection.
        clock: Unix seconds by this device's clock; the server's ``Date`` corrects it.

    Raises:
        ConfigError: ``ca_pem`` is no certificate.
    """

    def __init__(
        self,
        server: str,
        ca_pem: bytes,
        identity: Identity,
        *,
        version: str,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(cadata=ca_pem.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                "certificate of the federation's authority", expected="PEM", got=str(error)
            ) from error
        self._server, self._identity, self._version, self._clock = server, identity, version, clock
        self._instance = secrets.token_hex(16)
        self._node_key = base64.b64encode(identity.public.node_key).decode("ascii")
        self._ahead_s = 0.0
        self._stamp: tuple[float, str, str] = (-_STAMP_S, "", "")
        self._http = httpx.Client(
            base_url=f"https://{server}",
            verify=context,
            timeout=timeout_s,
            trust_env=False,
            limits=httpx.Limits(max_connections=8, keepalive_expiry=_KEPT_S),
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def call(self, path: str, request: Protobuf, answer: type[T], *, max_bytes: int) -> T:
        """Post ``request``, return the server's answer.

        Raises:
            ConnectionLost: not reached, or the server asks to come back (after :meth:`activate`).
            Refused: the server says no.
            DecodeError: its answer is none, or longer than ``max_bytes``.
        """
        body = request.SerializeToString(deterministic=True)
        ahead_s = self._ahead_s
        status, date, content = self._post(path, body, max_bytes)
        # another thread may have been told of the server's time meanwhile
        if status == 403 and (self._correct_clock(date) or self._ahead_s != ahead_s):
            status, date, content = self._post(path, body, max_bytes)
        if status != 200:
            raise self._failure(status, content)
        self._correct_clock(date)
        result = answer()
        try:
            result.ParseFromString(content)
        except ProtobufError as error:
            raise DecodeError(f"answer of {self._server}", expected=answer.__name__) from error
        return result

    def _post(self, path: str, body: bytes, max_bytes: int) -> tuple[int, str, bytes]:
        now = self._clock() + self._ahead_s
        stamp, signature = self._signed_time(now)
        headers = self._identity.request_headers(
            method="POST",
            path=path,
            body=body,
            instance=self._instance,
            version=self._version,
            now_ms=int(now * 1000),
        ) | {
            FLEET_HTTP_PUBLIC_KEY_HEADER: self._node_key,
            FLEET_HTTP_SIGNATURE_HEADER: signature,
            TIMESTAMP_HEADER: stamp,
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept-encoding": "identity",
        }
        content = bytearray()
        try:
            with self._http.stream("POST", path, content=body, headers=headers) as response:
                for piece in response.iter_raw():
                    content += piece
                    if len(content) > max_bytes:
                        raise DecodeError(
                            f"answer of {self._server}", expected=f"at most {max_bytes} bytes", got="more"
                        )
                return response.status_code, response.headers.get("date", ""), bytes(content)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            got = f"{type(error).__name__}: {error}"[:300]
            raise ConnectionLost(
                self._server, expected="an answer over TLS", got=got, hint=_next_step(got)
            ) from error

    def _signed_time(self, now: float) -> tuple[str, str]:
        """A time not long ago and the node key's signature over it."""
        since, stamp, signature = self._stamp
        if not 0 <= now - since < _STAMP_S:
            stamp = datetime.datetime.fromtimestamp(now, tz=datetime.UTC).isoformat()
            signature = base64.b64encode(self._identity.sign_timestamp(stamp)).decode()
            self._stamp = now, stamp, signature  # replaced whole: other threads read it
        return stamp, signature

    def _correct_clock(self, date: str) -> bool:
        """Whether the server's ``Date`` (one second's resolution) moved our idea of its clock."""
        try:
            server = email.utils.parsedate_to_datetime(date).timestamp()
        except (TypeError, ValueError):
            return False
        ahead = server - self._clock()
        if abs(ahead - self._ahead_s) <= _CLOCK_SLACK_S:
            return False
        self._ahead_s = ahead
        return True

    def _failure(self, status: int, content: bytes) -> ConnectionLost | Refused:
        reason = content[:_REASON_BYTES].decode("utf-8", "replace").strip()
        got = f"{status} {reason}".strip()
        if status in _COME_BACK or status >= 500:
            return ConnectionLost(
                self._server, expected="an answer", got=got, hint="Activate again, a little later."
            )
        kind = Gone if status == GONE else Refused
        hint = "" if reason else f"Is {self._identity.name} accepted there, with this device's keys?"
        refused = kind(self._server, expected="to be let in", got=got, hint=hint)
        refused.status = status
        return refused


def _next_step(got: str) -> str:
    """What an owner can do about a connection that failed in the words of ``got``."""
    if "CERTIFICATE_VERIFY_FAILED" not in got:
        return "Is the server running, is the address right, and this device's clock?"
    if "mismatch" in got:
        return (
            "Use an address that is in the server's certificate, or ask the organiser to add this one: "
            "[listen] names in server.toml, then headwater server renew DIR and a restart."
        )
    if "expired" in got or "not yet valid" in got:
        return "Is this device's clock right? Else the organiser must renew: headwater server renew DIR"
    return (
        "Another authority vouches for that server: is the address right, and is ca.pem the organiser's "
        "latest? Its SHA-256, by voice, says so: headwater client enroll CONFIG"
    )
