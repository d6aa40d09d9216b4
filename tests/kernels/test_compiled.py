"""Compiled loops give the bits of NumPy."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.errors import UpdateRejected
from headwater.kernels import compiled
from headwater.merging.fixed_point import add_bounded
from headwater.merging.largest import Cut
from headwater.state import StateSpec, TensorSpec
from tests.support.kernels import computed_by

BOTH = ("numpy", "compiled")
HALVES = [k + 0.5 for k in range(-3, 4)]
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-38, -1.17549435e-38, 16.0, -16.0, *(h * 2.0**-20 for h in HALVES)]
SINGLES = st.lists(st.sampled_from(SPECIAL) | st.floats(-16, 16, width=32), min_size=1, max_size=40)


def added(who: str, values: np.ndarray, bits: int, weight: int) -> bytes:
    spec = StateSpec.of([TensorSpec("a", (values.size,), "vector")])
    total = torch.arange(values.size) - 3
    with computed_by(who):
        vector = torch.from_numpy(values)
        add_bounded(total, vector, spec, bound=16.0, bits=bits, weight=weight, who="client a")
    return total.numpy().tobytes()


@given(SINGLES, st.integers(0, 500), st.integers(-40, 52), st.integers(1, 2**49 - 1))
@example([16.0, -16.0], 0, 8, 2**49 - 1)
@example([16.0, -16.0], 0, 28, 2**29)  # a weight that float64 does not multiply exactly
@example([np.float32(1 / 3), np.float32(15.999999)], 700, 28, 2**29 - 1)
@settings(deadline=None)
def test_sums_are_the_same(values: list[float], shift: int, bits: int, weight: int) -> None:
    bits = min(bits, 57 - weight.bit_length())  # as MergePlan.scale_bits leaves room
    vector = np.resize(np.float32(values), len(values) + shift)
    assert added("compiled", vector, bits, weight) == added("numpy", vector, bits, weight)


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("inf"), float("-inf"), np.nextafter(np.float32(16), 17)]
)
@pytest.mark.parametrize("at", [0, 511, 512, 2000])
def test_a_refused_update_leaves_the_sums_as_they_were(wrong: float, at: int) -> None:
    values = np.random.default_rng(0).normal(size=2001).astype(np.float32)
    values[at] = wrong
    spec = StateSpec.of([TensorSpec("a", (values.size,), "vector")])
    said = []
    for who in BOTH:
        total = torch.arange(values.size)
        vector = torch.from_numpy(values)
        with computed_by(who), pytest.raises(UpdateRejected) as refused:
            add_bounded(total, vector, spec, bound=16.0, bits=30, weight=2**31, who="client a")
        said.append(str(refused.value))
        assert torch.equal(total, torch.arange(values.size))
    assert said[0] == said[1]


def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=2**16 + 3)
    return {
        "normal": normal,
        "ties": np.round(normal, 1),
        "zeros of both signs": np.where(rng.random(normal.size) < 0.05, normal, np.copysign(0.0, normal)),
        "denormals": normal * 1e-42,
        "no order": np.concatenate([np.sort(normal[: 2**15]), normal[2**15 :] * 1e3]),
    }


@pytest.mark.parametrize("kind", vectors())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("density", [1e-4, 0.05, 0.2, 0.9])
def test_the_same_values_are_kept(kind: str, dtype: type, density: float) -> None:
    values = vectors()[kind].astype(dtype)
    cuts = []
    for who in BOTH:
        with computed_by(who):
            cut = Cut.of(values, density)
            cuts.append((cut, cut.apply(values.copy()).tobytes()))
    assert cuts[0] == cuts[1]


def test_a_function_without_a_place_for_its_machine_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KEPT", True)
    names: dict[str, object] = {}
    exec("def twice(x):\n    return 2 * x", names)  # of no file, so numba finds no folder to keep it in
    assert compiled._compiled(numba.int64(numba.int64))(names["twice"])(21) == 42
    assert not compiled.KEPT
