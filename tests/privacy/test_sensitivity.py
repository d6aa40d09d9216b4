"""Sensitivity: what a bound means for neighbouring federations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headwater.errors import ConfigError
from headwater.privacy.sensitivity import Bounded


@pytest.mark.parametrize("seed", range(5))
def test_no_two_neighbours_lie_further_apart(seed):
    """Sums of clipped updates, with the worst pair at hand: opposite updates on the bound."""
    rng = np.random.default_rng(seed)
    bound = Bounded(0.5)
    updates = rng.normal(size=(6, 20))
    updates *= bound.l2 / np.linalg.norm(updates, axis=1, keepdims=True)
    whole, without = updates.sum(0), updates[1:].sum(0)
    replaced = without - updates[0]
    tight = 1 - 1e-9
    assert np.linalg.norm(whole - without) == pytest.approx(bound.l2)
    assert np.linalg.norm(whole - replaced) >= 2 * bound.l2 * tight
    assert np.linalg.norm(whole - without - rng.normal(size=20) * 1e-12) < 2 * bound.l2


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ConfigError, match="above 0"):
        Bounded(bound)
