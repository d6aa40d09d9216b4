"""Owners are drawn as they are priced: by themselves with chance q, or so many of all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headwater.config import load_federation
from headwater.errors import FederationStopped
from headwater.privacy.noise import SystemRandomness
from headwater.strategies.private_round import private_cohort, sampling_of
from tests.support.runs import bare_federation

OWNERS, DRAWS, Q = 50, 2000, 0.1
NAMES = [f"c{i:02d}" for i in range(OWNERS)]


def settings(tmp_path, **cohort):
    return load_federation(
        bare_federation(
            tmp_path,
            strategy={"kind": "mean", "weighting": "equal"},
            codec={"up": {"kind": "dense"}},
            cohort={"clients_per_round": 5, "population": OWNERS, **cohort},
            privacy={"clip_l2": 0.5, "noise_multiplier": 1.0, "delta": 1e-5},
        )
    ).settings


def drawn(federation):
    """[draws, owners], 1 where an owner is in."""
    found, places = np.zeros((DRAWS, OWNERS), np.int64), {name: i for i, name in enumerate(NAMES)}
    for row in found:
        row[[places[name] for name in private_cohort(federation, NAMES, SystemRandomness())]] = 1
    return found


def test_each_owner_is_drawn_by_itself_with_the_priced_chance(tmp_path):
    """Seven standard deviations: one run in 10^10 fails by chance."""
    federation = settings(tmp_path, sampling="poisson")
    assert sampling_of(federation).rate == Q
    found, variance = drawn(federation), Q * (1 - Q)
    assert abs(found.sum() - OWNERS * DRAWS * Q) < 7 * math.sqrt(OWNERS * DRAWS * variance)
    assert np.abs(found.sum(0) - DRAWS * Q).max() < 7 * math.sqrt(DRAWS * variance)
    sizes = found.sum(1)  # binomial, as of independent draws
    assert sizes.var() / (OWNERS * variance) == pytest.approx(1, abs=7 * math.sqrt(2 / DRAWS))


def test_a_fixed_cohort_takes_all_alike_and_never_of_fewer(tmp_path):
    federation = settings(tmp_path, min_clients=OWNERS)
    found = drawn(federation)
    assert set(found.sum(1)) == {5}
    assert np.abs(found.sum(0) - DRAWS * Q).max() < 7 * math.sqrt(DRAWS * Q * (1 - Q))
    with pytest.raises(FederationStopped, match="50 owners"):
        private_cohort(federation, NAMES[1:], SystemRandomness())
