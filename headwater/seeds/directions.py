"""Directions: random vectors that a seed gives anywhere, made of integers and a counter.

A :class:`Directions` is a family of vectors z₀, z₁, … of one length. Value i of z_s is a function of
(key, s, i) alone: it is read off Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3") at a counter made of s and i, so any part of any vector can be drawn by itself, in any
order, on any machine. No sine, logarithm or square root is taken: a value is an *integer* of the
unit ``2^-unit_bits``, ±1 for ``rademacher``, one of 65,536 quantiles of N(0, 1) for ``gaussian``.

Integers make replay exact. Σ c_s·z_s with integer c_s (:meth:`Directions.combine`) is a sum in int64,
the same bits in any order and grouping, whether in one go or as what changed since yesterday.

Directions are drawn on the CPU also where the model sits on another device: they are as small as an
adapter, and every device then has the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.config.traits import Distribution
from headwater.errors import ConfigError, HeadwaterError
from headwater.seeds.keys import Key

Integers = npt.NDArray[np.int64]

_SIGNS, _NORMALS = 1, 2  # third word of the counter
_GAUSSIAN_BITS = 12
_TABLE_SHA256 = "1ea009ce409dac97d6bd609266910f809c5fb912f78e16bd89145b08174d6fc5"
_ALIGN = 32
"""Values that are combined start and end at multiples of it: one counter of signs."""
_CHUNK, _BLOCK = 2**20, 2**15
"""Values that one table of signs serves, and values that are drawn at a time: what caches hold."""
_SHORT = 2**15
"""±1 vectors below it do without tables of 65,536 entries."""
_TOGETHER = 16
"""Gaussian seeds of which a block is added before the next block."""
MAX_COEFFICIENTS = 2**46
"""Σ|c| may not reach it: with |z| < 2^16 an int64 sum cannot overflow below it."""


@dataclass(frozen=True)
class Directions:
    """A family of vectors of ``size`` values.

    Args:
        key: 16 bytes that name the family.
        distribution: ``rademacher`` (±1, E‖z‖² = size exactly) or ``gaussian``.
        size: values of each vector.
    """

    key: bytes
    distribution: Distribution
    size: int

    @staticmethod
    def of(key: Key, distribution: Distribution, size: int) -> Directions:
        """The family at ``key``."""
        return Directions(key.digest[:16], distribution, size)

    @property
    def unit_bits(self) -> int:
        """A value is an integer times 2^-unit_bits."""
        return 0 if self.distribution == "rademacher" else _GAUSSIAN_BITS

    def integers(self, seed: int, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Values ``start`` to ``stop`` of vector ``seed`` in units of 2^-unit_bits: int8 or int16.

        Raises:
            ConfigError: a seed outside 0 … 2^64 − 1, or a part outside the vector.
        """
        stop = self._stop(seed, start, stop)
        if self.distribution == "rademacher":
            bits = (self._sign_bytes(seed // 8, start, stop) >> np.uint8(seed % 8)) & np.uint8(1)
            return (bits.view(np.int8) << 1) - np.int8(1)
        return np.take(_quantiles(), self._words(seed, start, stop), mode="clip")

    def values(self, seed: int, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """The same as float32, exact."""
        values = self.integers(seed, start, stop).astype(np.float32)
        values *= np.float32(2.0**-self.unit_bits)
        return values

    def combine(
        self, seeds: Integers, coefficients: Integers, start: int = 0, stop: int | None = None
    ) -> Integers:
        """Σ c·z in units of 2^-unit_bits, exact: int64 [stop − start].

        ±1 vectors cost one table look-up for two values of eight consecutive seeds (the method of four
        Russians): the 8 random bits of a value choose among the 256 sums ±c₀ ±c₁ … ±c₇.

        Args:
            seeds: int64 [n]; a seed may occur more than once.
            coefficients: int64 [n].
            start: first value wanted.
            stop: end of the values wanted; the vector's end if absent.

        Raises:
            ConfigError: Σ|c| ≥ :data:`MAX_COEFFICIENTS`, or seeds or part out of range.
        """
        coefficients = np.asarray(coefficients, np.int64)
        require_summable(coefficients)
        seeds, at = np.unique(np.asarray(seeds, np.int64), return_inverse=True)
        sums = np.zeros(len(seeds), np.int64)
        np.add.at(sums, at, coefficients)
        stop = self._stop(int(seeds[0]) if len(seeds) else 0, start, stop)
        first, end = start // _ALIGN * _ALIGN, -(-stop // _ALIGN) * _ALIGN
        out = np.zeros(end - first, np.int64)
        add = self._add_signs if self.distribution == "rademacher" else self._add_normals
        for low in range(first, end, _CHUNK):
            add(out[low - first : low - first + _CHUNK], seeds[sums != 0], sums[sums != 0], low)
        return out[start - first : stop - first]

    def _add_signs(self, out: Integers, seeds: Integers, sums: Integers, low: int) -> None:
        """Add to ``out``, the values from ``low`` on: in int32, emptied into it before it could overflow."""
        partial, load = np.zeros(len(out), np.int32), 0
        short = len(out) < _SHORT
        found = np.empty(min(_BLOCK, len(out)), np.int32)
        for group, mine in _groups(seeds, sums):
            weight = int(np.abs(mine).sum())
            if weight >= 2**31:
                self._add_signs_wide(out, 8 * group + np.arange(8), mine, low)
                continue
            if load + weight >= 2**31:
                out += partial
                partial[:], load = 0, 0
            load += weight
            table = _sums(mine) if short else _pairs(mine)
            for part, raw in self._blocks(low, group, len(out)):
                here = found[: part.stop - part.start]
                which = raw.view("u1" if short else "<u2")
                np.take(table, which, out=here.view(table.dtype), mode="wrap")
                partial[part] += here
        out += partial

    def _add_signs_wide(self, out: Integers, seeds: Integers, sums: Integers, low: int) -> None:
        """The same for coefficients that leave int32: c = 2^24·high + rest, each of which fits."""
        high = np.zeros(len(out), np.int64)
        self._add_signs(high, seeds, sums >> 24, low)
        out += high << 24
        self._add_signs(out, seeds, sums & (2**24 - 1), low)

    def _add_normals(self, out: Integers, seeds: Integers, sums: Integers, low: int) -> None:
        """Add to ``out``, the values from ``low`` on: many seeds to one block while it is in the cache.

        In int32, emptied into ``out`` before it could overflow; what leaves int32 goes there at once.
        """
        quantiles = _wide_quantiles()
        largest = int(quantiles[-1])
        found, partial = np.empty((2, min(_BLOCK, len(out))), np.int32)
        for first in range(0, len(seeds), _TOGETHER):
            lines, coefficients = (a[first : first + _TOGETHER].tolist() for a in (seeds, sums))
            streams = [self._philox(low // 16, seed, _NORMALS) for seed in lines]
            for at in range(0, len(out), _BLOCK):
                part = out[at : at + _BLOCK]
                here, narrow, load = found[: len(part)], partial[: len(part)], 0
                narrow[:] = 0
                for stream, coefficient in zip(streams, coefficients, strict=True):
                    words = stream.random_raw(len(part) // 4).astype("<u8", copy=False).view("<u2")
                    np.take(quantiles, words, out=here, mode="wrap")
                    weight = abs(coefficient) * largest
                    if weight >= 2**31:
                        part += np.multiply(here, coefficient, dtype=np.int64)
                        continue
                    if load + weight >= 2**31:
                        part += narrow
                        narrow[:], load = 0, 0
                    load += weight
                    here *= coefficient
                    narrow += here
                part += narrow

    def _blocks(self, low: int, group: int, count: int) -> Iterator[tuple[slice, npt.NDArray[np.uint64]]]:
        """Slices of ``count`` values from ``low`` on and the bytes of their signs."""
        philox = self._philox(low // 32, group, _SIGNS)
        for at in range(0, count, _BLOCK):
            stop = min(at + _BLOCK, count)
            yield slice(at, stop), philox.random_raw((stop - at) // 8).astype("<u8", copy=False)

    def _sign_bytes(self, group: int, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """uint8 [stop − start]: bit b is the sign of seed 8·group + b."""
        first = start // 32
        raw = self._raw(first, group, _SIGNS, -(-stop // 32) - first)
        return raw.view(np.uint8)[start - 32 * first : stop - 32 * first]

    def _words(self, seed: int, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """uint16 [stop − start]: which quantile."""
        first = start // 16
        raw = self._raw(first, seed, _NORMALS, -(-stop // 16) - first)
        return raw.view("<u2")[start - 16 * first : stop - 16 * first]

    def _raw(self, block: int, line: int, kind: int, blocks: int) -> npt.NDArray[np.uint64]:
        """Philox4x64-10 at counters (block, line, kind, 0), (block + 1, …), …: 32 bytes each."""
        return self._philox(block, line, kind).random_raw(4 * blocks).astype("<u8", copy=False)

    def _philox(self, block: int, line: int, kind: int) -> np.random.Philox:
        counter = block + (line << 64) + (kind << 128)
        # numpy counts up before it computes
        return np.random.Philox(key=int.from_bytes(self.key, "little"), counter=(counter - 1) % 2**256)

    def _stop(self, seed: int, start: int, stop: int | None) -> int:
        stop = self.size if stop is None else stop
        if not (0 <= seed < 2**64 and 0 <= start <= stop <= self.size):
            raise ConfigError(
                "direction",
                expected=f"a seed of 64 bits and values 0 to {self.size}",
                got=f"seed {seed}, values {start} to {stop}",
            )
        return stop


def require_summable(coefficients: Integers) -> None:
    """Check that sums of so many steps cannot leave int64.

    Raises:
        ConfigError: Σ|c| ≥ :data:`MAX_COEFFICIENTS`.
    """
    total = float(np.abs(coefficients.astype(np.float64)).sum())
    if total >= MAX_COEFFICIENTS:
        raise ConfigError(
            "seed coefficients",
            expected=f"magnitudes that sum up to less than {MAX_COEFFICIENTS}",
            got=f"{total:.3g}",
            hint="The run diverged, or a coefficient is hostile.",
        )


def _groups(seeds: Integers, sums: Integers) -> Iterator[tuple[int, Integers]]:
    """The coefficients of every eight consecutive seeds of which one occurs: int64 [8]."""
    groups, at = np.unique(seeds // 8, return_inverse=True)
    mine = np.zeros((len(groups), 8), np.int64)
    mine[at, seeds % 8] = sums
    yield from zip(groups.tolist(), mine, strict=True)


def _sums(coefficients: Integers) -> npt.NDArray[np.int32]:
    """[256]: Σ ±c for each byte of signs."""
    table = np.zeros(1, np.int32)
    for coefficient in coefficients.astype(np.int32):  # bit 0 varies fastest
        table = np.concatenate([table - coefficient, table + coefficient])
    return table


def _pairs(coefficients: Integers) -> Integers:
    """[65536]: for two bytes of signs their two sums, int32 each, side by side in 8 bytes."""
    first, second = np.zeros((2, 256, 2), np.int32)
    first[:, 0] = second[:, 1] = _sums(coefficients)
    # the first value's byte is the low one
    return np.bitwise_or.outer(second.view(np.int64), first.view(np.int64)).reshape(-1)


@cache
def _quantiles() -> npt.NDArray[np.int16]:
    """The 65,536 quantiles of N(0, 1) at (i + ½)/65,536, in units of 2^-12: odd, so their mean is 0."""
    inverse = NormalDist().inv_cdf
    upper = np.array([round(inverse(0.5 + (i + 0.5) / 65536) * 2**_GAUSSIAN_BITS) for i in range(32768)])
    table = np.concatenate([-upper[::-1], upper]).astype("<i2")
    found = hashlib.sha256(table.tobytes()).hexdigest()
    if found != _TABLE_SHA256:
        raise HeadwaterError(
            "normal quantiles",
            expected=f"sha256 {_TABLE_SHA256[:12]}",
            got=found[:12],
            hint="This machine's logarithm rounds in another way: its Gaussian directions would differ. "
            'Use distribution = "rademacher".',
        )
    table.flags.writeable = False
    return table


@cache
def _wide_quantiles() -> npt.NDArray[np.int32]:
    """The same as int32."""
    return _quantiles().astype(np.int32)
