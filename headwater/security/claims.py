"""RequestClaim: what the headers of an agent's request claim, before anything of it is believed.

Here is only the format: headers to a claim and back, and the text that is signed. Whether a claim is
true, :func:`headwater.security.signing.verify_request` says.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headwater.errors import DecodeError

PREFIX = "x-headwater-"
NAME_RULE = "1 to 64 of the characters A-Z a-z 0-9 . _ - beginning with a letter or digit"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_HEX16 = re.compile(r"[0-9a-f]{32}")
_FIELDS = {
    "client": (_NAME, NAME_RULE),
    "version": (re.compile(r"[0-9A-Za-z.+-]{1,32}"), "a version of 1 to 32 characters"),
    "instance": (_HEX16, "16 bytes in lower-case hex"),
    "time": (_NUMBER, "milliseconds, at most 16 digits"),
    "nonce": (_HEX16, "16 bytes in lower-case hex"),
    "length": (_NUMBER, "a number of bytes, at most 16 digits"),
    "body": (re.compile(r"[0-9a-f]{64}"), "a SHA-256 in lower-case hex"),
    "signature": (re.compile(r"[A-Za-z0-9+/]{86}=="), "64 bytes in base64"),
}
_TARGET = re.compile(r"/[!-~]{0,255}")
_METHOD = re.compile(r"[A-Z]{1,16}")


def valid_name(name: str) -> bool:
    """Whether ``name`` can be enrolled: see :data:`NAME_RULE`."""
    return _NAME.fullmatch(name) is not None


def valid_target(method: str, path: str) -> bool:
    """Whether method and path can be signed: capitals; printable ASCII without spaces, from ``/`` on."""
    return _METHOD.fullmatch(method) is not None and _TARGET.fullmatch(path) is not None


@dataclass(frozen=True)
class RequestClaim:
    """What a request says of itself.

    Args:
        client: the enrolled name it claims to come from.
        version: of the agent's headwater.
        instance: of the agent's process, 16 bytes in hex.
        time_ms: when it was made, in Unix milliseconds by the agent's corrected clock.
        nonce: of this request, 16 bytes in hex.
        length: of the body, in bytes.
        body_sha256: of the body, in hex.
        signature: Ed25519, 64 bytes, over :func:`signed_text`.
    """

    client: str
    version: str
    instance: str
    time_ms: int
    nonce: str
    length: int
    body_sha256: str
    signature: bytes

    @staticmethod
    def parse(headers: Mapping[str, str]) -> RequestClaim:
        """The claim in ``headers``, whose names are in lower case. Other headers are passed over.

        A mapping cannot show that a header came twice: where raw pairs are at hand, use :meth:`read`.

        Raises:
            DecodeError: a header is missing, too long or not in its one form.
        """
        values = {}
        for field, (pattern, expected) in _FIELDS.items():
            value = headers.get(PREFIX + field)
            if value is None or pattern.fullmatch(value) is None:
                # a stranger's bytes do not belong into a log at full length
                got = "none" if value is None else ascii(value[:32])
                raise DecodeError(f"header {PREFIX}{field}", expected=expected, got=got)
            values[field] = value
        signature = base64.b64decode(values["signature"], validate=True)
        if base64.b64encode(signature).decode() != values["signature"]:
            raise DecodeError(
                f"header {PREFIX}signature", expected="canonical base64", got="bits beyond the end"
            )
        return RequestClaim(
            client=values["client"],
            version=values["version"],
            instance=values["instance"],
            time_ms=int(values["time"]),
            nonce=values["nonce"],
            length=int(values["length"]),
            body_sha256=values["body"],
            signature=signature,
        )

    @staticmethod
    def read(headers: Iterable[tuple[bytes, bytes]]) -> RequestClaim:
        """The claim in raw header pairs, as in ASGI's ``scope["headers"]``.

        Raises:
            DecodeError: as :meth:`parse`, or one of our headers came twice or not in ASCII.
        """
        found: dict[str, str] = {}
        for raw_name, raw_value in headers:
            name = raw_name.decode("latin-1").lower()
            if not name.startswith(PREFIX):
                continue
            if name in found:
                raise DecodeError(f"header {name[:32]!a}", expected="one", got="several")
            # latin-1 keeps every byte apart, and no pattern lets one beyond ASCII pass
            found[name] = raw_value[:256].decode("latin-1")
        return RequestClaim.parse(found)

    def headers(self) -> dict[str, str]:
        """The inverse of :meth:`parse`."""
        return {
            PREFIX + "client": self.client,
            PREFIX + "version": self.version,
            PREFIX + "instance": self.instance,
            PREFIX + "time": str(self.time_ms),
            PREFIX + "nonce": self.nonce,
            PREFIX + "length": str(self.length),
            PREFIX + "body": self.body_sha256,
            PREFIX + "signature": base64.b64encode(self.signature).decode("ascii"),
        }


def signed_text(claim: RequestClaim, *, method: str, path: str) -> bytes:
    """What a request's signature is over: one field a line, so that no two requests have the same text."""
    lines = [
        method, path, claim.client, claim.version, claim.instance, str(claim.time_ms), claim.nonce,
        str(claim.length), claim.body_sha256,
    ]  # fmt: skip
    return b"headwater request v1\n" + "\n".join(lines).encode("ascii")
