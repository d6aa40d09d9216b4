"""RingLayout: vectors of integers in rings mod 2^bits, as words in memory and as packed bytes.

Each part of a vector has its own ring, the smallest that holds every sum: of integers in [low, high] it
has ``(high - low).bit_length()`` bits. In memory a value is a word of 32 or 64 bits. Adding words is
adding in the ring, since mod 2^bits is a quotient of mod 2^32 and 2^64; what lies above is cut off when
they are packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError, DecodeError

Words = npt.NDArray[np.unsignedinteger[Any]]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RingPart:
    """One part of a vector.

    Args:
        name: of the part, for messages.
        size: how many values it has.
        low: the smallest that a *sum* of all clients can be.
        high: the largest.
    """

    name: str
    size: int
    low: int
    high: int

    @property
    def bits(self) -> int:
        """Of the ring."""
        return (self.high - self.low).bit_length()

    @property
    def dtype(self) -> type[np.uint32] | type[np.uint64]:
        """Of its words."""
        return np.uint32 if self.bits <= 32 else np.uint64

    @property
    def packed_bytes(self) -> int:
        """Whole bytes of each value, then what is left of each, bit by bit."""
        return self.size * (self.bits // 8) + (self.size * (self.bits % 8) + 7) // 8


@dataclass(frozen=True)
class RingLayout:
    """The parts of a vector, in order.

    Raises:
        ConfigError: a part needs more than 63 bits.
    """

    parts: tuple[RingPart, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.size < 0 or part.low > 0 or part.high < 0 or part.bits > 63:
                raise ConfigError(
                    f"masked sum, {part.name}", expected="sums around 0, of at most 63 bits",
                    got=f"{part.size} values in [{part.low}, {part.high}]",
                )  # fmt: skip

    @cached_property
    def packed_bytes(self) -> int:
        """What a masked vector takes."""
        return sum(part.packed_bytes for part in self.parts)

    def describe(self) -> bytes:
        """The layout in one unambiguous text, for signatures."""
        return ";".join(f"{p.name},{p.size},{p.low},{p.high}" for p in self.parts).encode()

    def zeros(self) -> list[Words]:
        """The empty sum."""
        return [np.zeros(part.size, part.dtype) for part in self.parts]

    def to_words(self, values: Sequence[Integers]) -> list[Words]:
        """Integers as elements of the rings.

        Raises:
            ConfigError: other sizes, or a value that no sum may have.
        """
        if len(values) != len(self.parts):
            raise ConfigError("masked sum", expected=f"{len(self.parts)} parts", got=str(len(values)))
        words: list[Words] = []
        for part, given in zip(self.parts, values, strict=True):
            if given.shape != (part.size,) or given.dtype != np.int64:
                raise ConfigError(f"masked sum, {part.name}", expected=f"int64 [{part.size}]", got="others")
            if part.size and not (part.low <= int(given.min()) and int(given.max()) <= part.high):
                raise ConfigError(
                    f"masked sum, {part.name}", expected=f"values in [{part.low}, {part.high}]", got="others"
                )
            words.append(given.view(np.uint64).astype(part.dtype))
        return words

    def to_values(self, words: Sequence[Words]) -> list[Integers]:
        """The integers in [low, low + 2^bits) that these elements stand for."""
        found = []
        for part, given in zip(self.parts, words, strict=True):
            mask = np.uint64(2**part.bits - 1)
            above = (given.astype(np.uint64) - np.uint64(part.low % 2**64)) & mask
            found.append(above.view(np.int64) + np.int64(part.low))
        return found

    def pack(self, words: Sequence[Words]) -> bytes:
        """Words as :attr:`packed_bytes` bytes."""
        out = []
        for part, given in zip(self.parts, words, strict=True):
            planes = given.astype(given.dtype.newbyteorder("<"), copy=False).view(np.uint8)
            planes = planes.reshape(part.size, given.dtype.itemsize)
            whole, rest = divmod(part.bits, 8)
            out.append(planes[:, :whole].tobytes())
            if rest:
                out.append(_joined(planes[:, whole], rest))
        return b"".join(out)

    def unpack(self, data: bytes, who: str) -> list[Words]:
        """The inverse of :meth:`pack`; each word is below 2^bits.

        Raises:
            DecodeError: another length.
        """
        if len(data) != self.packed_bytes:
            raise DecodeError(who, expected=f"{self.packed_bytes} bytes of masked sums", got=str(len(data)))
        raw, at, found = np.frombuffer(data, np.uint8), 0, list[Words]()
        for part in self.parts:
            whole, rest = divmod(part.bits, 8)
            width = np.dtype(part.dtype).itemsize
            planes = np.zeros((part.size, width), np.uint8)
            planes[:, :whole] = raw[at : at + part.size * whole].reshape(part.size, whole)
            at += part.size * whole
            if rest:
                length = (part.size * rest + 7) // 8
                planes[:, whole] = _parted(raw[at : at + length], rest, part.size)
                at += length
            found.append(planes.view(np.dtype(part.dtype).newbyteorder("<")).reshape(part.size))
        return found


def _joined(values: npt.NDArray[np.uint8], bits: int) -> bytes:
    """The lowest ``bits`` < 8 of each value, one after the other from the lowest bit on."""
    eights = np.zeros((values.size + 7) // 8 * 8, np.uint64)
    eights[: values.size] = values & np.uint8(2**bits - 1)
    shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
    words = np.bitwise_or.reduce(eights.reshape(-1, 8) << shifts, axis=1).astype("<u8")
    whole: bytes = words.view(np.uint8).reshape(-1, 8)[:, :bits].tobytes()
    return whole[: (values.size * bits + 7) // 8]


def _parted(data: npt.NDArray[np.uint8], bits: int, size: int) -> npt.NDArray[np.uint8]:
    """The inverse of :func:`_joined`."""
    padded = np.zeros((size + 7) // 8 * bits, np.uint8)
    padded[: data.size] = data
    eights = np.zeros((padded.size // bits, 8), np.uint8)
    eights[:, :bits] = padded.reshape(-1, bits)
    shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
    found = (eights.view("<u8") >> shifts) & np.uint64(2**bits - 1)
    return found.reshape(-1)[:size].astype(np.uint8)
