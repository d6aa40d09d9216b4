"""Floating-point numbers without loss: their bytes by place, those places entropy-coded where it pays.

A value's bits are rotated left by one, so that the exponent fills the first byte (of float32 and bfloat16)
and the sign is the last bit. The exponents of an adapter's values are few and unequal, about 2.6 bits each;
the rest is noise, which stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.entropy import Block, pack, unpack
from headwater.merging.offline.tensor_file import Array

_PLAIN, _CODED = 0, 1


@dataclass(frozen=True, slots=True)
class NumberType:
    """A type of numbers in a file.

    Args:
        code: of the type in the format.
        name: safetensors' name of it.
        bits: NumPy's integer type of its width.
        floats: NumPy's type of it; of bfloat16, which NumPy lacks, empty.
    """

    code: int
    name: str
    bits: str
    floats: str

    @property
    def width(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.bits).itemsize


TYPES: Mapping[str, NumberType] = {
    kind.name: kind
    for kind in (
        NumberType(0, "F32", "<u4", "<f4"),
        NumberType(1, "BF16", "<u2", ""),
        NumberType(2, "F16", "<u2", "<f2"),
        NumberType(3, "F64", "<u8", "<f8"),
    )
}


def bits_of(values: Array, kind: NumberType) -> Array:
    """The bits [n] of values [n] in a type that holds them, or of the nearest bfloat16 (ties to even).

    Args:
        values: finite.
        kind: the type.
    """
    if kind.floats:
        return np.ascontiguousarray(values, kind.floats).view(kind.bits).reshape(-1)
    wide = np.ascontiguousarray(values, "<f4").view("<u4").reshape(-1).astype(np.uint64)
    return ((wide + 0x7FFF + ((wide >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype("<u2")


def values_of(bits: Array, kind: NumberType) -> Array:
    """The values [n]: float64 of F64, else float32."""
    if not kind.floats:
        return (bits.astype("<u4") << np.uint32(16)).view(np.float32)
    values: Array = bits.view(kind.floats)
    return values.astype(np.float32) if kind.name == "F16" else values


def encode(bits: Array, kind: NumberType) -> bytes:
    """The bytes of ``bits`` [n] of a type."""
    top = np.array(8 * kind.width - 1, bits.dtype)
    rotated = (bits << np.array(1, bits.dtype)) | (bits >> top)
    planes = rotated.astype(kind.bits).view(np.uint8).reshape(-1, kind.width)
    return b"".join(_encode_plane(planes[:, at]) for at in reversed(range(kind.width)))


def decode(reader: Reader, count: int, kind: NumberType) -> Array:
    """The inverse of :func:`encode`: bits [count].

    Raises:
        DecodeError: bytes that :func:`encode` does not write.
    """
    planes = np.empty((count, kind.width), np.uint8)
    for at in reversed(range(kind.width)):
        planes[:, at] = _decode_plane(reader, count)
    rotated: Array = planes.reshape(-1).view(kind.bits)
    one, top = np.array(1, rotated.dtype), np.array(8 * kind.width - 1, rotated.dtype)
    bits: Array = (rotated >> one) | (rotated << top)
    return bits


def _encode_plane(plane: npt.NDArray[np.uint8]) -> bytes:
    raw = bytes([_PLAIN]) + plane.tobytes()
    if not plane.size:
        return raw
    counts = np.bincount(plane, minlength=256)
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1])
    held = Block(tuple(counts[first : last + 1].tolist()))
    table = bytes([first, last]) + b"".join(varint(count) for count in held.counts)
    stream = pack([(plane.astype(np.int32) - first, held)])
    coded = bytes([_CODED]) + table + varint(len(stream)) + stream
    return coded if len(coded) < len(raw) else raw


def _decode_plane(reader: Reader, count: int) -> npt.NDArray[np.uint8]:
    if reader.byte((_PLAIN, _CODED), "mode of a plane") == _PLAIN:
        return np.frombuffer(reader.take(count, "values"), np.uint8)
    first = reader.byte(tuple(range(256)), "first byte")
    last = reader.byte(tuple(range(first, 256)), "last byte")
    counts, left = [], count
    for _ in range(last - first + 1):
        counts.append(reader.varint(left, "count of a byte"))
        left -= counts[-1]
    if left or not counts[0] or not counts[-1]:
        raise reader.fail(f"counts of {count} bytes whose first and last occur", f"{left} uncounted")
    stream = reader.take(reader.varint(9 + 4 * count, "length of a stream"), "stream")
    symbols = unpack(Reader(stream, reader.who, reader.hint), [Block(tuple(counts))])[0]
    return (symbols + first).astype(np.uint8)
