"""ε by one run's guesses: another library's values, the theorem without δ, and how it rises and falls."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.privacy.audit.intervals import binomial_interval
from headwater.privacy.audit.one_run import (
    MOST_EPSILON,
    epsilon_at,
    epsilon_by_guesses,
    epsilon_of_gaussian,
    p_value,
)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "confidence", "any_mechanism", "gaussian"),
    [
        (1000, 100, 98, 1e-5, 0.95, 2.710963, 4.227873),
        (5000, 500, 470, 1e-4, 0.99, 1.264416, 2.593559),
        (1000, 10, 10, 1e-5, 0.95, 1.014986, 1.227553),
        (200, 200, 200, 1e-6, 0.95, 4.193089, 10.475219),
    ],
)
def test_values_of_jax_privacy(canaries, guesses, right, delta, confidence, any_mechanism, gaussian):
    """Of jax_privacy 2.0.0's ``auditing``, ``_epsilon_one_run`` and ``_epsilon_one_run_fdp``."""
    given_counts = (canaries, guesses, right, delta, confidence)
    assert epsilon_by_guesses(*given_counts) == pytest.approx(any_mechanism, abs=2e-6)
    assert epsilon_of_gaussian(*given_counts) == pytest.approx(gaussian, abs=2e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_without_delta_it_is_the_lower_end_of_the_share_that_was_right(counts):
    right, guesses = counts
    found = epsilon_by_guesses(500, guesses, right, 0.0, 0.95)
    low = binomial_interval(right, guesses, 0.9).low  # 5 % on this side
    assert found == pytest.approx(max(0.0, math.log(low / (1 - low))) if low > 0 else 0.0, abs=1e-6)


def test_more_right_say_more_and_delta_takes_some_back():
    by_right = [epsilon_by_guesses(1000, 100, right, 1e-5, 0.95) for right in (55, 70, 85, 100)]
    assert by_right == sorted(by_right)
    assert by_right[0] == 0 < by_right[1]
    by_delta = [epsilon_by_guesses(1000, 100, 98, delta, 0.95) for delta in (1e-3, 1e-5, 0.0)]
    assert by_delta == sorted(by_delta)
    assert p_value(1000, 100, 98, 1.0, 0.0) < p_value(1000, 100, 98, 1.0, 1e-3) <= 1


def test_a_gaussians_epsilon_is_its_closed_form():
    """Balle and Wang 2018, as in test_accounting: one Gaussian of z = 1/μ."""

    def delta(epsilon, mu):
        def phi(x):
            return math.erfc(-x / math.sqrt(2)) / 2

        return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)

    for mu in (0.1, 1.0, 4.0):
        assert delta(epsilon_at(mu, 1e-5), mu) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon_at(0.0, 1e-5) == 0
    assert epsilon_at(200.0, 1e-5) == MOST_EPSILON


@pytest.mark.parametrize(("guesses", "right"), [(0, 0), (11, 3), (5, 6)])
def test_what_is_no_count_is_refused(guesses, right):
    for bound in (epsilon_by_guesses, epsilon_of_gaussian):
        with pytest.raises(ConfigError, match="right guesses"):
            bound(10, guesses, right, 1e-5, 0.95)
