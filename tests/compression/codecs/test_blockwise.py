import numpy as np
import pytest
import torch

from headwater.compression.codecs.blockwise import NF4, BlockwiseCodec
from headwater.errors import ConfigError, DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY

F8 = [0.02, -0.05, 0.10, -0.20, 0, 0.07, -0.13, 0.20]


def vector(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    spec = StateSpec.of([TensorSpec("t", tuple(values.shape), "vector")])
    return AdapterState(spec, {"t": values})


def through(codec, state):
    return codec.decode(codec.encode(state, key=KEY), state.spec)["t"]


def test_golden_nf4():
    # algorithms F8; absmax 0.2, codes [8, 4, 12, 0, 7, 11, 1, 15]
    codec = BlockwiseCodec("nf4")
    assert codec.encode(vector(F8), key=KEY) == Payload("nf4.v1", bytes.fromhex("01 40 cdcc4c3e 00 84c07b1f"))
    decoded = [0.0159160599, -0.0568882763, 0.0881419659, -0.2, 0, 0.0675830483, -0.1392385602, 0.2]
    assert through(codec, vector(F8)).tolist() == pytest.approx(decoded, abs=1e-8)


def test_a_value_in_the_middle_of_two_levels_takes_the_lower():
    """As in bitsandbytes, whose bucketize includes upper bounds."""
    middle = float((NF4[7] + NF4[8]) / np.float32(2))
    assert BlockwiseCodec("nf4").encode(vector([1.0, middle]), key=KEY).body.hex() == "01400000803f00f7"


def test_golden_int():
    assert BlockwiseCodec("int4").encode(vector(F8), key=KEY).body.hex() == "0140cdcc4c3e0085b0792e"
    assert BlockwiseCodec("int8").encode(vector(F8), key=KEY).body.hex() == "018002cdcc4c3e008c5fbf007fab2cfe"
    assert through(BlockwiseCodec("int4"), vector(F8)).tolist() == pytest.approx(
        [v / 35 for v in (1, -2, 4, -7, 0, 2, -5, 7)]
    )


@pytest.mark.parametrize("size", [64, 4096, 1000, 77, 1])
def test_nf4_is_bitsandbytes(size):
    functional = pytest.importorskip("bitsandbytes.functional")
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(size, generator=generator) * torch.rand(size, generator=generator).pow(8) * 1e-3
    # middles of levels, as far as a division gives them
    values[: size // 2] = values[0] * torch.from_numpy((NF4[:-1] + NF4[1:]) / 2).repeat(size)[: size // 2]
    packed, theirs = functional.quantize_nf4(values.clone(), blocksize=64)
    body = BlockwiseCodec("nf4").encode(vector(values), key=KEY).body
    blocks = -(-size // 64)
    assert body[2 : 2 + 4 * blocks] == theirs.absmax.numpy().tobytes()
    if body[2 + 4 * blocks] == 0:
        assert body[3 + 4 * blocks :] == _masked(packed.flatten().numpy(), size)
    assert torch.equal(
        through(BlockwiseCodec("nf4"), vector(values)),
        functional.dequantize_nf4(packed, theirs).flatten()[:size],
    )


def _masked(packed, size):
    """bitsandbytes fills an odd end with the code of 0."""
    out = packed.copy()
    if size % 2:
        out[-1] &= 0xF0
    return out.tobytes()


def test_nf4_codes_of_bitsandbytes_0_50_2():
    """Frozen where bitsandbytes is not installed: quantize_nf4 of these 70 values in blocks of 64."""
    values = torch.tensor([((i * 37) % 101 - 50) / (i % 7 + 1) * 1e-3 for i in range(70)])
    body = BlockwiseCodec("nf4").encode(vector(values), key=KEY).body
    assert body.hex() == BNB


BNB = "0140cdcc4c3d3ec32e3c0006957869c6857817a6896c36967829b6867e48a6865a47967f5957868c5896815f18e4"


def test_the_largest_is_exact_and_no_error_is_above_half_a_step():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    for kind, most, block in (("int8", 127, 256), ("int4", 7, 64)):
        found = through(BlockwiseCodec(kind), vector(values))
        for at in range(0, 5000, block):
            part, back = values[at : at + block], found[at : at + block]
            top = part.abs().max()
            assert float(back.abs().max()) == float(top)
            assert float((part - back).abs().max()) <= float(top) / most / 2 * (1 + 1e-5)


@pytest.mark.parametrize(("kind", "most"), [("int8", 7.8), ("int4", 4.1), ("nf4", 4.6)])
def test_bits_of_normal_values(kind, most):
    values = torch.randn(64_000, generator=torch.Generator().manual_seed(0))
    assert most - 0.5 < 8 * len(BlockwiseCodec(kind).encode(vector(values), key=KEY).body) / 64_000 < most


def test_zero_blocks_have_no_codes():
    values = torch.zeros(200)
    values[70] = -3.0
    body = BlockwiseCodec("int4").encode(vector(values), key=KEY).body
    assert len(body) < 2 + 16 + 3 + 40
    assert torch.equal(through(BlockwiseCodec("int4"), vector(values)), values)


def test_levels_are_what_bitsandbytes_computes():
    assert NF4.dtype == np.float32
    assert (np.diff(NF4) > 0).all()
    assert (NF4[0], NF4[7], NF4[15]) == (-1, 0, 1)


@pytest.mark.parametrize("block", [0, 15, 65_537])
def test_blocks_out_of_range(block):
    with pytest.raises(ConfigError, match="block 16 to 65536"):
        BlockwiseCodec("int8", block)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "version"),
        ("0240", "version"),
        ("010f", "block of at least"),
        ("018180 04", "block of at most"),
        ("0140 cdcc4c", "scales"),
        ("0140 000080bf 00 84c07b1f", "at least 0"),
        ("0140 0000c07f 00 84c07b1f", "finite"),
        ("0140 00000080 00", "at least 0"),
        ("0140 cdcc4c3e 00 84c07b", "packed symbols"),
        ("0140 cdcc4c3e 00 84c07b1f00", "the end"),
        ("0140 cdcc4c3e 00 84c77b17", "at its scale"),
        ("0140 00000000 00 00", "the end"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        BlockwiseCodec("nf4").decode(Payload("nf4.v1", bytes.fromhex(body)), vector(F8).spec)
