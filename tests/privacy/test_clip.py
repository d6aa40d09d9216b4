from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from headwater.errors import ConfigError, TrainingError
from headwater.privacy.clip import clip_l2
from headwater.state import AdapterState, StateSpec, TensorSpec


def state_of(values: list[float]) -> AdapterState:
    """Two tensors, so that a norm per tensor would show."""
    spec = StateSpec.of(
        [TensorSpec("a", (1,), "vector"), TensorSpec("b", (len(values) - 1,), "vector")],
    )
    return AdapterState.from_vector(spec, torch.tensor(values, dtype=torch.float32))


def square(state: AdapterState) -> Fraction:
    return sum((Fraction(v) ** 2 for v in state.vector().tolist()), Fraction(0))


FLOATS = st.one_of(st.floats(-1e3, 1e3, width=32), st.floats(width=32, allow_nan=False, allow_infinity=False))


@given(st.lists(FLOATS, min_size=2, max_size=20), st.floats(1e-12, 1e6))
@example([1.0, 2.0**-30], 1.0)  # its norm is 1.0 in float64, and above 1 in truth
def test_the_norm_never_exceeds_the_bound_in_exact_arithmetic(values: list[float], bound: float) -> None:
    state = state_of(values)
    clipped, norm = clip_l2(state, bound)
    assert square(clipped) <= Fraction(bound) ** 2
    assert norm == pytest.approx(math.sqrt(square(state)) if square(state) < 1e300 else norm, rel=1e-12)
    if square(state) <= (Fraction(bound) * (1 - Fraction(1, 2**39))) ** 2:
        assert clipped is state
    again, _ = clip_l2(clipped, bound)
    assert again is clipped


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=20), st.floats(1e-3, 10))
def test_the_direction_and_nearly_all_of_the_norm_stay(values: list[float], bound: float) -> None:
    state = state_of(values)
    clipped, norm = clip_l2(state, bound)
    factor = min(1.0, bound / norm) if norm else 1.0
    expected = state.vector().double().numpy() * factor
    np.testing.assert_allclose(clipped.vector().double().numpy(), expected, rtol=2.0**-22, atol=1e-44)


def test_a_million_values() -> None:
    spec = StateSpec.of([TensorSpec("v", (1_000_000,), "vector")])
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    clipped, norm = clip_l2(AdapterState.from_vector(spec, values), 1.0)
    assert norm == pytest.approx(1000, rel=0.01)
    total = math.fsum(v * v for v in clipped.vector().double().tolist())
    assert 1 - 1e-6 < total <= 1.0


def test_zero_stays_zero() -> None:
    state = state_of([0.0, -0.0, 0.0])
    clipped, norm = clip_l2(state, 1e-9)
    assert clipped is state
    assert norm == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_update_is_a_training_error(value: float) -> None:
    with pytest.raises(TrainingError, match="finite"):
        clip_l2(state_of([1.0, value]), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_the_bound_must_be_a_number_above_zero(bound: float) -> None:
    with pytest.raises(ConfigError, match="clip_l2"):
        clip_l2(state_of([1.0, 2.0]), bound)
