"""What begins a masked sum, as bytes: :func:`encode_sum`, :func:`decode_sum`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from headwater.errors import ConfigError, DecodeError
from headwater.proto.fields import MAX_NAME, check_name, parse
from headwater.proto.v1 import messages_pb2 as pb
from headwater.security.public_keys import check_signing_key
from headwater.security.secagg.bounds import FEWEST, MOST, Promise
from headwater.security.secagg.group import SumRound
from headwater.security.secagg.ring import RingLayout, RingPart

MAX_PARTS = 16
MAX_PLANS = 64
MAX_SUM = MOST * (MAX_NAME + 64) + 64 * 1024
_DIGEST, _MOST_VALUES = 32, 2**40


@dataclass(frozen=True)
class StatedSum:
    """What a server says of a masked sum, before it is believed.

    Args:
        names: who is asked, sorted.
        enrolled: the signing key of each.
        exactly: the survivors, where a list of them has been shown before.
        plans: SHA-256 of what clients were asked to train, each once.
        layout: of the vectors.
        promise: drop-outs and collusion.
    """

    names: tuple[str, ...]
    enrolled: Mapping[str, bytes]
    exactly: tuple[str, ...]
    plans: tuple[bytes, ...]
    layout: RingLayout
    promise: Promise


def encode_sum(sum_round: SumRound, enrolled: Mapping[str, bytes], plans: Collection[bytes]) -> bytes:
    """The content of the first step, the same for all clients."""
    promise, places = sum_round.promise, {name: i for i, name in enumerate(sum_round.names)}
    return pb.MaskedSum(
        names=sum_round.names,
        keys=[enrolled[name] for name in sum_round.names],
        exactly=[places[name] for name in sum_round.exactly],
        plans=sorted(plans),
        parts=[pb.RingPart(name=p.name, size=p.size, low=p.low, high=p.high) for p in sum_round.layout.parts],
        dropouts=promise.dropouts,
        colluding=promise.colluding,
        least=promise.least,
    ).SerializeToString(deterministic=True)


def decode_sum(content: bytes) -> StatedSum:
    """The inverse of :func:`encode_sum`, with every field within its bounds.

    Raises:
        DecodeError: no such bytes.
    """
    message = pb.MaskedSum()
    parse(message, content, MAX_SUM, "masked sum")
    count = len(message.names)
    if not FEWEST <= count <= MOST or count != len(message.keys) or len(set(message.names)) != count:
        raise _wrong(f"{FEWEST} to {MOST} names, each once and with a key", f"{count} names")
    if len(message.parts) > MAX_PARTS or not 0 < len(message.plans) <= MAX_PLANS:
        raise _wrong(f"at most {MAX_PARTS} parts and {MAX_PLANS} plans", "more, or none")
    names = tuple(check_name(name, "masked sum, name") for name in message.names)
    enrolled = dict(zip(names, message.keys, strict=True))
    for name, key in enrolled.items():
        check_signing_key(key, f"masked sum, key of {name}")
    places = list(message.exactly)
    if sorted(set(places)) != places or any(place >= count for place in places):
        raise _wrong("survivors out of its clients, in order", "others")
    if any(len(plan) != _DIGEST for plan in message.plans):
        raise _wrong("plans of 32 bytes", "others")
    fractions = message.dropouts, message.colluding
    if not all(math.isfinite(part) and 0 <= part < 0.5 for part in fractions):
        raise _wrong("fractions of drop-outs and colluding clients below a half", str(fractions))
    parts = []
    for p in message.parts:
        if p.size > _MOST_VALUES or not -(2**62) <= p.low <= 0 <= p.high <= 2**62:
            raise _wrong("parts that a vector may have", f"{p.size} values in [{p.low}, {p.high}]")
        parts.append(RingPart(check_name(p.name, "masked sum, part"), p.size, p.low, p.high))
    try:
        layout = RingLayout(tuple(parts))
    except ConfigError as error:
        raise DecodeError(error.who, expected=error.expected, got=error.got) from error
    return StatedSum(
        names,
        enrolled,
        tuple(names[place] for place in places),
        tuple(message.plans),
        layout,
        Promise(message.dropouts, message.colluding, message.least),
    )


def _wrong(expected: str, got: str) -> DecodeError:
    return DecodeError("masked sum", expected=expected, got=got)
