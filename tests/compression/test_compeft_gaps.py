import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.compression.byte_reader import varint
from headwater.compression.compeft import CompeftCodec
from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.entropy import pack
from headwater.compression.gaps import GapBlock, gap_table
from headwater.compression.ternary import bound_bits, kept
from headwater.errors import ConfigError, DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.compression import stranger_gaps
from tests.laws.codec_laws import KEY, LAW, CodecLaws, mutations, same, signed, states

TAU = [0.9, -0.1, 0.05, -1.2, 0.3, 0.0, 0.7, -0.7, 0.02, -0.4, 1.5, -0.25]
SPEC = StateSpec.of([TensorSpec("t", (12,), "vector")])
F1 = AdapterState(SPEC, {"t": torch.tensor(TAU)})


def state_of(**tensors):
    spec = StateSpec.of([TensorSpec(n, tuple(v.shape), "vector") for n, v in tensors.items()])
    return AdapterState(spec, {name: value.float() for name, value in tensors.items()})


def lora(pairs=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return state_of(
        **{
            f"{i:02}.{ab}": torch.randn((8, 384) if ab == "a" else (384, 8), generator=generator) * size
            for i in range(pairs)
            for ab, size in (("a", 1e-3 * (1 + i % 3)), ("b", 2e-4))
        }
    )


def decode(body, spec=SPEC):
    return CompeftGapsCodec().decode(Payload("compeft.v2", body), spec)


class TestDefaultLaws(CodecLaws):
    codec = CompeftGapsCodec()


class TestShortScaleLaws(CodecLaws):
    codec = CompeftGapsCodec(density=0.3, scale_bits=8)


class TestOverAllLaws(CodecLaws):
    codec = CompeftGapsCodec(density=0.3, over_all=True)


@LAW
@given(state=states(signed), density=st.sampled_from([0.01, 0.3, 1.0]), scale_bits=st.sampled_from([24, 8]))
def test_over_all_tensors_the_largest_of_the_whole_update_are_kept(state, density, scale_bits):
    count = max(1, int(density * state.spec.numel))
    flat = state.vector().tolist()
    first = sorted(range(len(flat)), key=lambda place: (-abs(flat[place]), place))[:count]
    kept_places = sorted(place for place in first if flat[place] != 0)
    codec = CompeftGapsCodec(density, None, scale_bits, over_all=True)
    payload, sent = codec.round_trip(state, key=KEY)
    assert sent.vector().numpy().nonzero()[0].tolist() == kept_places
    signs = [flat[place] < 0 for place in kept_places]
    assert (sent.vector()[kept_places] < 0).tolist() == signs
    assert same(decode(payload.body, state.spec), sent)
    for tensor in sent.values():  # one scale each
        assert tensor[tensor != 0].abs().unique().numel() <= 1


def test_over_all_tensors_ties_go_to_the_first_and_the_scale_is_a_tensors_own():
    state = state_of(
        a=torch.tensor([1.0, 0, 3]), b=torch.tensor([[-3.0, 9], [1, 1]]), c=torch.tensor([-3.0, 0.5, 0])
    )
    sent = CompeftGapsCodec(0.3, over_all=True).round_trip(state, key=KEY)[1]  # three of ten
    assert sent["a"].tolist() == [0, 0, 3]
    assert sent["b"].tolist() == [[-6, 6], [0, 0]]
    assert sent["c"].tolist() == [0, 0, 0]


def test_over_all_tensors_it_is_smaller_than_the_papers_own_formula():
    state = lora(60)
    body, sent = CompeftGapsCodec(0.05, over_all=True).round_trip(state, key=KEY)
    count = int((sent.vector() != 0).sum())
    assert count == kept(state.spec.numel, 0.05)
    assert 8 * len(body.body) <= 0.9 * (bound_bits(state.spec.numel, count) + 16)


@LAW
@given(state=states(signed), density=st.sampled_from([0.01, 0.3, 1.0]), alpha=st.sampled_from([None, 2.0]))
def test_values_are_those_of_v1_bit_for_bit(state, density, alpha):
    old, new = CompeftCodec(density, alpha), CompeftGapsCodec(density, alpha)
    assert same(
        new.decode(new.encode(state, key=KEY), state.spec), old.decode(old.encode(state, key=KEY), state.spec)
    )


@LAW
@given(data=st.data())
def test_every_accepted_body_is_canonical(data):
    state = data.draw(states(signed))
    body = data.draw(mutations(CompeftGapsCodec(0.3).encode(state, key=KEY).body))
    try:
        decoded = decode(body, state.spec)
    except DecodeError:
        return
    assert CompeftGapsCodec(1.0).encode(decoded, key=KEY).body == body


@LAW
@given(state=states(signed), density=st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_a_stranger_reads_it_from_the_page_alone(state, density):
    body = CompeftGapsCodec(density).encode(state, key=KEY).body
    read = stranger_gaps.decode(body, [t.numel for t in state.spec])
    for tensor, values in zip(state.spec, read, strict=True):
        here = decode(body, state.spec)[tensor.name].reshape(-1).numpy()
        assert np.array(values, np.float32).tobytes() == here.tobytes()


def test_a_stranger_reads_escapes_and_many_tensors():
    state = lora(4)
    state["00.a"].view(-1)[:2900] = 0  # its gaps are nothing like the others'
    body = CompeftGapsCodec(0.02).encode(state, key=KEY).body
    read = stranger_gaps.decode(body, [t.numel for t in state.spec])
    assert np.array(read, np.float32).tobytes() == decode(body, state.spec).tobytes()


# --- frozen bytes: they leave the house; if they change, the codec's id must change ---------------------


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (CompeftGapsCodec(0.25), "170306e08b32dd7907"),
        (CompeftGapsCodec(0.25, scale_bits=8), "070304186e1116"),
        (CompeftGapsCodec(1.0), "180b0684fd1db594ba"),
    ],
)
def test_frozen_bytes(codec, body):
    assert codec.encode(F1, key=KEY) == Payload("compeft.v2", bytes.fromhex(body))


def test_frozen_bytes_of_several_tensors():
    large = torch.zeros(2, 1024)
    large[0, 3], large[1, 1000] = 0.5, -0.5
    state = state_of(a=torch.tensor([1.0, -3.0]), b=large, c=torch.zeros(3), d=torch.tensor([[0.25, 0]]))
    body = CompeftGapsCodec(0.5).encode(state, key=KEY).body
    assert body.hex() == "02010200000306277ea42103f6"
    assert same(decode(body, state.spec), CompeftCodec(0.5).round_trip(state, key=KEY)[1])


def test_frozen_bytes_of_a_density_over_all():
    state = state_of(
        a=torch.tensor([1.0, -3.0]), b=torch.tensor(TAU), c=torch.zeros(3), d=torch.tensor([0.25])
    )
    body = CompeftGapsCodec(0.2, over_all=True).encode(state, key=KEY).body
    assert body.hex() == "1801020000180c6b6666fdba9795ba9b0b9c0b"
    assert [int(decode(body, state.spec)[name].count_nonzero()) for name in "abcd"] == [1, 2, 0, 0]


# --- scales ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12, 23])
def test_a_short_scale_is_the_nearest_one(bits):
    state = lora()
    exact = CompeftGapsCodec(0.1).round_trip(state, key=KEY)[1]
    short = CompeftGapsCodec(0.1, scale_bits=bits).round_trip(state, key=KEY)[1]
    for name in state:
        left, right = exact[name].abs().max().double(), short[name].abs().max().double()
        assert abs(right / left - 1) <= 2.0**-bits
        assert torch.equal(exact[name].sign(), short[name].sign())
    assert not same(exact, short)


@pytest.mark.parametrize("value", [2.0**-149, 1e-40, 3.4028234e38])
def test_a_short_scale_is_neither_zero_nor_infinite(value):
    state = state_of(t=torch.tensor([value, -value, 0.0]))
    sent = CompeftGapsCodec(1.0, scale_bits=8).round_trip(state, key=KEY)[1]
    assert sent.isfinite()
    assert (sent["t"] != 0).tolist() == [True, True, False]


@pytest.mark.parametrize("bits", [7, 25])
def test_scale_bits_are_some_and_not_more_than_there_are(bits):
    with pytest.raises(ConfigError, match="scale_bits"):
        CompeftGapsCodec(scale_bits=bits)


# --- size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [1, 5, 10, 20, 50])
def test_length_is_within_a_tenth_of_a_percent_of_the_entropy(percent):
    generator = torch.Generator().manual_seed(percent)
    state = state_of(t=torch.randn(1_000_000, generator=generator))
    body = CompeftGapsCodec(percent / 100).encode(state, key=KEY).body
    assert len(body) <= 1.001 * bound_bits(1_000_000, 10_000 * percent) / 8


@pytest.mark.parametrize(
    ("percent", "bits", "most"), [(1, 8, 1.05), (5, 12, 1.02), (10, 24, 1.02), (20, 24, 1.02)]
)
def test_length_of_small_tensors_is_near_the_sum_of_their_entropies(percent, bits, most):
    state = lora(60)
    body = CompeftGapsCodec(percent / 100, scale_bits=bits).encode(state, key=KEY).body
    bound = sum(bound_bits(t.numel, kept(t.numel, percent / 100)) for t in state.spec) / 8
    assert len(body) <= most * bound
    assert len(body) < len(CompeftCodec(percent / 100).encode(state, key=KEY).body)


def test_an_all_zero_state_is_one_byte():
    assert CompeftGapsCodec().encode(state_of(a=torch.zeros(9)), key=KEY).body == b"\0"


@pytest.mark.parametrize(
    ("numel", "count"), [(2, 1), (3072, 30), (3072, 3071), (1 << 31, 1), (1 << 31, 1 << 26)]
)
def test_probabilities_of_gaps_are_those_of_a_fair_draw(numel, count):
    table, p = gap_table(numel, count), count / numel
    assert sum(table.units) == 2**24
    assert min(table.units) >= 1
    stays = (1 - p) ** (1 << table.shift)
    for symbol, unit in enumerate(table.units[:-1]):
        assert unit / 2**24 == pytest.approx(stays**symbol * (1 - stays), rel=1e-3, abs=1e-6)
    assert len(table.units) <= 40


def test_places_of_a_huge_tensor_come_back():
    table = gap_table(1 << 31, 3)
    places = np.array([[0, 5, (1 << 31) - 1]])
    symbols, bits = table.write(places)
    assert table.read(symbols, bits, 1, None).tolist() == places.tolist()


# --- hostile bytes --------------------------------------------------------------------------------------

GOOD = CompeftGapsCodec(0.25).encode(F1, key=KEY).body


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "bits of a scale"),
        (b"\x19" + GOOD[1:], "bits of a scale"),
        (b"\x00" + GOOD[1:], "the end"),
        (GOOD[:1] + varint(13) + GOOD[2:], "count"),
        (GOOD[:1] + b"\x00" + GOOD[2:], "kept"),
        (GOOD[:1] + b"\x83\x00" + GOOD[2:], "shortest form"),
        (GOOD[:2], "bytes of stream"),
        (GOOD[:2] + b"\0", "below"),
        (GOOD + b"\x00", "6 bytes of stream"),
        (GOOD[:2] + b"\x07" + GOOD[3:] + b"\x00", "zero byte"),
        (GOOD[:2] + b"\x0a" + GOOD[3:] + b"\x01" * 4, "below|places|gaps|escape"),
        (b"\x16" + GOOD[1:], "below|fewest"),
        (b"\x18" + b"\xff" * 90, "at most"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        decode(body)


def test_the_same_count_may_not_be_said_twice():
    state = state_of(a=torch.tensor([1.0, 2, 0]), b=torch.tensor([1.0, 3, 0]), c=torch.tensor([1.0, 0, 0]))
    body = CompeftGapsCodec(1.0).encode(state, key=KEY).body
    assert body[1:5] == bytes([2, 1, 1, 1])  # two of the first; one change, after one equal one, to one
    with pytest.raises(DecodeError, match="another count"):
        decode(body[:4] + b"\2" + body[5:], state.spec)
    with pytest.raises(DecodeError, match="as many counts"):
        decode(body[:3] + b"\2" + body[4:], state.spec)
    with pytest.raises(DecodeError, match="changes of a count"):
        decode(body[:2] + b"\3" + body[3:], state.spec)


def test_memory_is_bounded_by_the_spec_not_by_the_claim():
    spec = StateSpec.of([TensorSpec(f"t{i}", (64, 32), "vector") for i in range(4)])
    body = b"\x18" + varint(1024) + b"\0\0" + varint(10_000) + varint(301) + bytes(300) + b"\1"
    tracemalloc.start()
    with pytest.raises(DecodeError):
        decode(body, spec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * spec.numel


@pytest.mark.parametrize("density", [0.001, 0.2, 2 / 3, 1.0])
def test_the_least_likely_places_stay_below_max_bytes(density):
    values = torch.zeros(4096)
    count = kept(4096, density)
    values[:: 4096 // count] = 1.0  # every gap alike: with low bits of zero, which the model thinks rare
    state = state_of(t=values, u=values.flip(0))
    body = CompeftGapsCodec(1.0).encode(state, key=KEY).body
    assert len(body) <= CompeftGapsCodec().max_bytes(state.spec)


def handmade(numel, symbols, escapes=b"", precision=1, pattern=127):
    """A body of one tensor of positive values whose lowest bits are 0; the scale is 1 by default."""
    count = len(symbols) - sum(escapes)
    table = gap_table(numel, count)
    raw = [0] * (count * (1 + table.shift)) + [pattern >> i & 1 for i in range(precision + 7)]
    block = GapBlock(table, len(symbols))
    stream = pack([(np.array(symbols, np.int32), block)], np.array(raw, np.uint8))
    body = bytes([precision, count]) + escapes + varint(len(stream)) + stream
    return body, StateSpec.of([TensorSpec("t", (numel,), "vector")])


def test_no_second_body_of_a_state_is_accepted():
    shift, escape = gap_table(64, 1).shift, gap_table(3072, 30).escape
    assert decode(*handmade(64, [3]))["t"].nonzero().tolist() == [[3 << shift]]
    for made, why in (
        (handmade(64, [3], precision=2, pattern=254), "fewest bits"),  # a scale of 1 needs one
        (handmade(64, [3], pattern=0), "fewest bits"),
        (handmade(64, [3], pattern=255), "infinity"),
        (handmade(3072, [0] * 30 + [escape], b"\1"), "none of them the last"),
    ):
        with pytest.raises(DecodeError, match=why):
            decode(*made)
