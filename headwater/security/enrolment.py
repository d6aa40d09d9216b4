"""Enrolment requests: one line that an owner gives the organiser. Entry point: :func:`make_request`.

The line holds a name and two public keys, and is signed by both private ones: it proves that whoever
made it had both, so nobody can enrol another's key under a name of his own. It holds no secret and does
not say who sent it: the organiser compares the fingerprint with the owner over another way.
"""

from __future__ import annotations

import base64
import binascii
import re

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from headwater.config.copied import cleaned
from headwater.errors import DecodeError, UpdateRejected
from headwater.security import public_keys
from headwater.security.signing import Identity, PublicIdentity

PREFIX = "headwater-enrol-v1:"
ENROL_DOMAIN = b"headwater enrol v1\0"
MAX_REQUEST_CHARS = 2048

MOST_PIECES = 256
_PREFIX = re.compile(r"(?<![A-Za-z0-9])" + r"\s*".join(re.escape(c) for c in PREFIX) + r"\s*")
_BEHIND = ".,;:!?)]>\"'`*"
_ENCODED = re.compile(r"[A-Za-z0-9_-]+")

_HINT = "Copy the whole line that `headwater client enroll` printed."


def make_request(identity: Identity) -> str:
    """The enrolment request of ``identity``: one line, without its line break."""
    binding = identity.public.binding()
    text = ENROL_DOMAIN + binding
    proofs = identity.signing_key.sign(text) + identity.node_key.sign(text, ec.ECDSA(hashes.SHA256()))
    return PREFIX + base64.urlsafe_b64encode(binding + proofs).decode("ascii").rstrip("=")


def read_request(text: str) -> PublicIdentity:
    """Who asks to be enrolled, once both signatures are verified.

    ``text`` may have been wrapped, quoted and decorated by mail programs on its way (:func:`find_requests`).

    Raises:
        DecodeError: not an enrolment request, or more than one.
        UpdateRejected: well formed, but not signed by both of its keys.
    """
    found = find_requests(text)
    if len(found) != 1:
        raise _malformed(f"{len(found)} of them" if found else ascii(text.strip()[:32]))
    return _read(found[0])


def find_requests(text: str) -> list[str]:
    """The enrolment requests in a text, each as the one line that the device printed.

    Passed over are line breaks, spaces, quotation marks of replies, soft hyphens and the soft breaks of
    quoted-printable, and what people wrote around a request. Only what both signatures are for is put
    together, so that nothing can be read in two ways.

    Raises:
        DecodeError: a request whose pieces make no whole one.
        UpdateRejected: well formed, but not signed by both of its keys.
    """
    whole = "\n".join(_unquoted(line) for line in cleaned(text).splitlines())
    starts = [found.span() for found in _PREFIX.finditer(whole)]
    ends = [start for start, _ in starts] + [len(whole)]
    return [_joined(whole[behind:end]) for (_, behind), end in zip(starts, ends[1:], strict=True)]


def _unquoted(line: str) -> str:
    """A line without marks of quotation before it, and a soft break of quoted-printable behind it."""
    return re.sub(r"^[\s>|]+", "", line).strip().removesuffix("=").strip("`\"'<>* ")


def _joined(text: str) -> str:
    """The request that ``text`` begins with: of so many of its pieces as make a whole one."""
    encoded = ""
    error: DecodeError | UpdateRejected = _malformed("nothing behind it")
    pieces = re.split(r"\s+", text.strip(), maxsplit=MOST_PIECES)
    for piece in pieces:
        last = piece.rstrip(_BEHIND)  # such as the full stop of the sentence that it ends
        if not _ENCODED.fullmatch(last):
            break
        encoded += last
        if len(PREFIX) + len(encoded) > MAX_REQUEST_CHARS:
            error = _malformed(f"more than {MAX_REQUEST_CHARS} characters")
            break
        try:
            _read(PREFIX + encoded)
        except (DecodeError, UpdateRejected) as found:
            error = found
        else:
            return PREFIX + encoded
        if last != piece:
            break
    if len(pieces) == 1 and encoded != pieces[0] and len(pieces[0]) < MAX_REQUEST_CHARS:
        raise _malformed("characters that are not base64url")
    if len(pieces) > 1 and encoded:
        raise DecodeError(
            "enrolment request",
            expected=f"one line {PREFIX}…",
            got=f"a line that was wrapped on its way; its {len(encoded)} characters make no whole one",
            hint=f"A part of it is missing or was changed. {_HINT}",
        )
    raise error


def _read(line: str) -> PublicIdentity:
    encoded = line.removeprefix(PREFIX)
    try:
        body = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        whole = _ENCODED.fullmatch(encoded)
        raise (_cut(line) if whole else _malformed("characters that are not base64url")) from error
    if base64.urlsafe_b64encode(body).decode("ascii").rstrip("=") != encoded:
        raise _cut(line)
    return _verify(body, line)


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two people's texts are the same fingerprint: capitals, spaces and hyphens do not count."""
    return _digits(one) == _digits(other) != ""


def _digits(text: str) -> str:
    digits = re.sub(r"[\s:.\u2012-\u2015_-]", "", cleaned(text)).lower()
    return digits if re.fullmatch(r"[0-9a-f]{32}", digits) else ""


def _verify(body: bytes, line: str) -> PublicIdentity:
    name_end = 1 + (body[0] if body else 0)
    key_end = name_end + public_keys.SIGNING_KEY_BYTES
    point_end = key_end + public_keys.POINT_BYTES
    signature_end = point_end + public_keys.SIGNATURE_BYTES
    proof = body[signature_end:]  # DER, which begins with its length
    if len(proof) < 2 or len(proof) < 2 + proof[1]:
        raise _cut(line)
    try:
        name = body[1:name_end].decode("ascii")
    except UnicodeDecodeError as error:
        raise _malformed("a name beyond ASCII") from error
    key, point = body[name_end:key_end], body[key_end:point_end]
    public = PublicIdentity(name, key, public_keys.pem_of_point(point, "node key of the enrolment request"))
    text = ENROL_DOMAIN + body[:point_end]
    by_signing_key = public_keys.verify_ed25519(key, body[point_end:signature_end], text)
    by_node_key = public_keys.verify_node(point, proof, text)
    if not (by_signing_key and by_node_key):
        raise UpdateRejected(
            f"enrolment request of {name}",
            expected="signatures by both of its keys",
            got=f"a wrong one by its {'node' if by_signing_key else 'signing'} key",
            hint="It was altered or put together by someone who does not have the keys: refuse it.",
        )
    return public


def _cut(line: str) -> DecodeError:
    return _malformed(f"one of {len(line)} characters: a part of it is missing or was changed")


def _malformed(got: str) -> DecodeError:
    return DecodeError("enrolment request", expected=f"one line {PREFIX}…", got=got, hint=_HINT)
