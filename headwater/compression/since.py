"""``since.v1``: a global state as what was added to one that the receiver has: :func:`encode_since`.

The base is named by its hash, and behind it stand the *increments*, each a payload of the codec that it
names. Without any the state is the base, and nothing of it travels. The receiver adds them up in fp32, one
after the other, and has the sender's bits; the request's ``state_sha256`` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headwater.compression.byte_reader import RESEND, Reader, varint
from headwater.compression.codec import Codec
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec

SINCE = "since.v1"
MOST = 256
"""Increments in one body."""
NAME_BYTES = 8
"""Of a state's SHA-256, which name it."""
VERSION = 1
_MAX_ID = 64


def name_of(sha256: str) -> str:
    """By what a state is named, in hex: the beginning of its :meth:`AdapterState.sha256`."""
    return sha256[: 2 * NAME_BYTES]


def encode_since(base: str, increments: Sequence[Payload]) -> Payload:
    """The payload that makes a state out of another.

    Args:
        base: its name, :func:`name_of`.
        increments: what to add to it, in this order; at most :data:`MOST`.
    """
    body = bytearray([VERSION]) + bytes.fromhex(base) + varint(len(increments))
    for one in increments:
        id = one.codec.encode("ascii")
        body += varint(len(id)) + id + varint(len(one.body)) + one.body
    return Payload(SINCE, bytes(body))


def since_bytes(increments: Sequence[Payload]) -> int:
    """How long the body of :func:`encode_since` is."""
    parts = sum(
        len(varint(len(p.codec))) + len(p.codec) + len(varint(len(p.body))) + len(p.body) for p in increments
    )
    return 1 + NAME_BYTES + len(varint(len(increments))) + parts


def increments(payload: Payload) -> int:
    """How many increments one's own :func:`encode_since` has written."""
    return Reader(payload.body[1 + NAME_BYTES :], SINCE).varint(MOST, "increments")


def read_since(payload: Payload, spec: StateSpec) -> tuple[str, list[Payload]]:
    """The base's name and the increments; none is decoded yet.

    Raises:
        DecodeError: another codec, malformed, or longer than any sender makes it: a state whose increments
            are longer than its values travels whole.
    """
    if payload.codec != SINCE:
        raise DecodeError("payload", expected=f"codec {SINCE}", got=repr(payload.codec)[:80], hint=RESEND)
    reader, limit = Reader(payload.body, f"{SINCE} payload"), spec.nbytes + NAME_BYTES + 2
    if len(payload.body) > limit:
        raise reader.fail(f"at most {limit} bytes", f"{len(payload.body)}")
    reader.byte((VERSION,), "version")
    base, count = reader.take(NAME_BYTES, "name of the base").hex(), reader.varint(MOST, "increments")
    increments = []
    for _ in range(count):
        id = reader.take(reader.varint(_MAX_ID, "length of a codec's id"), "codec's id")
        body = reader.take(reader.varint(limit, "length of an increment"), "increment")
        try:
            increments.append(Payload(id.decode("ascii"), body))
        except UnicodeDecodeError:
            raise reader.fail("a codec's id", repr(id)) from None
    reader.end()
    return base, increments


def add_up(
    base: AdapterState, increments: Sequence[Payload], codec_of: Callable[[str], Codec]
) -> AdapterState:
    """``base`` and the increments, added one after the other in fp32.

    Args:
        base: the state that they were made for.
        increments: as :func:`read_since` has them.
        codec_of: what reads payloads of this id; raises ``DecodeError`` where nothing does.

    Raises:
        DecodeError: an increment that is no state, or a sum that is not finite.
    """
    for one in increments:
        base = base + codec_of(one.codec).decode(one, base.spec)
    if increments and not base.isfinite():
        raise DecodeError(
            f"{SINCE} payload", expected="finite values", got="NaN or infinite ones", hint=RESEND
        )
    return base
