"""Noise: the discrete Gaussian, exactly, in the integers that sums are made of; and where its bits come from.

A Gaussian of floating-point numbers leaks through their last digits (Mironov 2012). The sums of a round are
int64 (:mod:`headwater.merging.fixed_point`), and so is this noise: P(x) ∝ exp(−x²/2σ²) over the integers
(Canonne, Kamath, Steinke 2020, arXiv 2004.00010), which costs what the Gaussian of the same σ does: for a
shift by an integer Δ, E[(P/Q)^k] under Q is exp(k(k−1)Δ²/2σ²) for every whole k, exactly as of the continuous
one, since a sum over all integers does not change when it is shifted by kΔ. So do Rényi bounds, sampling
included, hold as they are.

:func:`discrete_gaussian` is Algorithm D of Karney 2016 (arXiv 1303.6257) for a whole σ, a vector at a time.
Uniform numbers have 64 bits; where these do not decide a comparison for certain, :data:`_MORE` more do, in
rational arithmetic.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from decimal import Context, Decimal
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError
from headwater.seeds.keys import Key

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
MOST_SIGMA = 2**50
"""Above it σ and its multiples are no longer exact in float64."""
_DIGITS = Context(prec=120)
_MORE = 256
"""Bits by which a close comparison is decided: it is wrong with a probability below 2^-250."""
_UNSURE = 2.0**-40
"""What float64 computes of exp(−x(2k+x)/2) is closer than this to the truth: with k ≤ 27 the exponent is
below 28 and its few roundings err by less than 2^-45 together, NumPy's exp by a few units of 2^-53."""


class Randomness(ABC):
    """A source of uniform bits. Each kind is a type of its own, so that one cannot be taken for another.

    Attributes:
        reproducible: whether whoever knows the federation file can draw the same: then it hides nothing.
    """

    reproducible: ClassVar[bool]

    @abstractmethod
    def words(self, count: int) -> Words:
        """Independent, uniform 64-bit words, so many."""


class SystemRandomness(Randomness):
    """The operating system's generator: what differential privacy needs."""

    reproducible = False

    def words(self, count: int) -> Words:
        """From ``os.urandom``."""
        return np.frombuffer(os.urandom(8 * count), np.uint64)


class ReproducibleRandomness(Randomness):
    """A key's stream, for experiments that are to be repeated bit by bit: it gives no privacy.

    Args:
        key: of the release.
    """

    reproducible = True

    def __init__(self, key: Key) -> None:
        self._generator = key.numpy()

    def words(self, count: int) -> Words:
        """From Philox."""
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


def discrete_gaussian(sigma: int, size: int, randomness: Randomness) -> Integers:
    """Independent draws of P(x) ∝ exp(−x²/2σ²) over the integers.

    Args:
        sigma: σ, a whole number in [1, 2^50].
        size: how many.
        randomness: where bits come from.

    Returns:
        int64 [size].

    Raises:
        ConfigError: σ outside its range.
    """
    if not 1 <= sigma <= MOST_SIGMA:
        raise ConfigError("discrete Gaussian", expected="σ in [1, 2^50] units", got=str(sigma))
    out, filled = np.empty(size, np.int64), 0
    while filled < size:
        some = _tries(sigma, int(1.45 * (size - filled)) + 16, randomness)[: size - filled]
        out[filled : filled + some.size] = some
        filled += some.size
    return out


def _tries(sigma: int, count: int, randomness: Randomness) -> Integers:
    """What ``count`` tries of Algorithm D accept: x = ±(kσ + j), about 0.7 of them."""
    k = _half_gaussian(count, randomness)
    j = _below(sigma, count, randomness)
    words = randomness.words(count)
    x = j.astype(np.float64) / sigma
    odds = np.exp(-x * (2.0 * k + x) / 2)
    accepted = words.astype(np.float64) * 2.0**-64 < odds
    for at in np.flatnonzero(np.abs(words.astype(np.float64) * 2.0**-64 - odds) <= _UNSURE):
        accepted[at] = _decide(int(words[at]), int(k[at]), int(j[at]), sigma, randomness)
    negative = (randomness.words(count) & np.uint64(1)).astype(bool)
    accepted &= ~(negative & (k == 0) & (j == 0))  # else 0 would come twice as often
    values = k * sigma + j
    return np.where(negative, -values, values)[accepted]


def _decide(word: int, k: int, j: int, sigma: int, randomness: Randomness) -> bool:
    """Whether a uniform number that begins with ``word`` is below exp(−j(2kσ+j)/2σ²)."""
    fraction = _longer(word, randomness)
    exponent = _DIGITS.divide(Decimal(-j * (2 * k * sigma + j)), Decimal(2 * sigma * sigma))
    return fraction < _DIGITS.exp(exponent)


def _longer(word: int, randomness: Randomness) -> Decimal:
    """A uniform number in [0, 1) of 64 + :data:`_MORE` bits, of which the first 64 are known."""
    value = word
    for more in randomness.words(_MORE // 64):
        value = value << 64 | int(more)
    return _DIGITS.divide(Decimal(value), Decimal(1 << (64 + _MORE)))


@cache
def _table() -> tuple[tuple[Decimal, ...], Words]:
    """P(k ≤ i) where P(k) ∝ exp(−k²/2), k = 0, 1, …, and the first 64 bits of each.

    Ends where less than 2^-500 is left.
    """
    parts = [_DIGITS.exp(Decimal(-k * k) / 2) for k in range(28)]
    total, sums, so_far = sum(parts, Decimal(0)), [], Decimal(0)
    for part in parts[:-1]:
        so_far += part
        sums.append(_DIGITS.divide(so_far, total))
    words = [min(int(_DIGITS.multiply(value, Decimal(2**64))), 2**64 - 1) for value in sums]
    return tuple(sums), np.array(words, np.uint64)


def _half_gaussian(count: int, randomness: Randomness) -> Integers:
    """The k of P(k) ∝ exp(−k²/2): how many of the sums a uniform number is not below."""
    sums, firsts = _table()
    words = randomness.words(count)
    k = np.searchsorted(firsts, words, side="right").astype(np.int64)
    for at in np.flatnonzero(np.isin(words, firsts)):  # the first 64 bits are those of a sum
        fraction = _longer(int(words[at]), randomness)
        k[at] = sum(fraction >= value for value in sums)
    return k


def _below(bound: int, count: int, randomness: Randomness) -> Integers:
    """Uniform in 0 … bound − 1, by rejection."""
    mask = np.uint64((1 << (bound - 1).bit_length()) - 1)
    out = randomness.words(count) & mask
    while (wrong := np.flatnonzero(out >= np.uint64(bound))).size:
        out[wrong] = randomness.words(wrong.size) & mask
    return out.astype(np.int64)
