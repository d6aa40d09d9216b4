"""Budgets by links: no faster link is given less, none more than the codec's own density takes."""

from __future__ import annotations

from statistics import median_low

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.compression.table import codec_for
from headwater.config.codec import CompeftCodec, StcCodec
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.budget import ENVELOPE_BYTES, codec_for_link, codec_within
from headwater.strategies.links import KEPT, link_bytes, noted

SPEC = StateSpec.of(
    [TensorSpec("a", (8, 384), "lora_a"), TensorSpec("b", (384, 8), "lora_b"), TensorSpec("c", (5,), "head")]
)
SPEED = st.integers(0, 10**7)
SECONDS = st.floats(1e-3, 1e6)


def test_the_last_speeds_of_each_client_are_kept():
    links = noted({"ann": (1, 2, 3, 4), "ben": (7,)}, {"ann": [5, 6], "cleo": [8], "dan": []})
    assert links == {"ann": (2, 3, 4, 5, 6), "ben": (7,), "cleo": (8,)}
    assert len(links["ann"]) == KEPT


@given(st.lists(SPEED, min_size=3, max_size=KEPT), st.integers(0, KEPT - 1), SPEED, SECONDS)
def test_one_stall_leaves_the_budget_between_those_of_other_speeds(speeds, place, stall, seconds):
    others = [speed for i, speed in enumerate(speeds) if i != place % len(speeds)]
    hit = [stall if i == place % len(speeds) else speed for i, speed in enumerate(speeds)]
    least, most = (link_bytes([speed], seconds) for speed in (min(others), max(others)))
    assert least <= link_bytes(hit, seconds) <= most


@given(st.lists(SPEED, min_size=1, max_size=KEPT), SPEED, SECONDS, st.floats(1.0, 10.0))
def test_faster_links_and_more_time_never_carry_less(speeds, more, seconds, factor):
    here = link_bytes(speeds, seconds)
    assert here <= link_bytes([speed + more for speed in speeds], seconds)
    assert here <= link_bytes(speeds, seconds * factor)
    exact = median_low(speeds) * seconds
    assert 0.875 * int(exact) <= here <= exact
    assert link_bytes([], seconds) is None


def test_endless_time_is_a_number_of_bytes():
    assert link_bytes([10**12], 1e300) == 2**62


@pytest.mark.parametrize("own", [None, 700])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6000), st.integers(0, 3000), st.floats(1e-4, 1.0))
def test_budgets_grow_with_the_link_up_to_the_codecs_own(own, room, more, density):
    codec = CompeftCodec(kind="compeft", density=density, budget_bytes=own)
    small, large = (codec_for_link(codec, SPEC, most) for most in (room, room + more))
    if large is not codec:
        assert 64 <= small.budget_bytes <= large.budget_bytes <= (own or 10**9)
    whole = codec_for(codec)
    values = AdapterState.from_vector(
        SPEC, torch.randn(SPEC.numel, generator=torch.Generator().manual_seed(room))
    )
    body = len(codec_for(small).encode(values, key=Key.root(1)).body)
    assert body <= max(room - ENVELOPE_BYTES, LEAST) or small is codec
    if small is codec:
        return
    # what the density may take at worst is a few bytes more than it takes; above 2/3, a third of them zeros
    promised = codec_within(codec, SPEC, small.budget_bytes + ENVELOPE_BYTES, "m", seeds=None)
    assert promised is not codec
    assert body <= len(whole.encode(values, key=Key.root(1)).body) * 1.1 + 40 or density > 2 / 3


LEAST = codec_for_link(CompeftCodec(kind="compeft"), SPEC, 0).budget_bytes
"""What the smallest density takes: one value of each tensor."""


def test_the_least_budget_holds_a_value_of_each_tensor():
    codec = codec_for(codec_for_link(CompeftCodec(kind="compeft"), SPEC, 0))
    values = AdapterState.from_vector(SPEC, torch.arange(1.0, SPEC.numel + 1))
    sent = codec.decode(codec.encode(values, key=Key.root(1)), SPEC)
    assert all(int(tensor.count_nonzero()) for _, tensor in sent.items())


@pytest.mark.parametrize("codec", [StcCodec(kind="stc"), CompeftCodec(kind="compeft", format=1)])
def test_codecs_without_budgets_stay_as_they_are(codec):
    assert codec_for_link(codec, SPEC, 600) is codec


@pytest.mark.parametrize("over", ["tensor", "all"])
def test_what_a_client_is_asked_for_is_a_codec_that_it_can_read(over):
    codec = CompeftCodec(kind="compeft", density=0.5, density_over=over)
    told = codec_for_link(codec, SPEC, 1500)
    assert told.budget_bytes == 1500 - ENVELOPE_BYTES
    assert CompeftCodec.model_validate_json(told.model_dump_json()) == told
