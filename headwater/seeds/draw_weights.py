"""How often each seed is drawn, by how steep losses were along it (FedKSeed-Pro): four bits a seed.

FedKSeed-Pro (arXiv 2312.06353, section 3.3) draws a seed with probability softmax(m), m the mean |slope|
found along it, min-max-normalised over the seeds: the steepest comes e times as often as the flattest. Here
m travels as one of 16 levels, and a level's weight is an integer, so that every machine draws the same seeds.

A seed that was never used counts as the mean of those that were. (The authors' code starts each history with
a 0 that stays in the mean for ever, so that unused and rarely used seeds look flat and are avoided.)
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

LEVELS = 16
_WEIGHTS: Integers = np.array([round(2**16 * math.exp(i / (LEVELS - 1))) for i in range(LEVELS)], np.int64)


def odds_bytes(count: int) -> int:
    """The length of the odds of ``count`` seeds."""
    return (count + 1) // 2


def odds_of(mean_slopes: Floats) -> bytes:
    """Each seed's level, two in a byte, the first in the lower half; empty if no seed was ever used.

    Args:
        mean_slopes: float64 [K], ≥ 0; NaN where a seed was never used.
    """
    used = ~np.isnan(mean_slopes)
    if not used.any():
        return b""
    low, high = mean_slopes[used].min(), mean_slopes[used].max()
    # rounding can put the mean of equal values beside them: no spread may come of that
    filled = np.where(used, mean_slopes, np.clip(mean_slopes[used].mean(), low, high))
    spread = high - low
    levels = np.rint((filled - low) / (spread if spread > 0 else 1.0) * (LEVELS - 1)).astype(np.uint8)
    pairs = np.zeros(2 * odds_bytes(len(levels)), np.uint8)
    pairs[: len(levels)] = levels
    return (pairs[::2] | pairs[1::2] << 4).tobytes()


def weights_of(odds: bytes, count: int) -> Integers:
    """int64 [count]: how often each seed is drawn, relative to the others; all alike without odds."""
    if not odds:
        return np.ones(count, np.int64)
    pairs = np.frombuffer(odds, np.uint8)
    levels = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:count]
    return _WEIGHTS[levels]
