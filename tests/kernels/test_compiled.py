"""Compiled loops give the bits of NumPy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.errors import UpdateRejected
from headwater.kernels import compiled
from headwater.kernels.gate import Gate
from headwater.merging import TiesAggregator
from headwater.merging.accumulator_bytes import dump
from headwater.merging.fixed_point import add_bounded
from headwater.merging.largest import Cut
from headwater.merging.offline.rules.ties import Ties
from headwater.merging.plan import MergePlan, Update
from headwater.state import AdapterState, StateSpec, TensorSpec
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


def ties_of(who: str, rows: list[np.ndarray], weights: list[int], density: float, *, apart: bool) -> bytes:
    """The accumulator, whose updates are in two halves if ``apart``, and what it comes to."""
    spec, rule = StateSpec.of([TensorSpec("a", (rows[0].size,), "vector")]), TiesAggregator(density)
    plan = MergePlan(spec, {f"c{i}": weight for i, weight in enumerate(weights)}, 16.0)
    with computed_by(who):
        halves = [rule.init(plan), rule.init(plan)]
        for i, row in enumerate(rows):
            acc, delta = halves[i % 2 if apart else 0], AdapterState.from_vector(spec, torch.from_numpy(row))
            before = row.tobytes()
            rule.add(acc, Update(f"c{i}", 0, delta, 1))
            assert row.tobytes() == before
        together = rule.combine(*halves)
        written = dump(rule, together)
        return written + rule.finalize(together).delta.vector().numpy().tobytes()


@given(
    st.integers(1, 9),
    SINGLES,
    st.sampled_from([0.01, 0.2, 0.5, 1.0]),
    st.lists(st.integers(1, 2**28), min_size=9, max_size=9),
    st.booleans(),
)
@settings(deadline=None)
def test_ties_is_the_same(
    count: int, values: list[float], density: float, weights: list[int], apart: bool
) -> None:
    rows = [np.roll(np.resize(np.float32(values), 70), i * i) for i in range(count)]
    got = [ties_of(who, rows, weights[:count], density, apart=apart) for who in BOTH]
    assert got[0] == got[1]


@pytest.mark.parametrize("size", [2**14 - 1, 2**16 + 5])  # where nobody samples, and where they do
@pytest.mark.parametrize("digits", [1, 9])  # with and without ties of magnitudes
def test_ties_of_long_updates_is_the_same(size: int, digits: int) -> None:
    draw = np.random.default_rng(size)
    rows = [draw.normal(size=size).round(digits).astype(np.float32) for _ in range(5)]
    got = [ties_of(who, rows, [3, 2**28, 1, 7, 2**20], 0.2, apart=False) for who in BOTH]
    assert got[0] == got[1]


def test_the_float_next_below_the_cut_of_each_of_four_is_left_out() -> None:
    row = np.full(50, np.nextafter(np.float32(1), np.float32(0)))
    row[::5] = 1
    rows = [np.roll(row, i) for i in range(4)]
    got = [ties_of(who, rows, [1, 1, 1, 1], 0.2, apart=False) for who in BOTH]
    assert got[0] == got[1]


def test_ties_refuses_one_of_those_that_wait_and_keeps_the_others() -> None:
    rows = [np.float32([1, -2, 3, 4]), np.float32([1, 2, 3, 4]), np.float32([5, -2, 0, 1])]
    rows[1].view(np.uint32)[:] = 0x7FFFFFFF  # NaN, which no magnitude is above
    spec, rule = StateSpec.of([TensorSpec("a", (4,), "vector")]), TiesAggregator(0.5)
    plan = MergePlan(spec, {"c0": 1, "c1": 2, "c2": 3}, 16.0)
    got = []
    for who in BOTH:
        with computed_by(who):
            acc = rule.init(plan)
            for i, row in [(0, rows[0]), (2, rows[2]), (1, rows[1])]:
                update = Update(f"c{i}", 0, AdapterState.from_vector(spec, torch.from_numpy(row)), 1)
                if i == 1:
                    with pytest.raises(UpdateRejected, match="client c1, tensor a"):
                        rule.add(acc, update)
                else:
                    rule.add(acc, update)
            got.append(dump(rule, acc))
    assert got[0] == got[1]


@given(
    st.lists(st.sampled_from([0.0, -0.0, 5e-324, -1e-310, 1e300]) | st.floats(-1e9, 1e9), min_size=1),
    st.floats(-2, 2),
)
@settings(deadline=None)
def test_shares_are_elected_alike(values: list[float], weight: float) -> None:
    vector, got = np.array(values), []
    for who in BOTH:
        sums = tuple(np.linspace(0, 1, vector.size) for _ in range(4))
        with computed_by(who):
            for _ in range(2):
                Ties().add(sums, vector, weight, (np.empty(vector.size), np.empty(vector.size)))
        got.append(b"".join(total.tobytes() for total in sums))
    assert got[0] == got[1]


def test_a_function_without_a_place_for_its_machine_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KEPT", True)
    names: dict[str, object] = {}
    exec("def twice(x):\n    return 2 * x", names)  # of no file, so numba finds no folder to keep it in
    assert compiled._compiled(numba.int64(numba.int64))(names["twice"])(21) == 42
    assert not compiled.KEPT


@pytest.mark.parametrize("left", [b"", b"\xac\x00 garbage"])
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_kept_machine_code_that_a_power_cut_damaged_is_made_anew(
    left: bytes,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was enough for NumPy to fold for ever."""
    monkeypatch.setattr(compiled, "KEPT", True)
    source = tmp_path / "thrice.py"
    source.write_text("def thrice(x):\n    return 3 * x\n")

    def made() -> int:
        names: dict[str, Any] = {}
        exec(compile(source.read_text(), source, "exec"), names)
        return int(compiled._compiled(numba.int64(numba.int64))(names["thrice"])(14))

    assert made() == 42
    assert compiled.KEPT
    kept = list((tmp_path / "__pycache__").glob("*" + suffix))
    assert kept, "numba keeps it"
    for file in kept:
        file.write_bytes(left)
    assert made() == 42
    assert not compiled.KEPT
    assert "remove it" in caplog.text


def test_loops_that_numba_was_told_not_to_compile_are_not_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python they took a second for 200,000 values."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    name = compiled.__name__
    monkeypatch.delitem(sys.modules, name)
    assert Gate().open() is None
    assert name not in sys.modules
