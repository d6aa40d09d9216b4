"""A vector of symbols of a small alphabet: entropy-coded, or packed where that is shorter.

Entry points: :func:`write` and :func:`read`. Which of the two is shorter is decided by integers alone, so
that every processor writes the same bytes. A *histogram* says how often each symbol from the first to the
last used one occurs: two bytes and a varint a symbol, of zeros in a row one and how many more there are.
"""

from __future__ import annotations

import numpy as np

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.entropy import Block, Bytes, Symbols, pack, unpack_bytes
from headwater.compression.t_tables import cost

PLAIN, CODED = 0, 1
CODER_BYTES = 8
"""The coder's last state: at most so many bytes above the entropy."""


def write(symbols: Symbols, size: int) -> bytes:
    """``symbols`` (0 … ``size`` − 1 ≤ 255) as a mode byte and, to the end of a body, what it announces."""
    if (found := shorter(symbols, plain_bytes(symbols.size, size))) is not None:
        first, block = found
        return bytes([CODED]) + histogram_bytes(first, block) + pack([(symbols - np.int32(first), block)])
    return bytes([PLAIN]) + _packed(symbols, _width(size))


def read(reader: Reader, count: int, size: int) -> Bytes:
    """``count`` symbols from the rest of ``reader``: the inverse of :func:`write`.

    Raises:
        DecodeError: the bytes hold anything else.
    """
    if reader.byte((PLAIN, CODED), "mode") == PLAIN:
        return _unpacked(reader, count, size)
    first, block = read_histogram(reader, count, size)
    symbols = unpack_bytes(reader, [block])[0]
    symbols += np.uint8(first)
    return symbols


def most_bytes(count: int, size: int) -> int:
    """:func:`write` never gives more for ``count`` symbols."""
    return 1 + plain_bytes(count, size)


def shorter(symbols: Symbols, most: int) -> tuple[int, Block] | None:
    """The first used symbol, and the counts from there on, if coding takes less than ``most`` bytes."""
    if not symbols.size:
        return None
    counts = np.bincount(symbols)
    first = int(np.flatnonzero(counts)[0])
    block = Block(tuple(counts[first:].tolist()))
    return (first, block) if len(histogram_bytes(first, block)) + coded_bytes(block) < most else None


def histogram_bytes(first: int, block: Block) -> bytes:
    """A histogram as it travels."""
    out, counts, at = bytearray([first, len(block.counts) - 1]), block.counts, 0
    while at < len(counts):
        out += varint(counts[at])
        at += 1
        if not counts[at - 1]:
            more = next(place for place in range(at, len(counts)) if counts[place]) - at
            out += varint(more)
            at += more
    return bytes(out)


def read_histogram(reader: Reader, count: int, size: int) -> tuple[int, Block]:
    """A histogram of ``count`` ≥ 1 symbols below ``size``.

    Raises:
        DecodeError: other counts, or an end that no symbol uses.
    """
    first = reader.byte(tuple(range(size)), "first symbol")
    length = 1 + reader.byte(tuple(range(size - first)), "symbols after the first")
    counts, left, was = list[int](), count, 0
    while len(counts) < length:
        counts.append(reader.varint(left, "count of a symbol"))
        left -= counts[-1]
        if not counts[-1]:
            counts += [0] * reader.varint(length - len(counts), "zeros in a row")
        if not (counts[-1] or was):
            raise reader.fail("a used symbol first, and after zeros", "zeros")
        was = counts[-1]
    if left or not was:
        raise reader.fail(f"counts of {count} symbols to the last used one", f"{left} uncounted")
    return first, Block(tuple(counts))


def coded_bytes(block: Block) -> int:
    """An upper bound of the bytes that coding such a vector takes, in integers."""
    counts = np.array(block.counts, np.int64)
    bits = int((cost(block.weights()) * counts).sum()) >> 16
    return bits // 8 + CODER_BYTES


def plain_bytes(count: int, size: int) -> int:
    """Bytes of ``count`` packed symbols."""
    return -(-count * _width(size) // 8)


def _width(size: int) -> int:
    """Bits of a packed symbol: 1, 2, 4 or 8."""
    return next(width for width in (1, 2, 4, 8) if size <= 1 << width)


def _packed(symbols: Symbols, width: int) -> bytes:
    """The first symbol in the highest bits of the first byte; zero bits at the end."""
    each = 8 // width
    rows = np.zeros((-(-symbols.size // each), each), np.uint8)
    rows.reshape(-1)[: symbols.size] = symbols
    out = np.zeros(len(rows), np.uint8)
    for place in range(each):
        out |= rows[:, place] << (8 - width * (place + 1))
    return out.tobytes()


def _unpacked(reader: Reader, count: int, size: int) -> Bytes:
    width = _width(size)
    each = 8 // width
    data = np.frombuffer(reader.take(plain_bytes(count, size), "packed symbols"), np.uint8)
    reader.end()
    rows = np.empty((data.size, each), np.uint8)
    for place in range(each):
        rows[:, place] = data >> (8 - width * (place + 1)) & ((1 << width) - 1)
    symbols: Bytes = rows.reshape(-1)
    if symbols[count:].any():
        raise reader.fail("zero bits after the last symbol", "others")
    if count and int(symbols[:count].max()) >= size:
        raise reader.fail(f"symbols below {size}", str(int(symbols[:count].max())))
    return symbols[:count]
