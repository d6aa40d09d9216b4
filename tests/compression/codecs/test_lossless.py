import numpy as np
import pytest
import torch

from headwater.compression.codecs.lossless import LosslessCodec
from headwater.compression.compeft import CompeftCodec
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY, same

CODEC = LosslessCodec()
SPEC = StateSpec.of([TensorSpec("t", (5,), "vector")])


def vector(values):
    return AdapterState(SPEC, {"t": torch.tensor(values)})


def normal(size):
    spec = StateSpec.of([TensorSpec("t", (size,), "vector")])
    return AdapterState(spec, {"t": torch.randn(size, generator=torch.Generator().manual_seed(1)) * 1e-3})


def test_golden_bytes():
    # exponents 7f 80 ff(+0) 00(−0) 7b; then 24 bits a value but +0: the mantissa's 23 and the sign
    body = "0100 7f80ff007b00 0040009900 0000009900 0001019a"
    state = vector([1.0, -2.5, 0.0, -0.0, 0.1])
    assert CODEC.encode(state, key=KEY) == Payload("lossless.v1", bytes.fromhex(body))
    assert same(CODEC.decode(Payload("lossless.v1", bytes.fromhex(body)), SPEC), state)


def test_golden_coded_bytes():
    spec = StateSpec.of([TensorSpec("t", (40,), "vector")])
    state = AdapterState(spec, {"t": torch.tensor([0.5, -0.75, 0.0, 0.0]).repeat(10)})
    # 7e and ff twenty times each, 128 unused between; of the 20 mantissas one byte of two kinds, zeros, signs
    body = CODEC.encode(state, key=KEY).body
    assert body.hex() == "01017e8114007f140100800a007e0a010000140100010a0a2500c213e8daa4d311f37f6655"
    assert same(CODEC.decode(Payload(CODEC.id, body), spec), state)


def test_normal_values_take_less_than_three_and_a_half_bytes():
    state = normal(100_000)
    assert 3.2 < len(CODEC.encode(state, key=KEY).body) / 100_000 < 3.4


def test_half_precision_and_sparse_states_cost_what_they_hold():
    state = normal(100_000)
    half = state.map(lambda value: value.bfloat16().float())
    assert len(CODEC.encode(half, key=KEY).body) < 1.4 * 100_000
    sparse = CompeftCodec(0.05)
    body = sparse.encode(state, key=KEY).body
    kept = CODEC.encode(sparse.decode(Payload(sparse.id, body), state.spec), key=KEY).body
    assert len(kept) < len(body) + 40


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "version"),
        ("02", "version"),
        ("0102", "mode of a plane"),
        ("01007f80ff007b000040", "plane"),
        ("01007f007f7f7f" + "000000000000" * 3, "symbol 255"),
        ("0101ff0004", "uncounted"),
        ("0101ff0105", "symbols after the first"),
        ("0101fe010400000001", "uncounted"),
        ("0101ff000501ff0000", "an empty plane raw"),
        ("0101ff0005000000" + "01", "empty coder"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        CODEC.decode(Payload(CODEC.id, bytes.fromhex(body)), SPEC)


def test_all_zero_is_a_histogram_and_three_empty_planes():
    body = CODEC.encode(vector([0.0] * 5), key=KEY).body
    assert body.hex() == "0100ffffffffff000000"
    assert not CODEC.decode(Payload(CODEC.id, body), SPEC)["t"].any()


def test_every_exponent_is_kept():
    words = (np.arange(255, dtype=np.uint32) << 23) | 0x2A5A5A
    spec = StateSpec.of([TensorSpec("t", (510,), "vector")])
    state = AdapterState(
        spec, {"t": torch.from_numpy(np.concatenate([words, words | 1 << 31]).view(np.float32))}
    )
    assert same(CODEC.decode(CODEC.encode(state, key=KEY), spec), state)
