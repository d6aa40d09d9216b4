import struct
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.compression.logquant import _TWELFTHS, FLOOR, RELATIVE_ERROR, LogQuantCodec
from headwater.errors import DecodeError, TrainingError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY, LAW, CodecLaws, states

CODEC = LogQuantCodec()
SPEC = StateSpec.of([TensorSpec("t", (6,), "vector")])
STATE = AdapterState(SPEC, {"t": torch.tensor([4.0, 1.0, 0.0, 0.125, 1e-20, 3.9])})

positive = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1e-8, 2.0**-149, 3e-44, 3e-39, 1e-30]), st.floats(0, 2.0**120, width=32)
)


class TestLaws(CodecLaws):
    codec = CODEC
    values = positive


def through(state):
    return CODEC.decode(CODEC.encode(state, key=KEY), state.spec)


def test_golden_values():
    # levels are 4·2^(−j/6): 1 = j 12, 0.125 = j 30, 3.9 rounds to the maximum, 1e-20 is below the floor
    assert through(STATE)["t"].tolist() == [4.0, 1.0, 0.0, 0.125, 0.0, 4.0]


def test_frozen_plain_bytes():
    body = bytes([1, 0]) + struct.pack("<f", 4.0) + bytes([255, 243, 0, 225, 0, 255])
    assert CODEC.encode(STATE, key=KEY) == Payload("logquant8.v1", body)


def test_frozen_coded_bytes():
    values = torch.tensor([1.0, 2 ** (-1 / 6), 1.0, 0.0]).repeat(8)
    spec = StateSpec.of([TensorSpec("t", (32,), "vector")])
    body = CODEC.encode(AdapterState(spec, {"t": values}), key=KEY).body
    # version, coded, max 1.0, first code 254, counts of 0, 254, 255
    assert body[:10].hex() == "01010000803ffe080810"
    assert body[10:].hex() == "0000c0344dd3f44413"
    assert torch.equal(CODEC.decode(Payload(CODEC.id, body), spec)["t"] == 1.0, values == 1.0)


@LAW
@given(state=states(positive))
def test_error_bound(state):
    for name, sent in through(state).items():
        true = state[name].double()
        top = true.max()
        slack = 2.0**-149 + RELATIVE_ERROR * (1 + 1e-5) * true
        small = true < FLOOR * top
        assert bool(((sent.double() - true).abs() <= slack)[~small].all())
        assert bool((sent.double() <= slack + true)[small].all())
        assert float(sent.max()) == float(top)


def test_relative_error_is_reached_but_not_passed():
    values = torch.logspace(0, 12, 50_000, base=10.0)
    spec = StateSpec.of([TensorSpec("t", (50_000,), "vector")])
    sent = through(AdapterState(spec, {"t": values}))["t"].double()
    error = float((sent / values.double() - 1).abs().max())
    assert 0.99 * RELATIVE_ERROR < error < RELATIVE_ERROR * (1 + 1e-6)
    assert abs(RELATIVE_ERROR - 0.0594631) < 1e-7


def test_levels_against_exact_powers():
    spec = StateSpec.of([TensorSpec("t", (255,), "vector")])
    exact = np.exp2(-np.arange(255, dtype=np.longdouble) / 6).astype(np.float32)
    sent = CODEC.decode(
        Payload(CODEC.id, bytes([1, 0]) + struct.pack("<f", 1.0) + bytes(range(255, 0, -1))), spec
    )["t"].numpy()
    assert np.array_equal(sent, exact)


def test_constants_are_correctly_rounded():
    with localcontext(prec=50):
        assert [float(Decimal(2) ** (Decimal(-i) / 12)) for i in range(12)] == list(_TWELFTHS)


def test_coding_pays_for_a_fisher_like_tensor():
    squares = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).square()
    spec = StateSpec.of([TensorSpec("t", (60_000,), "vector")])
    body = CODEC.encode(AdapterState(spec, {"t": squares}), key=KEY).body
    assert body[1] == 1
    assert len(body) < 0.8 * 60_000


@pytest.mark.parametrize("bad", [-1e-9, -1.0])
def test_negative_statistics_raise(bad):
    state = AdapterState(SPEC, {"t": torch.tensor([1.0, 2.0, bad, 0, 0, 0])})
    with pytest.raises(TrainingError, match="statistic t"):
        CODEC.encode(state, key=KEY)


def top(value):
    return struct.pack("<f", value)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "version"),
        (b"\x02\x00", "version"),
        (b"\x01\x02", "mode"),
        (b"\x01\x00" + top(-1.0) + bytes([255] * 6), "at least 0"),
        (b"\x01\x00" + top(-0.0) + bytes([255] * 6), "at least 0"),
        (b"\x01\x00" + top(float("inf")) + bytes([255] * 6), "finite"),
        (b"\x01\x00" + top(1.0) + bytes([254] * 6), "code 255"),
        (b"\x01\x00" + top(1.0) + bytes([255] * 5), "codes"),
        (b"\x01\x00" + top(0.0) + b"\x01", "the end"),
        (b"\x01\x01" + top(1.0) + b"\x00", "first code"),
        (b"\x01\x01" + top(1.0) + b"\xff\x00\x07", "count of a code"),
        (b"\x01\x01" + top(1.0) + b"\xff\x00\x05", "uncounted"),
        (b"\x01\x01" + top(1.0) + b"\xfe\x00\x00\x06", "used one"),
        (b"\x01\x01" + top(1.0) + b"\xff\x06\x00", "used one"),
        (b"\x01\x01" + top(1.0) + b"\xff\x00\x06\x01", "coder"),
        (b"\x01\x01" + top(0.0) + b"\xff\x00\x00", "used one"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        CODEC.decode(Payload(CODEC.id, body), SPEC)
