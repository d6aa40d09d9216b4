"""SeededState: incremental is at once, bit for bit, over a thousand rounds; no drift, no overflow."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.seeds.directions import MAX_COEFFICIENTS, Directions
from headwater.seeds.seeded_state import SeededState, shifted
from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec((TensorSpec("v", (37,), "vector"),))
ORIGIN = AdapterState.from_vector(
    SPEC, torch.from_numpy(np.random.default_rng(0).standard_normal(37)).float()
)


def seeded_state(distribution="rademacher", sums=(), bits=20):
    return SeededState(ORIGIN, Directions(bytes(16), distribution, 37), bits, np.array(sums, np.int64))


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(-(2**23), 2**23), max_size=9)), max_size=6)
)
def test_moving_is_rebuilding(distribution, moves):
    moved = seeded_state(distribution, [1, 2, 3])
    for first, change in moves:
        before = moved.sums.copy(), moved.total.copy()
        after = moved.plus(first, np.array(change, np.int64))
        assert np.array_equal(before[0], moved.sums)
        assert np.array_equal(before[1], moved.total)
        moved = after
    rebuilt = seeded_state(distribution, moved.sums)
    assert len(moved.sums) == max([3, *(f + len(c) for f, c in moves)])
    assert np.array_equal(moved.total, rebuilt.total)
    assert moved.state() == rebuilt.state()


def test_a_thousand_rounds_do_not_drift():
    """Against exact fractions; a client that steps in float32 is 1e-5 away by then."""
    rng = np.random.default_rng(1)
    moved, steps = seeded_state("gaussian", np.zeros(16)), np.zeros(16, dtype=object)
    drifting = ORIGIN.vector().numpy().copy()
    for _ in range(1000):
        change = rng.integers(-(2**15), 2**15, 16)
        moved, steps = moved.plus(0, change), steps + change.astype(object)
        for seed, c in enumerate(change):
            drifting += np.float32(c * 2.0**-20) * moved.directions.values(seed)
    exact = np.sum([moved.directions.integers(s).astype(object) * steps[s] for s in range(16)], axis=0)
    values = [
        Fraction(float(w)) + Fraction(int(e), 2**32) for w, e in zip(ORIGIN.vector(), exact, strict=True)
    ]
    got = moved.state().vector().tolist()
    assert got == [float(np.float32(float(value))) for value in values]
    assert np.abs(drifting - np.array(got)).max() > 1e-7


def test_nothing_moved_is_the_origin():
    assert seeded_state(sums=[0, 0]).state() is ORIGIN
    assert shifted(ORIGIN, np.zeros(37, np.int64), 3) is ORIGIN
    back = seeded_state(sums=[5, -7]).plus(0, np.array([-5, 7]))
    assert back.state().tobytes() == ORIGIN.tobytes()


def test_sums_that_could_overflow_are_refused_when_moved_as_when_rebuilt():
    near = seeded_state(sums=[MAX_COEFFICIENTS - 10])
    assert near.plus(1, np.array([9])).sums[1] == 9
    with pytest.raises(ConfigError, match="seed coefficients"):
        near.plus(1, np.array([10]))
    with pytest.raises(ConfigError, match="seed coefficients"):
        seeded_state(sums=[MAX_COEFFICIENTS - 10, 10])
