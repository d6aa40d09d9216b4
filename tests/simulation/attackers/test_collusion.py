"""What colluders send, against the papers' conditions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.simulation.attackers.collusion import alie, largest_deviations, min_max


def test_alie_is_as_many_deviations_below_the_mean_as_its_formula_says() -> None:
    # n = 50, m = 24 of the paper's experiments: s = 2, (50 - 24 - 2)/26 = 0.923, z = 1.43
    assert largest_deviations(50, 24) == pytest.approx(1.4261, abs=1e-4)
    # 20 of 100: s = 31, 49/80
    assert largest_deviations(100, 20) == pytest.approx(0.2858, abs=1e-4)
    assert largest_deviations(3, 3) == 0.0
    rows = np.array([[1.0, 4.0], [3.0, 4.0]])
    assert alie(rows, 9, 0.5).tolist() == [2.0 - 0.5 * 1.0, 4.0]
    assert alie(rows, 100).tolist() == pytest.approx([2 - largest_deviations(100, 2), 4.0])


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**32))
def test_min_max_is_no_further_from_anyone_than_two_are_apart_and_not_a_bit_less(
    colluders: int, size: int, seed: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(colluders, size)) + 1
    got, mean = min_max(rows), rows.mean(axis=0)
    apart = max(float(np.linalg.norm(a - b)) for a in rows for b in rows)
    assert np.linalg.norm(rows - got, axis=1).max() == pytest.approx(apart, rel=1e-9)
    way = got - mean
    assert float(way @ mean) == pytest.approx(-float(np.linalg.norm(way) * np.linalg.norm(mean)), rel=1e-9)


def test_min_max_of_one_or_of_nothing_is_that() -> None:
    assert min_max(np.array([[1.0, 2.0]])).tolist() == [1.0, 2.0]
    assert min_max(np.zeros((3, 2))).tolist() == [0.0, 0.0]
