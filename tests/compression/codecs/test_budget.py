"""Densities by what values are worth: within the budget, and no worse than one density for all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.compression.codecs.budget import BudgetCodec
from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.table import codec_for
from headwater.config.codec import CompeftCodec as Settings
from headwater.errors import ConfigError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.budget import codec_of_client, codec_within
from tests.laws.codec_laws import KEY, CodecLaws

SPEC = StateSpec.of([TensorSpec(f"t{i}", (32, 16 * (1 + i % 3)), "vector") for i in range(8)])


def spread(seed: int, octaves: float) -> AdapterState:
    """Gaussian tensors whose scales lie so many octaves apart, as A, B and a head do."""
    generator = torch.Generator().manual_seed(seed)
    scales = 2.0 ** (octaves * torch.rand(len(SPEC), generator=generator))
    return AdapterState(
        SPEC,
        {t.name: s * torch.randn(t.shape, generator=generator) for t, s in zip(SPEC, scales, strict=True)},
    )


def error(codec, state: AdapterState) -> tuple[int, float]:
    payload, decoded = codec.round_trip(state, key=KEY)
    assert decoded == codec.decode(payload, state.spec)
    return len(payload.body), float((decoded - state).norm() ** 2)


class TestLaws(CodecLaws):
    codec = BudgetCodec(CompeftGapsCodec(1.0), 3000)
    canonical = False  # the budget may be too small for what is decoded


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([0.0, 2.0, 6.0]), st.sampled_from([0.01, 0.05, 0.2]))
def test_at_equal_bytes_the_error_is_at_most_that_of_one_density(seed, octaves, density):
    state = spread(seed, octaves)
    size, uniform = error(CompeftGapsCodec(density), state)
    used, mine = error(BudgetCodec(CompeftGapsCodec(1.0), size), state)
    assert used <= size
    assert (
        mine <= uniform * 1.01
    )  # where all tensors are alike there is nothing to win, and some bytes are left


def test_tensors_that_moved_ten_times_as_far_get_more_of_the_bytes():
    state = spread(1, 6.0)
    size, uniform = error(CompeftGapsCodec(0.05), state)
    assert error(BudgetCodec(CompeftGapsCodec(1.0), size), state)[1] < 0.7 * uniform


@given(st.integers(64, 4000))
@settings(max_examples=12, deadline=None)
def test_no_body_is_longer_than_the_budget(budget):
    codec = codec_for(Settings(kind="compeft", budget_bytes=budget))
    payload = codec.encode(spread(budget, 3.0), key=KEY)
    assert len(payload.body) <= codec.max_bytes(SPEC) <= budget
    assert payload == codec.encode(spread(budget, 3.0), key=Key.root(1))


def test_where_nothing_fits_nothing_is_sent():
    state = spread(1, 3.0)
    payload, decoded = BudgetCodec(CompeftGapsCodec(1.0), 1).round_trip(state, key=KEY)
    assert (len(payload.body), decoded) == (1, AdapterState.zeros(SPEC))


def test_a_methods_budget_is_kept_by_densities_of_its_own():
    whole = Settings(kind="compeft", budget_bytes=5000)
    assert codec_within(whole, SPEC, 5600, "m", seeds=None) is whole
    assert codec_within(whole, SPEC, 2000, "m", seeds=None).budget_bytes == 2000 - 512
    with pytest.raises(ConfigError, match=r"m\.max_bytes_up"):
        codec_within(whole, SPEC, 570, "m", seeds=None)
    with pytest.raises(ValueError, match="no alpha"):
        Settings(kind="compeft", budget_bytes=5000, alpha=2.0)
    assert codec_of_client(whole, SPEC, ["compeft.v2"], "w") is whole
    older = codec_of_client(whole.model_copy(update={"budget_bytes": 900}), SPEC, ["compeft.v1"], "w")
    assert (older.format, older.budget_bytes) == (1, None)
    assert len(codec_for(older).encode(spread(1, 3.0), key=KEY).body) <= 900
    assert "budget_bytes" not in Settings(kind="compeft").model_dump()
