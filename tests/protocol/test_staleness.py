"""The weight of an update from an older version."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.protocol.staleness import WEIGHT_SCALE, staleness_weight

WEIGHTS = st.integers(1, 2**24)
AGES = st.integers(0, 1000)
EXPONENTS = st.floats(0, 8)


def test_golden_weights_of_fedbuff():
    """2¹⁰/√(1+s), by hand: s = 3 halves, s = 15 quarters."""
    assert [staleness_weight(1, s, 0.5) for s in (0, 1, 2, 3, 8, 15, 20)] == [
        1024,
        724,
        591,
        512,
        341,
        256,
        223,
    ]
    assert [staleness_weight(1000, s, 1.0) for s in (0, 1, 3)] == [1_024_000, 512_000, 256_000]


def test_an_update_never_weighs_nothing():
    assert staleness_weight(1, 10**6, 8.0) == 1


@given(WEIGHTS, AGES, EXPONENTS)
def test_it_is_the_formula_rounded(weight, age, exponent):
    with localcontext() as context:
        context.prec = 60
        exact = weight * 1024 * Decimal(1 + age) ** -Decimal(exponent)
        wanted = max(1, int(exact.to_integral_value(ROUND_HALF_UP)))
    assert abs(staleness_weight(weight, age, exponent) - wanted) <= 1  # pow's last bit


@given(st.integers(1, 2**80), EXPONENTS)
def test_a_fresh_update_weighs_exactly_its_weight_times_the_scale(weight, exponent):
    assert staleness_weight(weight, 0, exponent) == weight * WEIGHT_SCALE


@given(WEIGHTS, AGES, AGES, EXPONENTS)
def test_older_never_weighs_more(weight, one, other, exponent):
    young, old = sorted((one, other))
    assert staleness_weight(weight, old, exponent) <= staleness_weight(weight, young, exponent)
    assert staleness_weight(weight, old, exponent) >= 1


@given(WEIGHTS, WEIGHTS, AGES, EXPONENTS)
def test_more_examples_never_weigh_less(one, other, age, exponent):
    few, many = sorted((one, other))
    assert staleness_weight(few, age, exponent) <= staleness_weight(many, age, exponent)


@given(WEIGHTS, AGES)
def test_exponent_zero_makes_all_ages_equal(weight, age):
    assert staleness_weight(weight, age, 0) == staleness_weight(weight, 0, 0)


def test_a_weight_of_one_is_rounded_by_at_most_a_fifth_of_a_percent():
    errors = [abs(staleness_weight(1, s, 0.5) / 1024 * (1 + s) ** 0.5 - 1) for s in range(21)]
    assert 0.0019 < max(errors) < 0.0021


@pytest.mark.parametrize(
    ("weight", "age", "exponent"), [(0, 0, 0.5), (1, -1, 0.5), (1, 0, -0.1), (1, 1, float("nan"))]
)
def test_numbers_out_of_range_are_refused(weight, age, exponent):
    with pytest.raises(ConfigError, match="staleness weight"):
        staleness_weight(weight, age, exponent)
