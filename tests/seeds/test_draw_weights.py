"""Odds of seeds: FedKSeed-Pro's probabilities in four bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.seeds.draw_weights import LEVELS, odds_bytes, odds_of, weights_of


def drawn(*slopes):
    weights = weights_of(odds_of(np.array(slopes)), len(slopes))
    return weights / weights.sum()


def test_golden_probabilities():
    """The vector of algorithms F5: mean |g| = 2, ½, 2, softmax of 1, 0, 1."""
    assert drawn(2.0, 0.5, 2.0) == pytest.approx([0.4223187982, 0.1553624035, 0.4223187982], abs=1e-5)


def test_golden_bytes():
    assert odds_of(np.array([0.0, 1.0, 0.5, 0.2, 1.0])).hex() == "f0380f"
    assert weights_of(bytes.fromhex("f0380f"), 5).tolist() == [65536, 178145, 111713, 80046, 178145]


def test_a_seed_that_was_never_used_counts_as_the_mean():
    assert drawn(2.0, np.nan, 0.5, 2.0).tolist() == drawn(2.0, 1.5, 0.5, 2.0).tolist()
    assert odds_of(np.full(4, np.nan)) == b""
    assert drawn(7.0, np.nan, 7.0).tolist() == [1 / 3] * 3
    assert weights_of(b"", 3).tolist() == [1, 1, 1]
    # the mean of three times 0.7 is not 0.7 in floats
    assert len(set(drawn(*[0.7] * 3, np.nan).tolist())) == 1


@given(st.lists(st.floats(0, 1e6) | st.just(float("nan")), min_size=1, max_size=40))
def test_within_half_a_level_of_the_papers(slopes):
    means = np.array(slopes)
    if np.isnan(means).all():
        return
    low, high = np.nanmin(means), np.nanmax(means)
    filled = np.where(np.isnan(means), np.clip(np.nanmean(means), low, high), means)
    wanted = np.exp((filled - low) / ((high - low) or 1.0))
    odds = odds_of(means)
    assert len(odds) == odds_bytes(len(means))
    found = weights_of(odds, len(means)) / 2**16
    assert np.all(np.abs(np.log(found / wanted)) <= 0.5 / (LEVELS - 1) + 1e-4)
