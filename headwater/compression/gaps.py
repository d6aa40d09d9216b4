"""Positions of few values among many as gaps between them: how likely each is, and symbols for the coder.

Entry points: :func:`gap_table`, :meth:`GapTable.write`, :meth:`GapTable.read`. Of n values at places that
tell nothing, a gap of g zeros has probability (1−p)^g·p, p = n/N. Its lowest ``shift`` bits are as good as
random, and go beside; the rest is one symbol each, and after as many zeros as no symbol stands for an escape,
which costs nothing, since what follows is as likely as before (Golomb 1966, with an entropy coder for the
quotient). All integers: the same model on every machine. ``docs/reference/codecs.md`` describes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.entropy import Bytes, Symbols
from headwater.compression.ternary import kept
from headwater.state import StateSpec

Places = npt.NDArray[np.int32] | npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

_ONE = 1 << 40
_LAST = _ONE >> 8
"""What is less likely needs an escape."""
_TOTAL = 1 << 24


@dataclass(frozen=True, slots=True)
class GapTable:
    """The gaps of ``count`` values out of ``numel``, 0 < count < numel.

    Args:
        numel: N.
        count: n.
        shift: lowest bits of a gap that go beside.
        units: integer probabilities in units of 2⁻²⁴ of what is above them; the last one is the escape's.
    """

    numel: int
    count: int
    shift: int
    units: tuple[int, ...]

    @property
    def escape(self) -> int:
        """The symbol of as many zeros as no other symbol stands for."""
        return len(self.units) - 1

    def most_escapes(self, tensors: int) -> int:
        """How many there can be in so many tensors; 0: they need not be counted."""
        return tensors * ((self.numel - self.count) // (self.escape << self.shift))

    def write(self, places: Places) -> tuple[Symbols, Bits]:
        """The symbols of ``places`` [tensors, count], each row ascending, and the bits that go beside.

        Returns:
            Symbols, and bits [shift · tensors · count]: the lowest of each gap, then the next of each.
        """
        gaps: Places = np.diff(places, prepend=-1, axis=1).reshape(-1)
        if self.numel < 1 << 31:
            gaps = gaps.astype(np.int32)
        gaps -= 1
        bits = [(gaps >> bit & 1).astype(np.uint8) for bit in range(self.shift)]
        high = (gaps >> self.shift).astype(np.int32)
        far = np.flatnonzero(high >= self.escape)
        if far.size:
            times = high[far] // self.escape
            high[far] -= times * self.escape
            high = np.insert(high, np.repeat(far, times), np.int32(self.escape))
        return high, np.concatenate(bits) if bits else np.zeros(0, np.uint8)

    def read(self, symbols: Symbols, bits: Bits, tensors: int, reader: Reader) -> Places:
        """The inverse of :meth:`write`.

        Args:
            symbols: [tensors · count + escapes].
            bits: [shift · tensors · count].
            tensors: rows of the result.
            reader: to refuse with.

        Raises:
            DecodeError: no symbols that :meth:`write` makes.
        """
        rows, most = tensors * self.count, tensors * self.numel
        if int(symbols.sum(dtype=np.int64)) << self.shift > most:
            raise reader.fail(f"places below {self.numel}", "gaps that are longer")
        narrow = np.dtype(np.int32 if most < 1 << 28 else np.int64)  # what follows is at most 4·most
        escapes = symbols == self.escape
        at = np.flatnonzero(escapes)
        if at.size != symbols.size - rows or escapes[-1]:
            raise reader.fail(f"{symbols.size - rows} escapes, none of them the last", f"{at.size}")
        gaps: Places = symbols[~escapes].astype(narrow, copy=False)
        before, times = np.unique(at - np.arange(at.size), return_counts=True)
        gaps[before] += times.astype(narrow) * self.escape
        gaps <<= self.shift
        for bit, plane in enumerate(bits.reshape(self.shift, rows)):
            gaps |= plane.astype(narrow) << bit
        gaps += 1
        places: Places = gaps.reshape(tensors, self.count).cumsum(axis=1, dtype=narrow)
        places -= 1
        if (places[:, -1] >= self.numel).any():
            raise reader.fail(f"places below {self.numel}", f"{int(places[:, -1].max())}")
        return places


@dataclass(frozen=True, slots=True)
class GapBlock:
    """The gaps of some tensors as one vector of symbols: a :class:`headwater.compression.entropy.Table`."""

    table: GapTable
    length: int
    only: int | None = None

    def weights(self) -> npt.NDArray[np.int64]:
        """See :class:`Table`."""
        return np.array(self.table.units, np.int64)

    def admits(self, symbols: Symbols | Bytes) -> bool:
        """All: :meth:`GapTable.read` refuses what is wrong."""
        return True


@lru_cache(maxsize=512)
def gap_table(numel: int, count: int) -> GapTable:
    """The table of ``count`` values out of ``numel``, 0 < count < numel."""
    shift = 0
    while 4 * count << shift + 1 <= numel:
        shift += 1
    stays = (numel - count) * _ONE // numel  # the probability that a value is 0, then that 2^shift are
    for _ in range(shift):
        stays = stays * stays // _ONE
    tails = [_ONE]
    while tails[-1] > _LAST:
        tails.append(tails[-1] * stays // _ONE)
    free = _TOTAL - len(tails)
    units = [1 + (here - after) * free // _ONE for here, after in zip(tails, [*tails[1:], 0], strict=True)]
    units[0] += _TOTAL - sum(units)
    return GapTable(numel, count, shift, tuple(units))


def most_gap_bytes(spec: StateSpec, density: float, *, over_all: bool = False) -> int:
    """No body of ``compeft.v2`` at this density is longer, whatever the values.

    Gaps cost what positions do in ``compeft.v1``, and more where all their lowest bits are zeros, which the
    model thinks as likely as others: log2(x / (1 − e^−x)) < 0.18 bits, x = n·2^s/N ≤ 1/4.
    The cost is concave in n: of a density over all tensors, equal ones are the worst case.

    Args:
        spec: of the state.
        density: 0 < k ≤ 1.
        over_all: whether it is that of all tensors together.
    """
    size, bits, met = 16 + len(varint(len(spec))), 0.0, set[int]()
    for t in spec:
        count = max(density, 1 / spec.numel) * t.numel if over_all else kept(t.numel, density)
        some = min(count, 2 * t.numel / 3)
        size += 2 * len(varint(t.numel)) + (len(varint(len(spec))) if t.numel in met else 0)
        met.add(t.numel)
        bits += 31 + (t.numel - some) * math.log2(t.numel / (t.numel - some))
        bits += some * (0.18 + math.log2(2 * t.numel / some))
    return size + math.ceil(bits / 8)
