import struct

import numpy as np
import pytest
import torch

from headwater.compression.codecs.nnadq import NnadqCodec
from headwater.errors import ConfigError, DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY


def vector(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    spec = StateSpec.of([TensorSpec("t", tuple(values.shape), "vector")])
    return AdapterState(spec, {"t": values})


def through(codec, state):
    return codec.decode(codec.encode(state, key=KEY), state.spec)


def test_golden_with_127_levels():
    # algorithms F9: s = 67, 7 bits, 127 steps of 1/127
    body = NnadqCodec(0.01).encode(vector([0, 0.5, 1, 0.25]), key=KEY).body
    assert body.hex() == "0107" + struct.pack("<f", 1 / 127).hex() + "00050000407f20"
    assert through(NnadqCodec(0.01), vector([0, 0.5, 1, 0.25]))["t"].tolist() == pytest.approx(
        [0, 64 / 127, 1, 32 / 127], abs=1e-6
    )


def test_small_ranges_have_levels():
    """The range at which the reference has none and divides by 0."""
    values = [0, 1e-4, 2e-4, 5e-5]
    body = NnadqCodec(0.01).encode(vector(values), key=KEY).body
    assert body.hex() == "0102" + struct.pack("<f", np.float32(np.float32(2e-4) / 3)).hex() + "0002001d"
    assert through(NnadqCodec(0.01), vector(values))["t"].tolist() == pytest.approx(
        [0, 2e-4 / 3, 2e-4, 2e-4 / 3]
    )


def test_zero_is_a_level_of_ranges_on_both_sides():
    values = torch.cat([torch.linspace(-0.3, 1, 50), torch.zeros(50)])
    found = through(NnadqCodec(0.001), vector(values))["t"]
    assert not found[50:].any()
    step = 1.3 / 255
    assert float((found - values).abs().max()) <= step


def test_smaller_sigma_more_levels():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 1e-2
    rows = []
    for sigma in (1e-2, 1e-3, 1e-4):
        body = NnadqCodec(sigma).encode(vector(values), key=KEY).body
        rows.append(
            (len(body), float((through(NnadqCodec(sigma), vector(values))["t"] - values).square().sum()))
        )
    assert rows[0][0] < rows[1][0] < rows[2][0]
    assert rows[0][1] > rows[1][1] > rows[2][1]


def test_the_least_changed_blocks_are_left_out():
    names = [("m1.a", ""), ("m1.b", "m1.a"), ("m2.a", ""), ("m2.b", "m2.a"), ("z", "")]
    spec = StateSpec.of([TensorSpec(n, (10,), "vector", pair=p) for n, p in names])
    sizes = {"m1.a": 0.0, "m1.b": 3.0, "m2.a": 1.0, "m2.b": 1.0, "z": 1.2}
    state = AdapterState(spec, {n: torch.full((10,), s) for n, s in sizes.items()})
    sent = {
        d: {n for n, v in through(NnadqCodec(1e-4, d), state).items() if v.any()} for d in (0, 0.4, 0.6, 0.9)
    }
    assert sent[0] == {"m1.b", "m2.a", "m2.b", "z"}
    assert sent[0.4] == {"m1.b", "z"}  # the pair m1 (mean 1.5), then z; m2 no longer fits
    assert sent[0.6] == {"m1.b"}
    assert sent[0.9] == {"m1.b"}  # one block always travels


@pytest.mark.parametrize(("sigma", "dropout"), [(0, 0), (-1, 0), (float("inf"), 0), (0.01, 1), (0.01, -0.1)])
def test_settings_out_of_range(sigma, dropout):
    with pytest.raises(ConfigError, match="sigma"):
        NnadqCodec(sigma, dropout)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "version"),
        ("02", "version"),
        ("01 01", "bits of t"),
        ("01 09", "bits of t"),
        ("01 02 00000000 00 02 002d", "step above 0"),
        ("01 02 000080ff 00 02 002d", "finite"),
        ("01 02 ffff7f7f 00 02 002d", "finite levels"),
        ("01 02 0000803f 04 02 002d", "zero of t"),
        ("01 02 0000803f 00 7f 002d", "bytes of t"),
        ("01 02 0000803f 00 02 00", "codes of t"),
        ("01 02 0000803f 00 02 002d 00", "the end"),
        ("01 00 00", "the end"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        NnadqCodec().decode(Payload("nnadq.v1", bytes.fromhex(body)), vector([0.0] * 4).spec)


@pytest.mark.parametrize("units", [(-4, 0), (-7, 0), (-7, 3), (4, 0), (-380, 0, 3)])
@pytest.mark.parametrize("sigma", [0.01, 1e-44])
def test_a_range_of_a_few_subnormal_units_is_read_back_and_zeros_stay(units, sigma):
    """A third of four units is rounded to one: the zero point was beyond the levels, which readers refuse."""
    values = torch.tensor(units, dtype=torch.float64).mul(2.0**-149).float()
    found = through(NnadqCodec(sigma), vector(values))["t"]
    assert not found[values == 0].any()
    assert bool(((found - values).abs() <= values.abs()).all())


def test_the_smallest_sigma_has_the_most_levels():
    """Range over σ is beyond fp64, and was an OverflowError."""
    values = vector(torch.linspace(-1, 1, 300))
    assert NnadqCodec(5e-324).encode(values, key=KEY) == NnadqCodec(1e-9).encode(values, key=KEY)
