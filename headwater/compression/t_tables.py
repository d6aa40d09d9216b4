"""Integers that pile up around zero, described by two bytes: :func:`choose_table`, :func:`read_table`.

Coefficients of random directions are slopes g·z of a gradient that differs from step to step: a scale
mixture of normals, near zero at most and with heavy tails. A histogram would cost as much as it saves, so
a table is one of a few curves (1 + x²/(ν·s²))^−p, Student's t with ν = 2p − 1, or flat, at one of 72
scales s. The writer takes the cheapest.

Both sides must derive the same integers on every machine, and writers the same choice: only operations
that IEEE 754 rounds exactly (+ − · / √ and scaling by powers of two) and integers are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from headwater.compression.byte_reader import Reader
from headwater.compression.entropy import Bytes, Symbols
from headwater.errors import ConfigError
from headwater.seeds.directions import Integers

MAX_BITS = 15
"""Values are within −2^15 … 2^15 − 1."""
FLAT = 0
_POWERS = (0, 1, 2, 4, 16)
"""p of each shape; shape 0 is flat."""
_SCALES = 72
_FREE = 1 << 24


@dataclass(frozen=True, slots=True)
class StudentTTable:
    """A table for ``length`` values −2^bits … 2^bits − 1, as symbols 0 … 2^(bits + 1) − 1.

    Args:
        length: values.
        bits: 0 if all values are zero.
        shape: index of p; 0 is flat.
        scale: s = 2^(scale/4 − 2); 0 for the flat shape.
    """

    length: int
    bits: int
    shape: int = FLAT
    scale: int = 0

    @property
    def only(self) -> int | None:
        """All zero: nothing to code."""
        return None if self.bits and self.length else 0

    def weights(self) -> Integers:
        """See :class:`headwater.compression.entropy.Table`."""
        return _weights(self.bits, self.shape, self.scale)

    def admits(self, symbols: Symbols | Bytes) -> bool:
        """Always: that the curve is the writer's choice is for the reader of the whole body to check."""
        return True

    def values(self, symbols: Symbols) -> Integers:
        """What the symbols stand for."""
        return symbols.astype(np.int64) - (1 << self.bits if self.bits else 0)

    def header(self) -> bytes:
        """One byte for bits and shape; one for the scale unless the shape is flat."""
        return bytes([self.shape << 4 | self.bits] + [self.scale] * (self.shape != FLAT))


def choose_table(values: Integers) -> tuple[Symbols, StudentTTable]:
    """The symbols of ``values`` and the cheapest table for them: a function of the values alone.

    Raises:
        ConfigError: a value outside −2^15 … 2^15 − 1.
    """
    bits = width(values)
    if bits > MAX_BITS:
        raise ConfigError("integers to encode", expected="at most 16 bits", got=f"{bits + 1}")
    if not bits:
        return np.zeros(len(values), np.int32), StudentTTable(len(values), 0)
    symbols: Symbols = (values + (1 << bits)).astype(np.int32)
    kinds, counts = np.unique(symbols, return_counts=True)
    # ⌊4·log2(4·mean |x|)⌋, whose neighbours are tried
    mean = 4 * int(np.abs(values).sum()) // len(values)
    middle = max((mean**4).bit_length() - 1, 0)
    tried = [StudentTTable(len(values), bits)]
    for shape in range(1, len(_POWERS)):
        scales = range(max(0, middle - 6), min(_SCALES, middle + 4))
        tried += [StudentTTable(len(values), bits, shape, scale) for scale in scales]
    costs = [int((cost(table.weights()[kinds]) * counts).sum()) for table in tried]
    return symbols, tried[costs.index(min(costs))]


def read_table(reader: Reader, length: int) -> StudentTTable:
    """The table of the next ``length`` values.

    Raises:
        DecodeError: not a header that :meth:`StudentTTable.header` writes.
    """
    head = reader.take(1, "shape and width")[0]
    shape, bits = head >> 4, head & 15
    if shape >= len(_POWERS) or (shape and not bits):
        raise reader.fail(f"a shape below {len(_POWERS)}, flat where all values are zero", str(shape))
    scale = reader.byte(tuple(range(_SCALES)), "scale") if shape != FLAT else 0
    return StudentTTable(length, bits, shape, scale)


def width(values: Integers) -> int:
    """The least b with −2^b ≤ x < 2^b for all x; 0 for zeros only."""
    return int((values ^ (values >> 63)).max(initial=0)).bit_length() or int(bool(values.any()))


@lru_cache(maxsize=64)
def _weights(bits: int, shape: int, scale: int) -> Integers:
    size = 2 << bits
    curve = np.full(size, 1 << 30, np.int64)
    if shape != FLAT:
        power = _POWERS[shape]
        # ν·s², s² = 2^(scale/2)/16 with 16 fractional bits
        width2 = (2 * power - 1) * (math.isqrt(1 << (scale + 32)) / 2**20)
        x = np.arange(-(1 << bits), 1 << bits).astype(np.float64)
        t = width2 / (width2 + x * x)
        for _ in range(power.bit_length() - 1):
            t = t * t
        curve = np.floor(t * 2.0**30).astype(np.int64)
    weights = 1 + curve * (_FREE - size) // int(curve.sum())
    weights[size // 2] += _FREE - int(weights.sum())  # zero is the most frequent value
    weights.flags.writeable = False
    return weights


def cost(weights: Integers) -> Integers:
    """−log2 of probabilities in units of 2^-16 bit, the same on every machine."""
    mantissa, exponent = np.frexp(weights.astype(np.float64))  # weights = mantissa·2^exponent
    y = (mantissa - 0.7071067811865476) / (mantissa + 0.7071067811865476)
    z = y * y
    # log2 m = −½ + 2/ln 2·(y + y³/3 + y⁵/5 + …)
    series = y * (1.0 + z * (1.0 / 3 + z * (0.2 + z * (1.0 / 7))))
    log2 = exponent.astype(np.float64) - 0.5 + 2.8853900817779268 * series
    return np.floor((24.0 - log2) * 65536.0).astype(np.int64)
