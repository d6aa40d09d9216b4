"""Entropy coding of small-alphabet symbols with integer models: the same bytes on every platform.

Entry points: :func:`pack`, :func:`unpack`, :func:`unpack_bytes`, :func:`unpack_over`. A *block* is a vector
of symbols 0 … m−1 and a *table* of integer probabilities that both sides derive from what was sent before:
the exact count of each symbol (:class:`Block`) or a curve (:mod:`headwater.compression.t_tables`). The coder
is constriction's ANS coder (Bamler 2022, arXiv 2201.01741): 64-bit state, 32-bit words, 24-bit probabilities.
``docs/reference/codecs.md`` describes it so that it can be written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import constriction
import numpy as np
import numpy.typing as npt

from headwater.compression.byte_reader import Reader

Symbols = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Bits = Bytes

_Number = TypeVar("_Number", np.int32, np.uint8)
_TOTAL = 1 << 24
CHUNK = 1 << 16
"""Symbols that are looked at together: what is made of them on the way stays small beside the result."""
_FEW = 8
"""Symbols of an alphabet that is looked through symbol by symbol."""


class Table(Protocol):
    """What both sides know of a vector of symbols."""

    @property
    def length(self) -> int:
        """Symbols in the vector."""

    @property
    def only(self) -> int | None:
        """The symbol that takes every place, so that there is nothing to code; else None."""

    def weights(self) -> npt.NDArray[np.int64]:
        """Integer probabilities in units of 2⁻²⁴: each ≥ 1, the sum 2²⁴."""

    def admits(self, symbols: Symbols | Bytes) -> bool:
        """Whether decoded symbols are a vector that a writer describes by this table."""


@dataclass(frozen=True, slots=True)
class Block:
    """How often each symbol occurs in one vector; their sum is its length."""

    counts: tuple[int, ...]

    @property
    def length(self) -> int:
        """See :class:`Table`."""
        return sum(self.counts)

    @property
    def only(self) -> int | None:
        """See :class:`Table`."""
        return self.counts.index(self.length) if max(self.counts) == self.length else None

    def weights(self) -> npt.NDArray[np.int64]:
        """See :class:`Table`."""
        return np.array(weights(self.counts), np.int64)

    def admits(self, symbols: Symbols | Bytes) -> bool:
        """Exactly these counts."""
        found = np.zeros(len(self.counts), np.int64)
        for start in range(0, symbols.size, CHUNK):
            part = symbols[start : start + CHUNK]
            if len(self.counts) <= _FEW:  # a comparison a symbol is faster than a histogram
                found += [np.count_nonzero(part == symbol) for symbol in range(len(self.counts))]
            else:
                found += np.bincount(part, minlength=len(self.counts))
        return tuple(found.tolist()) == self.counts and symbols.size == self.length


def weights(counts: Sequence[int]) -> list[int]:
    """Integer probabilities in units of 2⁻²⁴: each ≥ 1, the sum 2²⁴.

    With F = 2²⁴ − m and N = Σc: w_i = 1 + ⌊c_i·F/N⌋, and the most frequent symbol (the first of
    them) takes what rounding left. A symbol so costs at most log2(N/c_i) + 9e-8·m bits.
    """
    total, free = sum(counts), _TOTAL - len(counts)
    extra = [count * free // total for count in counts]
    extra[counts.index(max(counts))] += free - sum(extra)
    return [1 + value for value in extra]


def pack(blocks: Sequence[tuple[Symbols, Table]], below: Bits | None = None) -> bytes:
    """All blocks as one ANS stream: little-endian u32 words, zero bytes at the very end dropped.

    Args:
        blocks: read in this order.
        below: bits (0 or 1) that lie under the blocks, from which the coder starts, so that its first state
            costs nothing; a 1 marks their end.
    """
    coder = constriction.stream.stack.AnsCoder(*([] if below is None else [_words(below)]))
    for symbols, table in reversed(blocks):
        if table.only is None:
            coder.encode_reverse(symbols, _model(table))
    data: bytes = coder.get_compressed().astype("<u4").tobytes()
    return data.rstrip(b"\0")


def unpack(reader: Reader, tables: Sequence[Table]) -> list[Symbols]:
    """The symbols of ``tables`` from the rest of ``reader``: the inverse of :func:`pack`.

    ANS is a bijection between (start state, symbols) and words, so asking for the empty start state
    at the end refuses every body but the one that :func:`pack` writes.

    Raises:
        DecodeError: the words do not hold vectors of these tables, and nothing else.
    """
    coder = _open(reader)
    out = [_block(coder, index, table, reader, np.int32) for index, table in enumerate(tables)]
    _end(coder, reader)
    return out


def unpack_bytes(reader: Reader, tables: Sequence[Table]) -> list[Bytes]:
    """As :func:`unpack`, for alphabets of at most 256: a quarter of the memory."""
    coder = _open(reader)
    out = [_block(coder, index, table, reader, np.uint8) for index, table in enumerate(tables)]
    _end(coder, reader)
    return out


def _end(coder: constriction.stream.stack.AnsCoder, reader: Reader) -> None:
    if not coder.is_empty():
        raise reader.fail("an empty coder after the last symbol", "bits that are left")


def unpack_over(reader: Reader, tables: Sequence[Table], bits: int) -> tuple[list[Symbols], Bits]:
    """The symbols of ``tables``, and so many bits below them: the inverse of :func:`pack`.

    Raises:
        DecodeError: as :func:`unpack`, or the bits below are not so many.
    """
    coder = _open(reader)
    out = [_block(coder, index, table, reader, np.int32) for index, table in enumerate(tables)]
    words = coder.get_compressed().astype("<u4")
    below: Bits = np.unpackbits(words[: bits // 32 + 1].view(np.uint8), bitorder="little")
    if words.size != bits // 32 + 1 or not below[bits] or below[bits + 1 :].any():
        raise reader.fail(f"{bits} bits below the symbols, and a 1", "others")
    return out, below[:bits]


def _words(bits: Bits) -> npt.NDArray[np.uint32]:
    marked = np.zeros((bits.size // 32 + 1) * 32, np.uint8)
    marked[: bits.size] = bits
    marked[bits.size] = 1
    return np.packbits(marked, bitorder="little").view("<u4").astype(np.uint32)


def _open(reader: Reader) -> constriction.stream.stack.AnsCoder:
    data = reader.rest()
    if data.endswith(b"\0"):
        raise reader.fail("no zero byte at the end", "one")
    words = np.zeros(-(-len(data) // 4), "<u4")
    words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    return constriction.stream.stack.AnsCoder(words.astype(np.uint32, copy=False))


def _block(
    coder: constriction.stream.stack.AnsCoder, index: int, table: Table, reader: Reader, dtype: type[_Number]
) -> npt.NDArray[_Number]:
    """The next vector of symbols."""
    if (only := table.only) is not None:
        return np.full(table.length, only, dtype)
    symbols, model = np.empty(table.length, dtype), _model(table, decodes=True)
    for start in range(0, table.length, CHUNK):
        symbols[start : start + CHUNK] = coder.decode(model, min(CHUNK, table.length - start))
    if not table.admits(symbols):
        raise reader.fail(f"the announced symbol counts in block {index}", "others")
    return symbols


def _model(table: Table, *, decodes: bool = False) -> constriction.stream.model.Categorical:
    # constriction computes each left cumulative as ⌊cumulative·F/Σp⌋ + index. Integers p = w − 1 that
    # sum to F make the factor exactly 1.0 and every operation exact: no float rounding is left.
    free = table.weights().astype(np.float64) - 1.0
    # lazy: the same integers, found symbol by symbol, which decodes few symbols faster and many slower
    return constriction.stream.model.Categorical(free, perfect=False, lazy=decodes and len(free) <= _FEW)


def look_up(levels: npt.NDArray[np.float32], symbols: Bytes) -> npt.NDArray[np.float32]:
    """``levels[symbols]``, without an index of eight bytes for each symbol."""
    out = np.empty(symbols.size, np.float32)
    for start in range(0, symbols.size, CHUNK):
        levels.take(symbols[start : start + CHUNK], out=out[start : start + CHUNK], mode="clip")
    return out
