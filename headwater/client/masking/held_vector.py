"""HeldVector: what a training gave, as the integers that are summed. It stays on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.errors import DecodeError
from headwater.security.secagg.ring import Integers

HELD = "held-vector.v1"
"""Codec of a reply from the worker to its agent: the body is :meth:`HeldVector.to_bytes`. What leaves in its
place is :data:`headwater.protocol.messages.WITHHELD`."""
_DIGEST, _MOST_PARTS = 32, 16


@dataclass(frozen=True)
class HeldVector:
    """The vector of one client in one round.

    Args:
        common: digest of the state that it starts from and of the units
            (:func:`headwater.strategies.masked_task.common_digest`).
        plan: digest of what the client was asked.
        values: int64, one array for each part.
    """

    common: bytes
    plan: bytes
    values: list[Integers]

    def to_bytes(self) -> bytes:
        """Digests, the number of parts, their sizes, their values, little-endian."""
        head = self.common + self.plan + len(self.values).to_bytes(4, "little")
        sizes = b"".join(part.size.to_bytes(8, "little") for part in self.values)
        return head + sizes + b"".join(part.astype("<i8", copy=False).tobytes() for part in self.values)

    @staticmethod
    def from_bytes(data: bytes) -> HeldVector:
        """The inverse.

        Raises:
            DecodeError: other bytes.
        """
        at = 2 * _DIGEST + 4
        count = int.from_bytes(data[at - 4 : at], "little")
        if len(data) < at or count > _MOST_PARTS or len(data) < at + 8 * count:
            raise _wrong(data)
        sizes = [int.from_bytes(data[i : i + 8], "little") for i in range(at, at + 8 * count, 8)]
        at += 8 * count
        if len(data) != at + 8 * sum(sizes):
            raise _wrong(data)
        values = []
        for size in sizes:
            values.append(np.frombuffer(data, "<i8", size, at).astype(np.int64, copy=False))
            at += 8 * size
        return HeldVector(data[:_DIGEST], data[_DIGEST : 2 * _DIGEST], values)


def _wrong(data: bytes) -> DecodeError:
    return DecodeError("held vector", expected="a vector of this device", got=f"{len(data)} other bytes")
