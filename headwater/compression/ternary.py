"""Sparse ternary vectors: which values are kept, and what coding them must cost.

Entry points: :func:`largest`, :func:`select`. Symbols are 0 (zero), 1 (plus), 2 (minus).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headwater.compression.entropy import Symbols

ZERO, PLUS, MINUS = 0, 1, 2

_BLOCK = 1 << 16
"""Values that are looked through at a time: they stay in the core's cache."""
_SAMPLE = 1 << 15
_MAGNITUDE = 0x7FFFFFFF
"""All bits of an fp32 but its sign."""


def kept(numel: int, density: float) -> int:
    """How many of ``numel`` values density k keeps: max(1, ⌊k·N⌋), the product in fp64; N if k = 1."""
    return max(1, math.floor(density * numel))


def select(values: npt.NDArray[np.float32], count: int) -> Symbols:
    """The signs of the ``count`` largest magnitudes of ``values`` [N], as symbols [N] (:func:`largest`)."""
    places = largest(values, count)
    symbols = np.zeros(values.size, np.int32)
    symbols[places] = signs(values[places])
    return symbols


def largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Where the ``count`` ≥ 1 largest magnitudes of ``values`` [N] are, ascending.

    Order: |value| descending, then index ascending, so that ties have one answer. Zeros (of either
    sign) are never selected: fewer than ``count`` are kept if fewer values are non-zero. O(N).
    """
    return largest_values(values, count)[0]


def largest_values(
    values: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Where the largest magnitudes are (:func:`largest`), and the values there."""
    near = _near(values, count)
    if near is None:  # the bits of a non-negative fp32 order like its value, and integers partition faster
        bits = np.abs(values).view(np.int32)
        at = values.size - count
        places = np.flatnonzero(bits >= (max(1, np.partition(bits, at)[at]) if at > 0 else 1))
        near = places, values[places]
    places, chosen = near
    if (extra := places.size - count) > 0:
        magnitudes = chosen.view(np.int32) & _MAGNITUDE
        least = np.partition(magnitudes, extra)[extra]
        stays = magnitudes >= least
        if (ties := int(np.count_nonzero(stays)) - count) > 0:
            stays[np.flatnonzero(magnitudes == least)[-ties:]] = False
        places, chosen = places[stays], chosen[stays]
    return places, chosen


def _near(
    values: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]] | None:
    """The ``count`` largest magnitudes and a few more: where they are, and the values there.

    A sample says how large they are; one pass over the values then finds them. None for few values, of which
    a sample would save nothing, and where the sample was not like the rest.
    """
    if count >= values.size or values.size < 4 * _SAMPLE:
        return None
    sample = np.abs(values[:: values.size // _SAMPLE | 1]).view(np.int32)  # lengths of rows are even
    part = count / values.size
    rank = math.ceil(sample.size * part + 2 + 5 * math.sqrt(sample.size * part * (1 - part)))
    least = 0 if rank >= sample.size else np.partition(sample, sample.size - rank)[sample.size - rank]
    if least < 1:
        return None
    found, chosen = [], []
    room, large = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.bool_)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        magnitudes = np.bitwise_and(block.view(np.int32), _MAGNITUDE, out=room[: block.size])
        here = np.flatnonzero(np.greater_equal(magnitudes, least, out=large[: block.size]))
        chosen.append(block[here])
        here += start
        found.append(here)
    places = np.concatenate(found)
    return (places, np.concatenate(chosen)) if places.size >= count else None


def signs(chosen: npt.NDArray[np.float32]) -> Symbols:
    """The symbols of values that are not 0."""
    return np.where(chosen < 0, np.int32(MINUS), np.int32(PLUS))


def bound_bits(numel: int, count: int) -> float:
    """N·(H2(k)+k) for k = count/N: the i.i.d. entropy of positions and signs, in bits."""
    k = count / numel
    if k in (0.0, 1.0):
        return float(count)
    return numel * (k - k * math.log2(k) - (1 - k) * math.log2(1 - k))
