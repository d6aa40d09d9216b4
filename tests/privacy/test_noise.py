"""The discrete Gaussian: its probabilities, the comparisons that 64 bits leave open, where bits come from."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headwater.errors import ConfigError
from headwater.privacy import noise
from headwater.privacy.noise import Randomness, ReproducibleRandomness, SystemRandomness, discrete_gaussian
from headwater.seeds.keys import Key


def seeded(*path):
    return ReproducibleRandomness(Key.root(7).child("test", *path))


def probabilities(sigma, most):
    x = np.arange(-most, most + 1)
    p = np.exp(-(x**2) / (2 * sigma**2))
    return x, p / p.sum()


@pytest.mark.parametrize("sigma", [1, 2, 5])
def test_every_integer_has_its_probability(sigma):
    """Chi-squared against the formula; zero, which has one sign, too."""
    drawn = discrete_gaussian(sigma, 200_000, seeded(sigma))
    x, p = probabilities(sigma, 40)
    inside = p * drawn.size > 10
    counts = np.array([(drawn == value).sum() for value in x[inside]])
    rest = drawn.size - counts.sum()
    expected = np.append(p[inside], 1 - p[inside].sum()) * drawn.size
    assert stats.chisquare(np.append(counts, rest), expected).pvalue > 1e-4


@pytest.mark.parametrize("sigma", [1000, 2**40 + 7, 2**50])
def test_a_large_sigma_gives_a_gaussian(sigma):
    drawn = discrete_gaussian(sigma, 100_000, seeded(sigma)) / sigma
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / drawn.size)


def test_the_lowest_digits_are_uniform():
    """What a Gaussian of floating-point numbers gives away."""
    drawn = discrete_gaussian(2**40 + 7, 64_000, seeded("digits"))
    assert stats.chisquare(np.bincount(drawn & 63, minlength=64)).pvalue > 1e-4


def test_rational_arithmetic_decides_as_floats_do_where_these_can(monkeypatch):
    """All comparisons by the slow way, against those by the fast one, over the same bits."""
    sigma, count = 1009, 300
    bits = seeded("slow").words(9 * count)

    class Replay(Randomness):
        reproducible = True

        def __init__(self):
            self.left, self.more = bits, seeded("more")

        def words(self, count):
            if count == noise._MORE // 64:
                return self.more.words(count)
            out, self.left = self.left[:count], self.left[count:]
            return out if out.size == count else self.more.words(count)

    fast = noise._tries(sigma, count, Replay())
    monkeypatch.setattr(noise, "_UNSURE", 2.0)
    assert np.array_equal(noise._tries(sigma, count, Replay()), fast)


def test_a_number_that_begins_as_a_sum_does_is_decided_by_more_bits():
    """k is right on both sides of a sum whose first 64 bits the number has."""
    sums, firsts = noise._table()

    class Fixed(Randomness):
        reproducible = True

        def __init__(self, more):
            self.more = more

        def words(self, count):
            value = firsts[1] if count == 1 else np.uint64(self.more)
            return np.full(count, value, np.uint64)

    assert noise._half_gaussian(1, Fixed(0))[0] == 1  # below the sum's further bits
    assert noise._half_gaussian(1, Fixed(2**64 - 1))[0] == 2
    assert sum(noise._DIGITS.exp(Decimal(-k * k) / 2) for k in range(28)) > 0
    assert float(sums[0]) == pytest.approx(1 / sum(math.exp(-k * k / 2) for k in range(28)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2**50), st.integers(0, 200))
def test_any_sigma_and_size(sigma, size):
    drawn = discrete_gaussian(sigma, size, SystemRandomness())
    assert drawn.shape == (size,)
    assert drawn.dtype == np.int64
    assert not size or np.abs(drawn).max() <= 28 * sigma


@pytest.mark.parametrize("sigma", [0, -1, 2**50 + 1])
def test_a_sigma_outside_is_refused(sigma):
    with pytest.raises(ConfigError, match="σ"):
        discrete_gaussian(sigma, 1, SystemRandomness())


def test_a_key_gives_the_same_again_and_the_system_does_not():
    assert np.array_equal(discrete_gaussian(9, 50, seeded()), discrete_gaussian(9, 50, seeded()))
    assert not np.array_equal(
        discrete_gaussian(2**30, 50, SystemRandomness()), discrete_gaussian(2**30, 50, SystemRandomness())
    )
    assert seeded().reproducible
    assert not SystemRandomness().reproducible
