"""What goes between a server and a client in a masked sum, as frozen data with bounded bytes.

Members are named by their number in the group's list. Rows have one length each, so that any bytes are read
before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from headwater.errors import DecodeError
from headwater.security.public_keys import SIGNATURE_BYTES
from headwater.security.secagg.agreement import SEAL_BYTES
from headwater.security.secagg.bounds import MOST, GroupBounds
from headwater.security.secagg.group import Advert, Flags, Group
from headwater.security.secagg.shamir import SHARE_BYTES

SEALED_BYTES = 2 * SHARE_BYTES + SEAL_BYTES
_NUMBER = 4


@dataclass(frozen=True)
class Delivery:
    """To a client: who shared, and the shares that are for it, by sender."""

    shared: Flags
    sealed: Mapping[int, bytes]


@dataclass(frozen=True)
class Reveal:
    """From a client: shares of the survivors' self-mask seeds, and of the others' mask keys, by owner."""

    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]


def dump_group(group: Group) -> bytes:
    """Bounds and all members' keys."""
    b = group.bounds
    head = b"".join(x.to_bytes(_NUMBER, "big") for x in (b.clients, b.neighbours, b.threshold, b.window))
    return head + b"".join(advert.to_bytes() for advert in group.adverts)


def load_group(data: bytes, most: int = MOST) -> Group:
    """The inverse of :func:`dump_group`, of at most so many members.

    Raises:
        DecodeError: no such bytes.
    """
    numbers = [int.from_bytes(data[at : at + _NUMBER], "big") for at in range(0, 4 * _NUMBER, _NUMBER)]
    count, at = numbers[0], 4 * _NUMBER
    if not 0 < count <= min(most, MOST) or len(data) != at + count * Advert.BYTES:
        raise _wrong("a group's keys", data)
    rows = [Advert.from_bytes(data[i : i + Advert.BYTES]) for i in range(at, len(data), Advert.BYTES)]
    return Group(tuple(rows), GroupBounds(*numbers))


def dump_rows(rows: Mapping[int, bytes]) -> bytes:
    """Rows of one length by member."""
    return b"".join(member.to_bytes(_NUMBER, "big") + row for member, row in sorted(rows.items()))


def load_rows(data: bytes, length: int, members: int) -> dict[int, bytes]:
    """The inverse of :func:`dump_rows`.

    Raises:
        DecodeError: other lengths, a member that is none, or one twice.
    """
    step = _NUMBER + length
    if len(data) % step or len(data) > step * members:
        raise _wrong("rows of members", data)
    found = {}
    for at in range(0, len(data), step):
        member = int.from_bytes(data[at : at + _NUMBER], "big")
        if member >= members or member in found:
            raise _wrong("each member at most once", data)
        found[member] = data[at + _NUMBER : at + step]
    return found


def dump_flags(flags: Flags) -> bytes:
    """A bit for each member."""
    return np.packbits(flags).tobytes()


def load_flags(data: bytes, members: int) -> Flags:
    """The inverse of :func:`dump_flags`.

    Raises:
        DecodeError: another number of members.
    """
    if len(data) != (members + 7) // 8:
        raise _wrong("a bit for each member", data)
    return np.unpackbits(np.frombuffer(data, np.uint8), count=members).astype(np.bool_)


def dump_delivery(delivery: Delivery) -> bytes:
    """Flags, then rows."""
    return dump_flags(delivery.shared) + dump_rows(delivery.sealed)


def load_delivery(data: bytes, members: int) -> Delivery:
    """The inverse of :func:`dump_delivery`.

    Raises:
        DecodeError: no such bytes.
    """
    cut = (members + 7) // 8
    return Delivery(load_flags(data[:cut], members), load_rows(data[cut:], SEALED_BYTES, members))


def dump_reveal(reveal: Reveal) -> bytes:
    """How many seeds' shares, those, and the keys' shares."""
    return len(reveal.seeds).to_bytes(_NUMBER, "big") + dump_rows(reveal.seeds) + dump_rows(reveal.keys)


def load_reveal(data: bytes, members: int) -> Reveal:
    """The inverse of :func:`dump_reveal`.

    Raises:
        DecodeError: no such bytes.
    """
    count = int.from_bytes(data[:_NUMBER], "big")
    cut = _NUMBER + count * (_NUMBER + SHARE_BYTES)
    if count > members or len(data) < cut:
        raise _wrong("shares", data)
    seeds = load_rows(data[_NUMBER:cut], SHARE_BYTES, members)
    return Reveal(seeds, load_rows(data[cut:], SHARE_BYTES, members))


def load_signatures(data: bytes, members: int) -> dict[int, bytes]:
    """Signatures by member, as :func:`dump_rows` writes them.

    Raises:
        DecodeError: no such bytes.
    """
    return load_rows(data, SIGNATURE_BYTES, members)


def _wrong(expected: str, data: bytes) -> DecodeError:
    return DecodeError("masked sum", expected=expected, got=f"{len(data)} bytes of something else")
