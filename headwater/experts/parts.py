"""The bodies of a file's parts: ternary factors, ternary values, numbers; and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.entropy import Block, Symbols, pack, unpack
from headwater.compression.ternary import MINUS, PLUS, kept, select
from headwater.experts import numbers
from headwater.experts.layout import FACTORS, NUMBERS, TERNARY, Part
from headwater.experts.numbers import TYPES, NumberType
from headwater.experts.ternary_factors import Signs, TernaryFactors, signs_of, to_bfloat16
from headwater.merging.offline.tensor_file import Array

ZERO, ONE, ORIGIN = 0, 1, 2
"""What ternary values are added to: nothing, one, the tensor of the origin."""
_BY_CODE = {kind.code: kind for kind in TYPES.values()}


def factors_part(
    name: str, embedding: bool, inputs: tuple[int, ...], found: TernaryFactors
) -> tuple[Part, bytes]:
    """A LoRA module.

    Args:
        name: of the module.
        embedding: whether its weight is an embedding.
        inputs: the axes of A but the first.
        found: its change.
    """
    part = Part(name, FACTORS, int(embedding), (found.a.shape[0], found.b.shape[0], *inputs))
    body = _bfloat16_bytes(found.magnitudes)
    if not found.magnitudes.any():
        return part, body
    blocks = [_block(found.b), _block(found.a)]
    head = b"".join(varint(block.counts[PLUS]) + varint(block.counts[MINUS]) for _, block in blocks)
    return part, body + head + pack(blocks)


def read_factors(reader: Reader, part: Part) -> TernaryFactors:
    """The inverse of :func:`factors_part`; a is [r, columns].

    Raises:
        DecodeError: another body than the one for its values.
    """
    rank, rows = part.shape[:2]
    columns = part.values // rank - rows
    magnitudes = _read_bfloat16(reader, rank)
    if rank == 1 and not magnitudes.any():
        reader.end()
        return TernaryFactors(np.zeros((1, columns), np.int8), np.zeros((rows, 1), np.int8), magnitudes)
    blocks = [_read_counts(reader, rows * rank), _read_counts(reader, rank * columns)]
    b, a = (signs_of(symbols) for symbols in unpack(reader, blocks))
    b, a = b.reshape(rows, rank), a.reshape(rank, columns)
    if not (magnitudes.all() and b.any(axis=0).all() and a.any(axis=1).all()):
        raise reader.fail("directions that are not zero", "one that is")
    return TernaryFactors(a, b, magnitudes)


def ternary_part(name: str, values: Array, relative_to: int, density: float) -> tuple[Part, bytes]:
    """A tensor's distance from something: the signs of its largest values, and their mean magnitude.

    Args:
        name: of the tensor.
        values: of the distance, any shape.
        relative_to: from what.
        density: of the values that are kept.
    """
    flat = values.astype(np.float32).reshape(-1)
    symbols = select(flat, kept(flat.size, density)) if flat.size else np.zeros(0, np.int32)
    chosen = np.abs(flat[symbols != 0])
    scale = to_bfloat16(np.array([chosen.mean(dtype=np.float64) if chosen.size else 0.0]))
    part = Part(name, TERNARY, relative_to, values.shape)
    if not scale[0]:
        return part, _bfloat16_bytes(np.zeros(1, np.float32))
    block = Block(tuple(np.bincount(symbols, minlength=3).tolist()))
    head = _bfloat16_bytes(scale) + varint(block.counts[PLUS]) + varint(block.counts[MINUS])
    return part, head + pack([(symbols, block)])


def read_ternary(reader: Reader, part: Part) -> npt.NDArray[np.float32]:
    """The distance, of the part's shape; raises as :func:`read_factors`."""
    scale = _read_bfloat16(reader, 1)
    if not scale[0]:
        reader.end()
        return np.zeros(part.shape, np.float32)
    block = _read_counts(reader, part.values)
    if not block.counts[PLUS] + block.counts[MINUS]:
        raise reader.fail("a value that is not zero", "none")
    distance: npt.NDArray[np.float32] = signs_of(unpack(reader, [block])[0]) * scale[0]
    return distance.reshape(part.shape)


def numbers_part(name: str, values: Array, kind: NumberType) -> tuple[Part, bytes]:
    """A tensor's values, in a type that holds them or rounded to bfloat16."""
    part = Part(name, NUMBERS, kind.code, values.shape)
    return part, numbers.encode(numbers.bits_of(values.reshape(-1), kind), kind)


def read_numbers(reader: Reader, part: Part) -> Array:
    """The values, of the part's shape; raises as :func:`read_factors`, and where one is not finite."""
    kind = _BY_CODE[part.variant]
    values = numbers.values_of(numbers.decode(reader, part.values, kind), kind)
    reader.end()
    if not np.isfinite(values).all():
        raise reader.fail("finite numbers", f"{int((~np.isfinite(values)).sum())} that are not")
    return values.reshape(part.shape)


def number_type(part: Part) -> NumberType:
    """Of a part that is coded as numbers."""
    return _BY_CODE[part.variant]


def _block(signs: Signs) -> tuple[Symbols, Block]:
    symbols = np.where(signs < 0, MINUS, signs).astype(np.int32).reshape(-1)
    return symbols, Block(tuple(np.bincount(symbols, minlength=3).tolist()))


def _read_counts(reader: Reader, count: int) -> Block:
    plus = reader.varint(count, "positive count")
    minus = reader.varint(count - plus, "negative count")
    return Block((count - plus - minus, plus, minus))


def _bfloat16_bytes(values: npt.NDArray[np.float32]) -> bytes:
    return (np.ascontiguousarray(values, "<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()


def _read_bfloat16(reader: Reader, count: int) -> npt.NDArray[np.float32]:
    """Magnitudes: finite, at least +0."""
    bits = np.frombuffer(reader.take(2 * count, "magnitudes"), "<u2")
    if (bits > 0x7F7F).any():
        raise reader.fail("finite magnitudes of at least 0", "another")
    return (bits.astype("<u4") << np.uint32(16)).view(np.float32)
