import pytest
import torch
from hypothesis import strategies as st

from headwater.compression.dense import DenseCodec
from headwater.errors import DecodeError, TrainingError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY, CodecLaws

SPEC = StateSpec.of([TensorSpec("b", (2,), "vector"), TensorSpec("a", (1, 2), "vector")])
STATE = AdapterState(SPEC, {"a": torch.tensor([[1.0, -2.5]]), "b": torch.tensor([0.1, -0.0])})


class TestFp32Laws(CodecLaws):
    codec, lossy = DenseCodec("fp32"), False


class TestBf16Laws(CodecLaws):
    codec = DenseCodec("bf16")


class TestFp16Laws(CodecLaws):
    codec = DenseCodec("fp16")
    values = st.one_of(
        st.sampled_from([0.0, -0.0, 6e-8, -3e-9, 6.1e-5]), st.floats(-65_504, 65_504, width=32)
    )


def test_golden_bytes_in_name_order():
    assert DenseCodec().encode(STATE, key=KEY) == Payload(
        "dense-fp32.v1", bytes.fromhex("0000803f000020c0cdcccc3d00000080")
    )
    assert DenseCodec("fp16").encode(STATE, key=KEY) == Payload(
        "dense-fp16.v1", bytes.fromhex("003c00c1662e0080")
    )
    assert DenseCodec("bf16").encode(STATE, key=KEY) == Payload(
        "dense-bf16.v1", bytes.fromhex("803f20c0cd3d0080")
    )


def test_bf16_rounds_ties_to_even():
    spec = StateSpec.of([TensorSpec("t", (4,), "vector")])
    ulp = 2.0**-7  # bf16's spacing in [1, 2)
    values = torch.tensor([1 + ulp / 2, 1 + 3 * ulp / 2, 1 + ulp / 2 + 2**-23, -(1 + ulp / 2)])
    codec = DenseCodec("bf16")
    decoded = codec.decode(codec.encode(AdapterState(spec, {"t": values}), key=KEY), spec)
    assert decoded["t"].tolist() == [1.0, 1 + 2 * ulp, 1 + ulp, -1.0]


def test_bf16_overflow_is_a_training_error_not_an_infinity():
    spec = StateSpec.of([TensorSpec("t", (1,), "vector")])
    state = AdapterState(spec, {"t": torch.tensor([3.4e38])})
    with pytest.raises(TrainingError, match="bf16"):
        DenseCodec("bf16").encode(state, key=KEY)
    assert DenseCodec().decode(DenseCodec().encode(state, key=KEY), spec)["t"] == state["t"]


def test_fp16_is_numpys_and_overflow_is_a_training_error():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-4
    spec = StateSpec.of([TensorSpec("t", (1001,), "vector")])
    state = AdapterState(spec, {"t": torch.cat([values, torch.tensor([65_519.0])])})
    codec = DenseCodec("fp16")
    body = codec.encode(state, key=KEY).body
    assert body == state["t"].numpy().astype("<f2").tobytes()
    assert codec.decode(Payload(codec.id, body), spec)["t"][1000] == 65_504
    with pytest.raises(TrainingError, match="65,520, fp16"):
        codec.encode(state * 1.001, key=KEY)


@pytest.mark.parametrize(
    ("codec", "bits"),
    [(DenseCodec(), "0000807f"), (DenseCodec("bf16"), "c07f"), (DenseCodec("fp16"), "007e")],
)
def test_non_finite_bytes_are_refused(codec, bits):
    spec = StateSpec.of([TensorSpec("t", (1,), "vector")])
    with pytest.raises(DecodeError, match="finite"):
        codec.decode(Payload(codec.id, bytes.fromhex(bits)), spec)


def test_decoded_values_do_not_alias_the_payload():
    payload = DenseCodec().encode(STATE, key=KEY)
    decoded = DenseCodec().decode(payload, SPEC)
    decoded["a"].zero_()
    assert payload == DenseCodec().encode(STATE, key=KEY)
