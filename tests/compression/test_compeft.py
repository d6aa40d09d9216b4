import dataclasses
import math
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.compression.byte_reader import varint
from headwater.compression.compeft import SMALL, CompeftCodec, groups
from headwater.compression.ternary import bound_bits, kept
from headwater.errors import ConfigError, DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY, LAW, CodecLaws, mutations, signed, states

TAU = [0.9, -0.1, 0.05, -1.2, 0.3, 0.0, 0.7, -0.7, 0.02, -0.4, 1.5, -0.25]
SPEC = StateSpec.of([TensorSpec("t", (12,), "vector")])
F1 = AdapterState(SPEC, {"t": torch.tensor(TAU)})


def state_of(**tensors):
    spec = StateSpec.of([TensorSpec(n, tuple(v.shape), "vector") for n, v in tensors.items()])
    return AdapterState(spec, {name: value.float() for name, value in tensors.items()})


def through(codec, state):
    return codec.decode(codec.encode(state, key=KEY), state.spec)


class TestDefaultLaws(CodecLaws):
    codec = CompeftCodec()


class TestDenseTernaryLaws(CodecLaws):
    codec = CompeftCodec(density=1.0)


class TestPaperScaleLaws(CodecLaws):
    codec = CompeftCodec(density=0.3, alpha=2.0)
    contracts = False  # the scale need not be near what was kept


# --- F1 of the paper's algorithm, computed by hand ----------------------------------------------------


def test_f1_mean_scale():
    decoded = through(CompeftCodec(0.25), F1)["t"]
    assert {i: round(v, 6) for i, v in enumerate(decoded.tolist()) if v} == {0: 1.2, 3: -1.2, 10: 1.2}
    assert float((decoded - F1["t"]).square().sum()) == pytest.approx(1.4854, abs=1e-5)


def test_f1_paper_scale():
    decoded = through(CompeftCodec(0.25, alpha=1.0), F1)["t"]
    assert decoded[[0, 3, 10]].tolist() == pytest.approx(
        [0.7229589871, -0.7229589871, 0.7229589871], rel=1e-7
    )
    assert float((decoded - F1["t"]).square().sum()) == pytest.approx(2.1681043841, rel=1e-6)
    optimal = through(CompeftCodec(0.25, alpha=1.6598451938), F1)["t"]
    assert optimal[0].item() == pytest.approx(1.2, rel=1e-6)


def test_f1_tie_keeps_the_first():
    decoded = through(CompeftCodec(1 / 3), F1)["t"]
    assert decoded.nonzero().flatten().tolist() == [0, 3, 6, 10]
    assert decoded.max().item() == pytest.approx(1.075)


def test_f1_length_is_the_bound_a_header_and_the_coders_state():
    body = CompeftCodec(0.25).encode(F1, key=KEY).body
    header, first_state = 1 + 2 + 4, 3  # an ANS coder's first symbol fills its 24-bit precision
    assert len(body) <= header + first_state + math.ceil(bound_bits(12, 3) / 8)


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (CompeftCodec(0.25), "01 02 01 9a99993f 3255d59f01"),
        (CompeftCodec(1 / 3), "01 03 01 9a99893f 6aacaa2808"),
        (CompeftCodec(0.25, alpha=1.0), "01 02 01 d713393f 3255d59f01"),
    ],
)
def test_frozen_bytes(codec, body):
    # these bytes leave the house: if they change, the codec's id must change
    assert codec.encode(F1, key=KEY) == Payload("compeft.v1", bytes.fromhex(body))


def test_frozen_bytes_of_several_tensors():
    large = torch.zeros(2, 1024)
    large[0, 3], large[1, 1000] = 0.5, -0.5
    state = state_of(a=torch.tensor([1.0, -3.0]), b=large, c=torch.zeros(3), d=torch.tensor([[0.25]]))
    body = CompeftCodec(0.5).encode(state, key=KEY).body
    assert body.hex() == "0101010000003f010100004040000000000000803e0ac07d6acd3521"
    decoded = CompeftCodec().decode(Payload("compeft.v1", body), state.spec)
    assert decoded["a"].tolist() == [0, -3]
    assert torch.equal(decoded["b"], large)
    assert decoded["c"].tolist() == [0, 0, 0]
    assert decoded["d"].tolist() == [[0.25]]


# --- edges of A1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("values", [[0.7], [0.0], [-0.0, 0.0], [0.3, 0.3, 0.3], [1e-8], [-1e-42]])
def test_degenerate_tensors_keep_their_values(values, alpha):
    state = state_of(t=torch.tensor(values))
    assert torch.equal(through(CompeftCodec(1.0, alpha), state)["t"], state["t"])


def test_constant_tensor_below_full_density_uses_the_mean():
    state = state_of(t=torch.full((10,), 0.3))
    assert through(CompeftCodec(0.2, alpha=5.0), state)["t"].tolist() == pytest.approx([0.3] * 2 + [0] * 8)


def test_lora_sized_deltas_do_not_underflow():
    state = state_of(t=1e-8 * torch.tensor([1.0, -2.0, 3.0]))
    assert through(CompeftCodec(0.4), state)["t"].tolist() == pytest.approx([0, 0, 3e-8])


def test_alpha_cannot_reach_zero_or_infinity():
    tiny, huge = torch.tensor([1e-45, -3e-45, 0.0]), torch.tensor([3e38, -3e38, 1.0])
    assert through(CompeftCodec(0.4, alpha=1e-9), state_of(t=tiny))["t"].abs().max() == 2.0**-149
    assert through(CompeftCodec(0.4, alpha=1e9), state_of(t=huge)).isfinite()


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5, float("nan")])
def test_density_is_a_fraction(density):
    with pytest.raises(ConfigError, match="density"):
        CompeftCodec(density)


def test_alpha_is_positive():
    with pytest.raises(ConfigError, match="alpha"):
        CompeftCodec(0.1, alpha=0.0)


@LAW
@given(state=states(signed))
def test_mean_scale_is_the_best_one(state):
    assume_normal = {n: v.clamp(-1e15, 1e15) for n, v in state.items()}
    state = AdapterState(state.spec, assume_normal)
    decoded = through(CompeftCodec(0.3), state)
    for name, sent in decoded.items():
        scale = sent.abs().max().double()
        kept_true = state[name].double()[sent != 0]
        signs = sent.sign().double()[sent != 0]
        assert (sent != 0).sum() <= kept(sent.numel(), 0.3)
        errors = [float((kept_true - factor * scale * signs).square().sum()) for factor in (1.0, 0.99, 1.01)]
        assert errors[0] <= errors[1] * (1 + 1e-6) + 1e-80
        assert errors[0] <= errors[2] * (1 + 1e-6) + 1e-80


# --- size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [1, 5, 10, 20, 50])
def test_length_is_within_a_tenth_of_a_percent_of_the_entropy(percent):
    generator = torch.Generator().manual_seed(percent)
    state = state_of(t=torch.randn(200_000, generator=generator))
    body = CompeftCodec(percent / 100).encode(state, key=KEY).body
    bound = bound_bits(200_000, 2000 * percent) / 8
    assert len(body) <= 1.001 * bound + 16


def test_own_density_per_tensor_beats_the_global_bound():
    # a tensor of mostly zeros (few rows trained) beside a dense one: algorithms A11
    generator = torch.Generator().manual_seed(0)
    sparse = torch.randn(100_000, generator=generator)
    sparse[1000:] = 0
    state = state_of(a=sparse, b=torch.randn(100_000, generator=generator))
    body = CompeftCodec(0.05).encode(state, key=KEY).body
    assert len(body) < 0.97 * bound_bits(200_000, 6000) / 8


def test_small_tensors_share_their_counts():
    generator = torch.Generator().manual_seed(0)
    state = state_of(**{f"t{i:02}": torch.randn(128, generator=generator) for i in range(24)})
    body = CompeftCodec(0.05).encode(state, key=KEY).body
    assert [len(group) for group in groups(state.spec)] == [24]
    assert len(body) <= 1 + 2 + 24 * 4 + bound_bits(24 * 128, 24 * 6) / 8 + 4


def test_an_all_zero_state_is_three_bytes():
    assert len(CompeftCodec().encode(state_of(a=torch.zeros(9)), key=KEY).body) == 3


# --- hostile bytes ------------------------------------------------------------------------------------

GOOD = CompeftCodec(0.25).encode(F1, key=KEY).body


def scale(value):
    return struct.pack("<f", value)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "version"),
        (b"\x02" + GOOD[1:], "version"),
        (b"\x01" + varint(13) + b"\x00" + GOOD[3:], "positive count"),
        (b"\x01" + varint(2) + varint(11) + GOOD[3:], "negative count"),
        (b"\x01" + varint(2**40) + GOOD[2:], "positive count"),
        (b"\x01" + b"\xff" * 70, "at most 22 bytes"),
        (b"\x01" + b"\xff" * 20, "positive count"),
        (b"\x01\x82\x00\x01" + GOOD[3:], "shortest form"),
        (GOOD[:3] + scale(float("nan")) + GOOD[7:], "finite"),
        (GOOD[:3] + scale(float("inf")) + GOOD[7:], "finite"),
        (GOOD[:3] + scale(-1.2) + GOOD[7:], "at least 0"),
        (GOOD[:3] + scale(-0.0) + GOOD[7:], "at least 0"),
        (GOOD[:3] + scale(0.0) + GOOD[7:], "scale 0"),
        (b"\x01\x01\x02" + GOOD[3:], "counts|coder"),
        (GOOD[:-1] + b"\x02", "counts|coder"),
        (GOOD + b"\x01", "counts|coder"),
        (GOOD + b"\x00", "zero byte"),
        (b"\x01\x00\x00" + GOOD[3:], "coder"),
        (GOOD[:6], "scale of t"),
        (GOOD[:7], "counts"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        CompeftCodec().decode(Payload("compeft.v1", body), SPEC)


def test_an_all_zero_tensor_in_a_shared_block_must_say_scale_zero():
    state = state_of(a=torch.tensor([1.0, -1.0]), b=torch.zeros(2))
    body = bytearray(CompeftCodec(1.0).encode(state, key=KEY).body)
    assert body[7:11] == bytes(4)
    body[7:11] = scale(5.0)
    with pytest.raises(DecodeError, match="tensor b"):
        CompeftCodec().decode(Payload("compeft.v1", bytes(body)), state.spec)


@LAW
@given(data=st.data())
def test_every_accepted_body_is_canonical(data):
    state = data.draw(states(signed))
    body = data.draw(mutations(CompeftCodec(0.3).encode(state, key=KEY).body))
    codec = CompeftCodec(1.0)  # keeps whatever the decoded state has
    try:
        decoded = codec.decode(Payload(codec.id, body), state.spec)
    except DecodeError:
        return
    assert codec.encode(decoded, key=KEY).body == body


def test_memory_is_bounded_by_the_spec_not_by_the_claim():
    spec = StateSpec.of([TensorSpec(f"t{i}", (64, 32), "vector") for i in range(4)])
    body = b"\x01" + (varint(SMALL) + varint(0) + scale(1.0)) * 4
    tracemalloc.start()
    decoded = CompeftCodec().decode(Payload("compeft.v1", body), spec)  # all plus: legal
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * spec.numel
    assert float(decoded["t0"].min()) == 1.0


def test_groups_follow_the_receivers_spec():
    tensors = [TensorSpec("b", (SMALL,), "vector"), TensorSpec("a", (SMALL - 1,), "vector")]
    spec = StateSpec.of([*tensors, dataclasses.replace(tensors[0], name="c")])
    assert [[t.name for t in group] for group in groups(spec)] == [["b"], ["c"], ["a"]]
    assert groups(StateSpec(())) == []
    empty = AdapterState(StateSpec(()), {})
    assert len(through(CompeftCodec(), empty)) == 0
