"""Sparse ternary vectors: which values are kept, and what coding them must cost.

Entry points: :func:`largest`, :func:`select`. Symbols are 0 (zero), 1 (plus), 2 (minus).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headwater.compression.entropy import Symbols

ZERO, PLUS, MINUS = 0, 1, 2


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
    # the bits of a non-negative fp32 order like its value, and integers partition three times faster
    magnitude = np.abs(values).view(np.int32)
    at = values.size - count
    least = max(1, np.partition(magnitude, at)[at]) if at > 0 else 1
    places = np.flatnonzero(magnitude >= least)
    if (extra := places.size - count) > 0:
        ties = np.flatnonzero(magnitude[places] == least)
        places = np.delete(places, ties[-extra:])
    return places


def signs(chosen: npt.NDArray[np.float32]) -> Symbols:
    """The symbols of values that are not 0."""
    return np.where(chosen < 0, np.int32(MINUS), np.int32(PLUS))


def bound_bits(numel: int, count: int) -> float:
    """N·(H2(k)+k) for k = count/N: the i.i.d. entropy of positions and signs, in bits."""
    k = count / numel
    if k in (0.0, 1.0):
        return float(count)
    return numel * (k - k * math.log2(k) - (1 - k) * math.log2(1 - k))
