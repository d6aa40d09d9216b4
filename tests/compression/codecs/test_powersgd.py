import numpy as np
import pytest
import torch

from headwater.compression.codecs.powersgd import PowersgdCodec
from headwater.errors import ConfigError, DecodeError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY, same


def matrix(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    return AdapterState(StateSpec.of([TensorSpec("t", tuple(values.shape), "head")]), {"t": values})


def through(codec, state):
    return codec.decode(codec.encode(state, key=KEY), state.spec)["t"]


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_the_best_rank_one_of_f4():
    # algorithms F4: singular values 2.0268640995 and 0.8011378920
    state = matrix([[0.25, 1.25], [0.75, 0], [1, 1.25]])
    found = through(PowersgdCodec(1, 10), state)
    best = [[0.6343605275, 1.0081472994], [0.2127258497, 0.3380711466], [0.8470863771, 1.3462184460]]
    assert torch.allclose(found, torch.tensor(best), atol=1e-6)
    assert float((found - state["t"]).norm()) == pytest.approx(0.8011378920, abs=1e-6)


def test_low_rank_is_exact_and_sent_in_its_factors():
    state = matrix(normal(40, 3) @ normal(3, 30))
    body = PowersgdCodec(3).encode(state, key=KEY).body
    assert len(body) == 2 + 4 * 3 * (40 + 30)
    assert torch.allclose(through(PowersgdCodec(3), state), state["t"], atol=1e-4)
    assert torch.allclose(through(PowersgdCodec(5), state), state["t"], atol=1e-4)  # two columns of zeros


def test_close_to_the_svd():
    values = normal(60, 50)
    spectrum = torch.linalg.svdvals(values.double())
    best = float(spectrum[4:].square().sum())
    lost = float((through(PowersgdCodec(4, 5), matrix(values)) - values).double().square().sum())
    assert best <= lost < 1.1 * best


def test_twice_is_nearly_once():
    once = through(PowersgdCodec(2), matrix(normal(30, 20)))
    assert torch.allclose(through(PowersgdCodec(2), matrix(once)), once, atol=1e-5)


def test_what_a_mask_zeroes_stays_zero():
    values = normal(30, 20)
    values[10:] = 0
    values[:, 3] = 0
    found = through(PowersgdCodec(2), matrix(values))
    assert not found[10:].any()
    assert not found[:, 3].any()


def test_small_tensors_and_vectors_are_exact():
    for state in (matrix(normal(2, 3)), matrix(normal(500))):
        assert same(PowersgdCodec(2).decode(PowersgdCodec(2).encode(state, key=KEY), state.spec), state)


def test_the_key_decides_the_start_only():
    state = matrix(normal(30, 20))
    bodies = {PowersgdCodec(1, 1).encode(state, key=KEY.child(i)).body for i in range(3)}
    assert len(bodies) == 3


def test_frozen_bytes():
    state = matrix(np.outer([1, 2, 3, 4], [1, 0, -1]).astype(np.float32))
    assert PowersgdCodec(1).encode(state, key=KEY).body.hex() == (
        "0101baf43a3ebaf4ba3e8c370c3fbaf43a3f6f45af40000000006f45afc0"
    )


@pytest.mark.parametrize(("rank", "iterations"), [(0, 1), (1025, 1), (1, 0)])
def test_settings_out_of_range(rank, iterations):
    with pytest.raises(ConfigError, match="rank"):
        PowersgdCodec(rank, iterations)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "version"),
        ("02", "version"),
        ("01 00", "rank of at least"),
        ("01 8108", "rank of at most"),
        ("01 01" + "0000803f" * 6, "values"),
        ("01 01" + "0000803f" * 8, "the end"),
        ("01 01" + "0000c07f" * 7, "finite"),
        ("01 01" + "ffff7f7f" * 7, "tensor t: finite"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        PowersgdCodec().decode(Payload("powersgd.v1", bytes.fromhex(body)), matrix(torch.zeros(4, 3)).spec)


def test_columns_that_hardly_differ_are_orthonormal_all_the_same():
    """Of the second 2e-10 is left, of which rounding errors are a millionth: one pass leaves them in."""
    matrix = torch.zeros(8, 8)
    matrix[0, 0], matrix[1, 1] = 1.0, 2e-10
    spec = StateSpec.of([TensorSpec("t", (8, 8), "vector")])
    for number in range(20):
        body = PowersgdCodec(2, 1).encode(AdapterState(spec, {"t": matrix}), key=KEY.child(number)).body
        p = np.frombuffer(body[2 : 2 + 4 * 16], "<f4").reshape(8, 2).astype(np.float64)
        assert abs(float(p[:, 0] @ p[:, 1])) < 1e-9
