"""A byte budget is kept by real bytes, and used up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.compression.seed_update import scalars_max_bytes
from headwater.compression.table import codec_for
from headwater.config.codec import Codec
from headwater.config.codec import CompeftCodec as CompeftCodecSettings
from headwater.config.codec import DenseCodec as DenseCodecSettings
from headwater.errors import ConfigError
from headwater.seeds.coefficients import SeedPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.budget import ENVELOPE_BYTES, codec_within

KEY = Key.root(1)
SPEC = StateSpec.of(
    [TensorSpec("a", (8, 384), "lora_a"), TensorSpec("b", (384, 8), "lora_b"), TensorSpec("c", (5,), "head")]
)
COMPEFT = CompeftCodecSettings(kind="compeft", density=0.5)


FIRST = COMPEFT.written_by(())


def size(density: float, values: torch.Tensor, spec: StateSpec = SPEC) -> int:
    return size_of(FIRST.model_copy(update={"density": density}), values, spec)


def size_of(codec: Codec, values: torch.Tensor, spec: StateSpec = SPEC) -> int:
    return len(codec_for(codec).encode(AdapterState.from_vector(spec, values), key=KEY).body)


def normal(seed: int, spec: StateSpec = SPEC) -> torch.Tensor:
    return torch.randn(spec.numel, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40)
@given(st.integers(600, 3000), st.integers(0, 10**6))
def test_no_update_is_longer_and_little_room_is_left(most: int, seed: int) -> None:
    codec = codec_within(FIRST, SPEC, most, "m", seeds=None)
    assert isinstance(codec, CompeftCodecSettings)
    found = size(codec.density, normal(seed)) + ENVELOPE_BYTES
    assert found <= most
    assert codec.density == 0.5 or found >= most - 24


@settings(max_examples=40)
@given(st.integers(600, 3000), st.integers(0, 10**6), st.integers(0, 40))
def test_no_update_in_gaps_is_longer_whatever_it_keeps(most: int, seed: int, zeros: int) -> None:
    codec = codec_within(COMPEFT, SPEC, most, "m", seeds=None)
    assert isinstance(codec, CompeftCodecSettings)
    found = size_of(codec, normal(seed)) + ENVELOPE_BYTES
    assert codec.density == 0.5 or 0.95 * most - 24 <= found <= most
    alike = torch.zeros(SPEC.numel)  # every gap one that the model thinks rare, and counts that differ
    alike[:: max(1, int(1 / codec.density))] = 1.0
    alike[:zeros] = 0.0
    assert size_of(codec, alike) + ENVELOPE_BYTES <= most


@settings(max_examples=40)
@given(st.integers(600, 3000), st.integers(0, 10**6), st.lists(st.integers(-9, 9), min_size=3, max_size=3))
def test_no_update_is_longer_whichever_tensors_keep_the_values(
    most: int, seed: int, sizes: list[int]
) -> None:
    codec = codec_within(COMPEFT.model_copy(update={"density_over": "all"}), SPEC, most, "m", seeds=None)
    parts = normal(seed).split([t.numel for t in SPEC])
    values = torch.cat([2.0**size * part for size, part in zip(sizes, parts, strict=True)])
    found = size_of(codec, values) + ENVELOPE_BYTES
    assert found <= most
    assert len(set(sizes)) > 1 or codec.density == 0.5 or found >= 0.95 * most - 24
    alike = torch.zeros(SPEC.numel)  # in one tensor, and every gap one that the model thinks rare
    count = max(1, int(codec.density * SPEC.numel))
    alike[: 3072 : max(1, 3072 // count)] = 1.0
    assert size_of(codec, alike) + ENVELOPE_BYTES <= most


def test_signs_in_equal_parts_are_the_worst_case() -> None:
    values = normal(5)
    codec = codec_within(FIRST, SPEC, 900, "m", seeds=None)
    assert isinstance(codec, CompeftCodecSettings)
    assert size(codec.density, values.abs()) < size(codec.density, values) <= 900 - ENVELOPE_BYTES


def test_a_codec_that_fits_stays() -> None:
    assert codec_within(COMPEFT, SPEC, 10_000, "m", seeds=None) is COMPEFT


@pytest.mark.parametrize(
    ("codec", "seeds"),
    [
        (COMPEFT, None),
        (DenseCodecSettings(kind="dense"), None),
        (COMPEFT, SeedPlan(0, 4096, "rademacher", 20, 200)),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_and_the_least_is_named(
    codec: Codec, seeds: SeedPlan | None
) -> None:
    with pytest.raises(ConfigError, match=r"methods\.m\.max_bytes_up.*at least (\d+) bytes") as caught:
        codec_within(codec, SPEC, 520, "methods.m", seeds=seeds)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    codec_within(codec, SPEC, least, "methods.m", seeds=seeds)
    with pytest.raises(ConfigError):
        codec_within(codec, SPEC, least - 1, "methods.m", seeds=seeds)


def test_scalars_need_what_they_need_at_most() -> None:
    seeds = SeedPlan(0, 64, "rademacher", 20, 10)
    assert codec_within(COMPEFT, SPEC, scalars_max_bytes(seeds) + ENVELOPE_BYTES, "m", seeds=seeds) is COMPEFT
