import pytest
import torch

from headwater.compression.codecs.topk import SparseLocoCodec, TopkCodec
from headwater.compression.ternary import bound_bits
from headwater.errors import DecodeError, TrainingError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY

F1 = [0.9, -0.1, 0.05, -1.2, 0.3, 0.0, 0.7, -0.7, 0.02, -0.4, 1.5, -0.25]


def vector(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    spec = StateSpec.of([TensorSpec("t", tuple(values.shape), "vector")])
    return AdapterState(spec, {"t": values})


def through(codec, state):
    return codec.decode(codec.encode(state, key=KEY), state.spec)["t"]


def at(places, values, size=12):
    out = torch.zeros(size)
    out[list(places)] = torch.tensor(values, dtype=torch.float32)
    return out


@pytest.mark.parametrize(
    ("bits", "body", "values"),
    [
        # places 0, 3, 6 and 10 of F1 (the tie |0.7| goes to 6): a stream of four bytes
        (16, "01 10 04 04 d8aaaafd 663f 9abf 333f c03f", [0.8984375, -1.203125, 0.69921875, 1.5]),
        (
            8,
            "01 08 04 04 d8aaaafd 0000c03f 00 cb 19 ba fe",
            [76 / 127 * 1.5, -102 / 127 * 1.5, 59 / 127 * 1.5, 1.5],
        ),
        # |x| = 0.9 1.2 0.7 1.5, mean 1.075: low 0.8, high 1.35; codes 0 3 0 2
        (2, "01 02 04 04 d8aaaafd cccc4c3f cdccac3f 00 32", [0.8, -1.35, 0.8, 1.35]),
    ],
)
def test_golden(bits, body, values):
    codec = TopkCodec(1 / 3, bits)
    assert codec.encode(vector(F1), key=KEY).body.hex() == body.replace(" ", "")
    assert torch.allclose(through(codec, vector(F1)), at((0, 3, 6, 10), values), rtol=1e-6)


def test_chunks_keep_their_own_largest():
    values = torch.zeros(192)
    values[:64] = torch.linspace(1, 2, 64)
    values[64:128] = torch.linspace(-0.2, -0.1, 64)
    found = through(SparseLocoCodec(1 / 32, 64), vector(values))
    assert found.nonzero().flatten().tolist() == [62, 63, 64, 65]
    assert len(through(TopkCodec(2 / 192, 2), vector(values)).nonzero()) == 2


def test_two_bits_lose_less_than_one_magnitude():
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    lost = {
        b: float((through(TopkCodec(0.05, b), vector(values)) - values).square().sum()) for b in (2, 8, 16)
    }
    kept = values.abs().topk(2500)
    exact = float(values.square().sum() - kept.values.square().sum())
    ternary = exact + float((kept.values - kept.values.mean()).square().sum())
    assert exact <= lost[16] < lost[8] < lost[2] < ternary


@pytest.mark.parametrize(("bits", "most"), [(16, 16), (8, 7), (2, 2)])
def test_bytes_are_the_entropy_of_places_and_the_values(bits, most):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    body = TopkCodec(0.05, bits).encode(vector(values), key=KEY).body
    places = bound_bits(100_000, 5000) - 5000
    assert places < 8 * len(body) < places * 1.01 + most * 5000 + 8 * 260


def test_what_rounds_to_zero_is_not_sent():
    values = torch.tensor([1.0, 1e-4, -1e-4, 0.5])
    assert through(TopkCodec(1.0, 8), vector(values)).nonzero().flatten().tolist() == [0, 3]


def test_bf16_overflow_is_a_training_error():
    with pytest.raises(TrainingError, match="bf16"):
        TopkCodec(1.0, 16).encode(vector([3.4e38]), key=KEY)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "version"),
        ("02", "version"),
        ("01 04", "bits of a value"),
        ("01 08 0d", "kept values"),
        ("01 08 04 ff01", "bytes of places"),
        ("01 08 04 02 4e", "places"),
        ("01 08 03 04 d8aaaafd 0000c03f 00 cb19ba", "."),
        ("01 08 04 04 d8aaaafd 00000000 00 cb19bafe", "above 0"),
        ("01 02 04 04 d8aaaafd cdccac3f cdcc4c3f 00 32", "lower one first"),
        ("01 08 04 04 d8aaaafd 0000c03f 00 cb197ffe", "other than 0"),
        ("01 10 04 04 d8aaaafd 663f 9abf 0000 c03f", "other than 0"),
        ("01 10 04 04 d8aaaafd 663f 9abf 807f c03f", "finite"),
        ("01 10 04 04 d8aaaafd 663f 9abf 333f", "values"),
        ("01 08 04 04 d8aaaafd 0000c03f 00 cb19bafe00", "the end"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        TopkCodec().decode(Payload("topk.v1", bytes.fromhex(body)), vector(F1).spec)
