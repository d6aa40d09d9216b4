"""Fields of messages: what a stranger wrote is checked after parsing; ``DecodeError`` says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import Message

from headwater.errors import DecodeError
from headwater.proto.v1 import messages_pb2 as pb
from headwater.protocol.messages import MaskStep
from headwater.security.secagg.group import ATTEMPT_BYTES

MAX_NAME = 64
MAX_METRICS = 64
MAX_READS = 64
MAX_COUNT = 2**32
MAX_WEIGHT = 2**61


def parse(message: Message, data: bytes, limit: int, who: str) -> None:
    """Read ``data`` into ``message``; ``DecodeError`` if it is longer than ``limit`` or no such protobuf."""
    if len(data) > limit:
        raise DecodeError(who, expected=f"at most {limit} bytes", got=f"{len(data)}")
    try:
        message.ParseFromString(data)
    except ProtobufDecodeError as error:
        raise DecodeError(who, expected="a protobuf of headwater.v1", got=str(error)) from None


def printable(text: str) -> str:
    """``text``, with a mark for each character that is not shown."""
    return "".join(c if c.isprintable() else "�" for c in text)


def check_name(text: str, who: str) -> str:
    """``text``, if it may name something; else ``DecodeError``."""
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise DecodeError(who, expected=f"1 to {MAX_NAME} printable characters", got=f"{text[:80]!r}")
    return text


def check_run(text: str, who: str) -> str:
    """A run's name, or none."""
    return check_name(text, who) if text else ""


def check_hex(text: str, who: str) -> str:
    """A SHA-256 in hex; else ``DecodeError``."""
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise DecodeError(who, expected="64 lower-case hex digits", got=f"{text[:80]!r}")
    return text


def check_digest(data: bytes, who: str) -> str:
    """A SHA-256 as bytes, in hex; else ``DecodeError``."""
    if len(data) != 32:
        raise DecodeError(who, expected="32 bytes", got=f"{len(data)}")
    return data.hex()


@lru_cache(maxsize=16)  # of many clients that read the same, one tuple
def check_reads(names: tuple[str, ...]) -> tuple[str, ...]:
    """Ids of codecs; else ``DecodeError``."""
    if len(names) > MAX_READS:
        raise DecodeError(
            "profile.reads", expected=f"at most {MAX_READS} codecs", got=f"{len(names)} or more"
        )
    return tuple(check_name(name, "profile.reads") for name in names)


def check_attempt(data: bytes) -> bytes:
    """The id of an attempt at a masked sum; else ``DecodeError``."""
    if len(data) != ATTEMPT_BYTES:
        raise DecodeError("mask.attempt", expected=f"{ATTEMPT_BYTES} bytes", got=f"{len(data)}")
    return data


def check_step(value: int) -> MaskStep:
    """A step of a masked sum; else ``DecodeError``."""
    if value not in MaskStep.__members__.values():
        raise DecodeError("mask.step", expected=f"1 to {len(MaskStep)}", got=str(value))
    return MaskStep(value)


def check_weight(value: int) -> int:
    """What a client weighs in a masked sum; else ``DecodeError``."""
    if value > MAX_WEIGHT:
        raise DecodeError("request.masked_weight", expected=f"at most {MAX_WEIGHT}", got=str(value))
    return value


def check_count(value: int, who: str) -> int:
    """A number of things; else ``DecodeError``."""
    if value > MAX_COUNT:
        raise DecodeError(who, expected=f"at most {MAX_COUNT}", got=str(value))
    return value


def metrics_to_pb(metrics: Mapping[str, float]) -> list[pb.Metric]:
    """In order of name."""
    return [pb.Metric(name=name, value=value) for name, value in sorted(metrics.items())]


def check_metrics(metrics: Iterable[pb.Metric]) -> dict[str, float]:
    """Finite numbers by name, not too many; else ``DecodeError``."""
    items = list(metrics)
    result = {check_name(m.name, "metric name"): m.value for m in items}
    if len(items) > MAX_METRICS or len(result) != len(items):
        raise DecodeError("metrics", expected=f"at most {MAX_METRICS} of distinct names", got=f"{len(items)}")
    for name, value in result.items():
        if not math.isfinite(value):
            raise DecodeError(f"metric {name}", expected="a finite number", got=str(value))
    return result
