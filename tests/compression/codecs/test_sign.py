import pytest
import torch

from headwater.compression.codecs.sign import SignCodec, StcCodec
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY

SPEC = StateSpec.of([TensorSpec("a", (2,), "vector"), TensorSpec("b", (10,), "vector")])
VALUES = [0.9, -0.1, 0.05, -1.2, 0.3, 0.0, 0.7, -0.7, 0.02, -0.4, 1.5, -0.25]
STATE = AdapterState.from_vector(SPEC, torch.tensor(VALUES))


def sent(codec):
    return codec.decode(codec.encode(STATE, key=KEY), SPEC).vector()


def test_sign_is_the_mean_magnitude_of_each_tensor():
    mean = sum(abs(v) for v in VALUES[2:]) / 9  # of those that are not 0
    wanted = [0.5, -0.5, *(mean if v > 0 else -mean if v else 0.0 for v in VALUES[2:])]
    assert torch.allclose(sent(SignCodec()), torch.tensor(wanted), rtol=1e-6)


def test_sign_takes_a_bit_a_value():
    spec = StateSpec.of([TensorSpec("t", (50_000,), "vector")])
    state = AdapterState(spec, {"t": torch.randn(50_000, generator=torch.Generator().manual_seed(3))})
    assert 6240 <= len(SignCodec().encode(state, key=KEY).body) <= 6270


def test_stc_takes_the_largest_of_all_tensors_with_one_mean():
    # algorithms F1: n = 3 of 12, places 0, 3 and 10, μ = 1.2, squared error 1.4854
    found = sent(StcCodec(0.25))
    assert found.nonzero().flatten().tolist() == [0, 3, 10]
    assert found[[0, 3, 10]].tolist() == pytest.approx([1.2, -1.2, 1.2])
    assert float((found - STATE.vector()).double().square().sum()) == pytest.approx(1.4854, abs=1e-6)


def test_golden_bytes():
    assert StcCodec(0.25).encode(STATE, key=KEY) == Payload(
        "stc.v1", bytes.fromhex("01 0201 9a99993f 32 55d59f01")
    )
    body = SignCodec().encode(STATE, key=KEY)
    assert body.id if hasattr(body, "id") else body.codec == "sign.v1"
    assert body.body[:3].hex() == "010605"


@pytest.mark.parametrize("codec", [SignCodec(), StcCodec()])
@pytest.mark.parametrize(
    ("body", "why"), [("02", "version"), ("010d00", "count"), ("010100" + "00" * 8, ".")]
)
def test_what_is_refused(codec, body, why):
    with pytest.raises(DecodeError, match=why):
        codec.decode(Payload(codec.id, bytes.fromhex(body)), SPEC)


def test_compeft_bytes_under_another_name_are_not_taken_for_it():
    body = StcCodec().encode(STATE, key=KEY).body
    with pytest.raises(DecodeError, match=r"codec stc\.v1"):
        StcCodec().decode(Payload("compeft.v1", body), SPEC)
