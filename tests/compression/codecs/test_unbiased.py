"""qsgd and randk: right on average, and never further off than their papers say."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from headwater.compression.codecs.qsgd import QsgdCodec
from headwater.compression.codecs.randk import RandkCodec
from headwater.compression.table import codec_for
from headwater.config.codec import Codec
from headwater.errors import ConfigError, DecodeError, TrainingError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY

SPEC = StateSpec.of([TensorSpec("a", (5, 3), "vector"), TensorSpec("b", (70,), "vector")])
STATE = AdapterState.from_vector(SPEC, torch.randn(85, generator=torch.Generator().manual_seed(4)) ** 3)
KEYS = [KEY.child(i) for i in range(2000)]


def vector(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    spec = StateSpec.of([TensorSpec("t", tuple(values.shape), "vector")])
    return AdapterState(spec, {"t": values})


def qsgd_variance(levels, bucket):
    """The bound of Alistarh et al., lemma 3.1, over all buckets."""
    return sum(
        min(len(part) / levels**2, len(part) ** 0.5 / levels) * float(part.double().square().sum())
        for tensor in STATE.values()
        for part in tensor.flatten().split(bucket)
    )


def randk_variance(density):
    """Exactly (N/n − 1)·‖x‖² of each tensor."""
    return sum(
        (t.numel / max(1, int(density * t.numel)) - 1) * float(STATE[t.name].double().square().sum())
        for t in SPEC
    )


@pytest.mark.parametrize(
    ("codec", "bound", "exact"),
    [
        (QsgdCodec(1, 16), qsgd_variance(1, 16), False),
        (QsgdCodec(7, 512), qsgd_variance(7, 512), False),
        (RandkCodec(0.2), randk_variance(0.2), True),
    ],
)
def test_unbiased_within_the_variance(codec, bound, exact):
    true = STATE.vector().double()
    errors = torch.stack(
        [codec.decode(codec.encode(STATE, key=key), SPEC).vector().double() - true for key in KEYS]
    )
    variance = float(errors.square().sum(1).mean())
    assert variance <= bound * 1.1
    assert variance >= bound * 0.9 or not exact
    # the mean of 2000 has a 2000th of the variance; a bias would stay
    assert float(errors.mean(0).square().sum()) <= 1.5 * variance / len(KEYS)


def test_golden_qsgd():
    # algorithms F10: v = [3, −4], s = 2, norm 5: each value is 1/2 or 1 of it, with P(1) = 0.2 and 0.6
    codec = QsgdCodec(2, 16)
    body = codec.encode(vector([3, -4]), key=KEY).body
    assert body[:8].hex() == "0102100000a04000"
    found = [
        tuple(codec.decode(codec.encode(vector([3, -4]), key=k), vector([3, -4]).spec)["t"].tolist())
        for k in KEYS
    ]
    assert set(found) == {(2.5, -2.5), (5.0, -2.5), (2.5, -5.0), (5.0, -5.0)}
    assert np.mean([a == 5 for a, _ in found]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([b == -5 for _, b in found]) == pytest.approx(0.6, abs=0.04)


def test_frozen_bytes():
    assert (
        QsgdCodec(7, 512).encode(vector([0.3, 0.0, -1.0, 0.25]), key=Key.root(1)).body.hex()
        == "01078004f169893f009719"
    )
    assert (
        RandkCodec(0.5).encode(vector([1.0, 2.0, 3.0, 4.0]), key=Key.root(1)).body.hex()
        == "01291389a2897375563a1cc368e54d0c9d020000803f00004040"
    )
    fixed = RandkCodec(0.5, bytes(range(16))).encode(vector([1.0, 2.0, 3.0, 4.0, 5.0]), key=KEY)
    assert fixed.body.hex() == "01000102030405060708090a0b0c0d0e0f020000404000008040"


def test_zeros_cost_little_and_norms_bound_values():
    values = torch.zeros(5000)
    values[::100] = 1e-3
    assert len(QsgdCodec(7, 512).encode(vector(values), key=KEY).body) < 200
    tiny = vector([2.0**-149, -(2.0**-149), 3e-39])
    assert QsgdCodec().decode(QsgdCodec().encode(tiny, key=KEY), tiny.spec).isfinite()


@pytest.mark.parametrize("codec", [QsgdCodec(), RandkCodec(0.001)])
def test_what_cannot_be_scaled_is_a_training_error(codec):
    with pytest.raises(TrainingError, match="diverged"):
        codec.encode(vector([3.3e38] * 3000), key=KEY)


def test_sums_of_shared_payloads_are_the_payload_of_the_sum():
    codec = RandkCodec(0.3, Key.root(3).digest[:16])
    clients = [
        AdapterState.from_vector(
            SPEC, torch.randint(-9, 9, (85,), generator=torch.Generator().manual_seed(i)).float()
        )
        for i in range(4)
    ]
    bodies = [codec.encode(state, key=KEY.child(i)).body for i, state in enumerate(clients)]
    heads = {body[: 1 + 16 + 2] for body in bodies}
    assert len(heads) == 1  # the same places, in the same order
    total = sum(np.frombuffer(body[19:], "<f4") for body in bodies)
    summed = clients[0] + clients[1] + clients[2] + clients[3]
    assert codec.encode(summed, key=KEY).body == bodies[0][:19] + total.astype("<f4").tobytes()


def test_places_are_uniform():
    codec = RandkCodec(0.3)
    state = vector(torch.ones(10))
    hits = sum((codec.decode(codec.encode(state, key=k), state.spec)["t"] > 0).double() for k in KEYS) / len(
        KEYS
    )
    assert float((hits - 0.3).abs().max()) < 0.05


def test_the_plan_of_a_round_shares_the_places():
    ours = TypeAdapter(Codec).validate_python({"kind": "randk", "shared": True})
    first, again, second = (ours.for_round(mask) for mask in ("0" * 32, "0" * 32, "1" * 32))
    bodies = [codec_for(s).encode(STATE, key=KEY.child(i)).body for i, s in enumerate((first, again, second))]
    assert bodies[0] == bodies[1] != bodies[2]
    with pytest.raises(DecodeError, match="all clients of this round"):
        codec_for(second).decode(Payload("randk.v1", bodies[0]), SPEC)
    fewer = ours.model_copy(update={"density": 0.04}).for_round("0" * 32)
    with pytest.raises(DecodeError, match="all clients of this round"):
        codec_for(first).decode(codec_for(fewer).encode(STATE, key=KEY), SPEC)
    alone = TypeAdapter(Codec).validate_python({"kind": "randk"})
    assert alone.for_round("0" * 32) == alone


@pytest.mark.parametrize(("levels", "bucket"), [(0, 512), (128, 512), (7, 15), (7, 65_537)])
def test_settings_out_of_range(levels, bucket):
    with pytest.raises(ConfigError, match="levels"):
        QsgdCodec(levels, bucket)


@pytest.mark.parametrize(
    ("codec", "body", "why"),
    [
        (QsgdCodec(), "02", "version"),
        (QsgdCodec(), "01 00", "levels"),
        (QsgdCodec(), "01 80", "levels"),
        (QsgdCodec(), "01 02 0f", "bucket of at least"),
        (QsgdCodec(), "01 02 10 000080bf 00 00", "at least 0"),
        (QsgdCodec(), "01 02 10 0000a040 00 50", "symbols below 5"),
        (QsgdCodec(), "01 02 10 0000a040 00", "packed symbols"),
        (RandkCodec(), "02", "version"),
        (RandkCodec(), "01 00", "key of places"),
        (RandkCodec(), "01" + "00" * 16 + "03", "kept values of t"),
        (RandkCodec(), "01" + "00" * 16 + "00", "kept value in every tensor"),
        (RandkCodec(), "01" + "00" * 16 + "01 0000c07f", "finite"),
        (RandkCodec(), "01" + "00" * 16 + "01 ffff7f7f", "once scaled"),
        (RandkCodec(), "01" + "00" * 16 + "01 0000803f00", "at most 4 bytes"),
    ],
)
def test_what_is_refused(codec, body, why):
    with pytest.raises(DecodeError, match=why):
        codec.decode(Payload(codec.id, bytes.fromhex(body)), vector([3, -4]).spec)


def test_no_norm_of_qsgd_is_below_its_buckets():
    """A norm rounded down makes levels too likely: every value would be off to one side."""
    draws = np.random.default_rng(2)
    values = draws.normal(size=64 * 50).astype(np.float32)
    state = AdapterState.from_vector(
        StateSpec.of([TensorSpec("t", (values.size,), "vector")]), torch.from_numpy(values)
    )
    body = QsgdCodec(7, 64).encode(state, key=KEY).body
    norms = np.frombuffer(body[3 : 3 + 4 * 50], "<f4").astype(np.float64)  # version, levels, one byte of 64
    exact = np.sqrt(np.square(values.astype(np.float64)).reshape(50, 64).sum(axis=1))
    assert bool((norms >= exact).all())
    assert bool((norms <= exact * (1 + 2.0**-23)).all())
