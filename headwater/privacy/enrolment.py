"""Enrolment requests: one line that an owner gives the organiser. Entry point: :func:`make_request`.

The line holds a name and two public keys, and is signed by both private ones: it proves that whoever
made it had both, so nobody can enrol another's key under a name of his own. It holds no secret and does
not say who sent it: the organiser compares the fingerprint with the owner over another way.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from headwater.errors import DecodeError, UpdateRejected
from headwater.privacy import public_keys
from headwater.privacy.signing import Identity, PublicIdentity

PREFIX = "headwater-enrol-v1:"
ENROL_DOMAIN = b"headwater enrol v1\0"
MAX_REQUEST_CHARS = 2048

_HINT = "Copy the whole line that `headwater client enroll` printed."


def make_request(identity: Identity) -> str:
    """The enrolment request of ``identity``: one line, without its line break."""
    binding = identity.public.binding()
    text = ENROL_DOMAIN + binding
    proofs = identity.signing_key.sign(text) + identity.node_key.sign(text, ec.ECDSA(hashes.SHA256()))
    return PREFIX + base64.urlsafe_b64encode(binding + proofs).decode("ascii").rstrip("=")


def read_request(text: str) -> PublicIdentity:
    """Who asks to be enrolled, once both signatures are verified. White space around ``text`` is fine.

    Raises:
        DecodeError: not an enrolment request.
        UpdateRejected: well formed, but not signed by both of its keys.
    """
    line = text.strip()
    if len(line) > MAX_REQUEST_CHARS:
        raise _malformed(f"more than {MAX_REQUEST_CHARS} characters")
    if not line.startswith(PREFIX):
        raise _malformed(ascii(line[:32]))
    encoded = line.removeprefix(PREFIX)
    try:
        body = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("characters that are not base64url") from error
    if base64.urlsafe_b64encode(body).decode("ascii").rstrip("=") != encoded:
        raise _malformed("base64url in another form")
    return _verify(body)


def _verify(body: bytes) -> PublicIdentity:
    name_end = 1 + (body[0] if body else 0)
    key_end = name_end + public_keys.SIGNING_KEY_BYTES
    point_end = key_end + public_keys.POINT_BYTES
    signature_end = point_end + public_keys.SIGNATURE_BYTES
    if len(body) <= signature_end:
        raise _malformed(f"{len(body)} bytes")
    try:
        name = body[1:name_end].decode("ascii")
    except UnicodeDecodeError as error:
        raise _malformed("a name beyond ASCII") from error
    key, point = body[name_end:key_end], body[key_end:point_end]
    public = PublicIdentity(name, key, public_keys.pem_of_point(point, "node key of the enrolment request"))
    text = ENROL_DOMAIN + body[:point_end]
    by_signing_key = public_keys.verify_ed25519(key, body[point_end:signature_end], text)
    by_node_key = public_keys.verify_node(point, body[signature_end:], text)
    if not (by_signing_key and by_node_key):
        raise UpdateRejected(
            f"enrolment request of {name}",
            expected="signatures by both of its keys",
            got=f"a wrong one by its {'node' if by_signing_key else 'signing'} key",
            hint="It was altered or put together by someone who does not have the keys: refuse it.",
        )
    return public


def _malformed(got: str) -> DecodeError:
    return DecodeError("enrolment request", expected=f"one line {PREFIX}…", got=got, hint=_HINT)
