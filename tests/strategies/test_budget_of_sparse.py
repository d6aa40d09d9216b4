"""``max_bytes_up`` lowers the density of every codec that has one, to the largest that surely fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from headwater.compression.table import codec_for
from headwater.config.codec import Codec
from headwater.errors import ConfigError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.budget import ENVELOPE_BYTES, codec_within

KEY = Key.root(1)
SPEC = StateSpec.of(
    [
        TensorSpec("a", (8, 384), "lora_a"),
        TensorSpec("b", (384, 8), "lora_b"),
        TensorSpec("c", (5,), "head"),
        TensorSpec("d", (40, 30), "head"),
    ]
)
BY_MODULE: dict[str, object] = {"kind": "by-module", "otherwise": {"kind": "compeft", "density": 0.5}}
THEN = ["int8", "int4", "sign", "qsgd", "nnadq", "dense", "lossless"]
CHAIN: dict[str, object] = {"kind": "chain", "error_feedback": False}
SPARSE: list[dict[str, object]] = [
    {"kind": "compeft", "density": 0.5},
    {"kind": "compeft", "density": 0.5, "density_over": "tensor", "format": 1, "scale_bits": 24},
    {"kind": "stc", "density": 0.5},
    *({"kind": "topk", "density": 0.5, "bits": bits} for bits in (16, 8, 2)),
    {"kind": "sparseloco", "density": 0.5, "chunk": 64},
    {"kind": "sparseloco", "density": 0.5, "chunk": 4096},
    {"kind": "randk", "density": 0.5},
    *(CHAIN | {"first": {"kind": "topk", "density": 0.5}, "then": {"kind": kind}} for kind in THEN),
    BY_MODULE | {"modules": [{"pattern": "[ab]", "codec": {"kind": "topk", "density": 0.2}}]},
    BY_MODULE | {"modules": [{"pattern": "c", "codec": {"kind": "int8"}}]},
    CHAIN | {"first": {"kind": "randk", "density": 0.5}, "then": {"kind": "qsgd"}},
]


def codec_of(fields: dict[str, object]) -> Codec:
    found: Codec = TypeAdapter(Codec).validate_python(fields)
    return found


CODECS = [codec_of(fields) for fields in SPARSE]


def size(codec: Codec, values: torch.Tensor, key: Key = KEY) -> int:
    return len(codec_for(codec).encode(AdapterState.from_vector(SPEC, values), key=key).body)


def worst(codec: Codec, seed: int) -> list[torch.Tensor]:
    """Values of all sizes, alike, in rows, alternating, mostly zero, and in one tensor alone."""
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(SPEC.numel, generator=draw)
    density = codec.keeps or 1.0
    rows = torch.zeros(SPEC.numel)
    rows[:: max(1, int(1 / density))] = 1.0
    alone = torch.zeros(SPEC.numel)
    alone[:3072] = normal[:3072]
    spread = normal * 2.0 ** torch.randint(-30, 30, (SPEC.numel,), generator=draw)
    return [normal, normal.sign(), rows, rows * normal.sign(), alone, spread]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.kind)
@settings(max_examples=4)
@given(most=st.integers(700, 6000), seed=st.integers(0, 10**6))
def test_no_update_is_longer_whatever_its_values(codec: Codec, most: int, seed: int) -> None:
    try:
        found = codec_within(codec, SPEC, most, "m", seeds=None)
    except ConfigError as refused:  # what a value of each tensor takes is more
        least = int(str(refused).split("at least ")[1].split()[0])
        assert least > most
        found, most = codec_within(codec, SPEC, least, "m", seeds=None), least
    for values in worst(found, seed):
        assert size(found, values, Key.root(seed)) + ENVELOPE_BYTES <= most


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.kind)
def test_a_larger_budget_keeps_more_and_what_fits_stays(codec: Codec) -> None:
    whole = codec_for(codec).most_encoded(SPEC) + ENVELOPE_BYTES
    assert codec_within(codec, SPEC, whole, "m", seeds=None) is codec
    kept = [codec_within(codec, SPEC, whole - less, "m", seeds=None).keeps for less in (1, 200, 500)]
    assert all(one is not None for one in kept)
    assert 0.5 > kept[0] > kept[1] > kept[2] > 0  # type: ignore[operator]  # none is None


@pytest.mark.parametrize("codec", CODECS[:9], ids=lambda codec: codec.kind)
def test_little_room_is_left_where_values_are_as_usual(codec: Codec) -> None:
    found = codec_within(codec, SPEC, 1500, "m", seeds=None)
    values = torch.randn(SPEC.numel, generator=torch.Generator().manual_seed(3))
    assert size(found, values) >= 0.88 * (1500 - ENVELOPE_BYTES)


def test_places_that_all_clients_share_are_nobodys_to_lower() -> None:
    shared = codec_of({"kind": "randk", "density": 0.5, "shared": True})
    with pytest.raises(ConfigError, match="at least"):
        codec_within(shared, SPEC, 2500, "m", seeds=None)


def test_parts_of_a_codec_by_module_are_lowered_in_proportion() -> None:
    by_module = next(codec for codec in CODECS if codec.kind == "by-module")
    assert [part.keeps for part in by_module.keeping(0.25).parts] == [0.1, 0.25]
