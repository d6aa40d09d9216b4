"""The rules against golden vectors and against naive oracles in exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.compression.logquant import LogQuantCodec
from headwater.errors import ConfigError, SpecMismatch, UpdateRejected
from headwater.merging import FisherAggregator, MeanAggregator, Merged, TiesAggregator
from headwater.merging.fixed_point import BLOCK
from headwater.merging.plan import MergePlan, Update
from headwater.merging.ties import trim
from headwater.seeds.keys import Key
from headwater.state import AdapterState, SparseState, StateSpec, TensorSpec
from tests.laws.aggregator_laws import state_of, update_of

GRID = st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 3.0])
NUMBERS = st.one_of(GRID, st.floats(-16, 16, width=32))


def merge(
    rule: Any, deltas: Sequence[Any], weights: Sequence[int], fishers: Sequence[Any] | None = None
) -> Merged:
    spec = StateSpec.of([TensorSpec("v", (len(deltas[0]),), "vector")])
    plan = MergePlan(spec, {f"c{i}": w for i, w in enumerate(weights)}, 16.0)
    acc = rule.init(plan)
    for i, delta in enumerate(deltas):
        acc = rule.add(acc, update_of(spec, f"c{i}", delta, None if fishers is None else fishers[i]))
    merged: Merged = rule.finalize(acc)
    return merged


@st.composite
def cohorts(draw: Any) -> tuple[list[list[float]], list[int]]:
    size, count = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(NUMBERS, min_size=size, max_size=size), min_size=count, max_size=count))
    return rows, draw(st.lists(st.integers(1, 5000), min_size=count, max_size=count))


# --- mean ---


@given(cohorts())
def test_mean_matches_exact_arithmetic(cohort: Any) -> None:
    rows, weights = cohort
    merged = merge(MeanAggregator(), rows, weights)
    unit = merged.report["resolution"]
    for j, got in enumerate(merged.delta.vector().tolist()):
        exact = sum(w * Fraction(row[j]) for w, row in zip(weights, rows, strict=True)) / sum(weights)
        assert abs(got - exact) <= unit / 2 + abs(float(exact)) * 2.0**-23
    assert merged.weight == sum(weights)
    assert merged.clients == tuple(sorted(merged.clients))


@pytest.mark.parametrize("rule", [MeanAggregator(), TiesAggregator(1.0), FisherAggregator()])
@pytest.mark.parametrize("size", [1, BLOCK, 2 * BLOCK + 1])
def test_one_client_comes_back_unchanged(rule: Any, size: int) -> None:
    """Whole blocks and odd ends: every coordinate is folded, once."""
    row = np.float32(np.random.default_rng(size).uniform(0.5, 15.0, size=size))
    got = merge(rule, [row], [977], [np.full(size, 0.75)]).delta.vector().numpy()
    np.testing.assert_allclose(got, row, rtol=2.0**-22)


# --- TIES ---

F2 = [
    [1.0, -0.5, 0.2, 0.0, 0.6, -0.1],
    [-0.4, 0.5, -0.3, 0.8, 0.1, -0.2],
    [0.7, -0.9, 0.1, -0.2, 0.5, 0.3],
]


def test_ties_golden_unweighted() -> None:
    merged = merge(TiesAggregator(0.5), F2, [1, 1, 1])
    assert merged.delta.vector().tolist() == pytest.approx([0.85, -0.7, 0, 0.8, 0.55, 0], abs=1e-7)
    assert merged.report["kept"] == pytest.approx(4 / 6)
    assert merged.report["conflicts"] == pytest.approx(2 / 6)
    assert merged.report["ties"] == 0.0


def test_ties_golden_weighted_is_mergekits() -> None:
    merged = merge(TiesAggregator(0.5), F2, [5, 3, 2])
    expected = [0.9142857143, -0.6142857143, 0, 0.8, 0.5714285714, 0]
    assert merged.delta.vector().tolist() == pytest.approx(expected, abs=1e-7)


def test_an_exact_tie_is_zero_and_counted() -> None:
    merged = merge(TiesAggregator(1.0), [[0.5, 1.0], [-0.5, 1.0]], [1, 1])
    assert merged.delta.vector().tolist() == [0.0, 1.0]
    assert merged.report["ties"] == 0.5


def test_a_tie_of_unequal_weights_is_zero_too() -> None:
    merged = merge(TiesAggregator(1.0), [[0.25], [0.25], [-0.125]], [1, 2, 6])
    assert merged.delta.vector().tolist() == [0.0]


def trimmed(row: Sequence[float], n: int) -> list[Fraction]:
    order = sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))[:n]
    return [Fraction(value) if j in order else Fraction(0) for j, value in enumerate(row)]


@given(cohorts(), st.sampled_from([0.1, 0.2, 0.5, 0.75, 1.0]))
def test_ties_matches_exact_arithmetic(cohort: Any, density: float) -> None:
    rows, weights = cohort
    merged = merge(TiesAggregator(density), rows, weights)
    size = len(rows[0])
    bits = MergePlan(merged.delta.spec, dict(zip("abcde", weights, strict=False)), 16.0).scale_bits()
    unit = Fraction(1, 2**bits)
    kept = [trimmed(row, max(1, int(density * size))) for row in rows]
    for j, got in enumerate(merged.delta.vector().tolist()):
        column = [(w, round(row[j] / unit) * unit) for w, row in zip(weights, kept, strict=True)]
        up, down = sum(w * max(v, 0) for w, v in column), sum(w * max(-v, 0) for w, v in column)
        sign = (up > down) - (up < down)
        agree = [(w, v) for w, v in column if v * sign > 0]
        exact = sum(w * v for w, v in agree) / sum(w for w, _ in agree) if agree else Fraction(0)
        assert got == pytest.approx(float(exact), rel=2.0**-23, abs=1e-45)


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.data())
def test_trimming_orders_by_magnitude_then_index(values: list[float], data: Any) -> None:
    n = data.draw(st.integers(1, len(values)))
    vector = torch.tensor(values, dtype=torch.float32)
    trim(vector, n)
    assert vector.tolist() == [float(v) for v in trimmed(values, n)]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_ties_density_must_be_a_fraction(density: float) -> None:
    with pytest.raises(ConfigError, match="density"):
        TiesAggregator(density)


# --- Fisher ---

F3_DELTAS = [[1.0, 2.0, 3.0], [3.0, -2.0, 1.0]]
F3 = np.array([[1.0, 0.0, 4.0], [3.0, 0.0, 0.0]]) * 0.5  # a common factor cancels; means ≤ 1


def test_fisher_golden_raw() -> None:
    merged = merge(FisherAggregator(cap=256.0), F3_DELTAS, [1, 1], F3)
    assert merged.delta.vector().tolist() == pytest.approx([2.5, 0.0, 3.0], abs=1e-6)
    assert merged.report["uninformed"] == pytest.approx(1 / 3)
    assert merged.report["mass"] == pytest.approx(F3.mean())


def test_fisher_golden_epsilon() -> None:
    merged = merge(FisherAggregator(cap=256.0, epsilon=0.5e-2), F3_DELTAS, [1, 1], F3)
    exact = [(10 + 4e-2) / (4 + 2e-2), 0.0, (12 + 4e-2) / (4 + 2e-2)]
    assert merged.delta.vector().tolist() == pytest.approx(exact, rel=1e-7)
    small = merge(FisherAggregator(cap=256.0, epsilon=0.5e-6), F3_DELTAS, [1, 1], F3)
    assert small.delta.vector().tolist() == pytest.approx([2.49999975, 0.0, 2.9999995], abs=3e-7)


def test_fisher_golden_normalised_to_mean_one() -> None:
    fishers = [np.array([1.0, 0.0, 4.0]) * 3 / 5, [3.0, 0.0, 0.0]]
    merged = merge(FisherAggregator(cap=256.0), F3_DELTAS, [1, 1], fishers)
    assert merged.delta.vector().tolist() == pytest.approx([9.6 / 3.6, 0.0, 3.0], abs=1e-6)
    assert merged.report["mass"] == pytest.approx(1.0)


def test_where_nobody_is_informed_the_weighted_mean_stays() -> None:
    merged = merge(FisherAggregator(), [[2.0, 1.0], [-1.0, 1.0]], [1, 3], [[0.0, 1.0], [0.0, 2.0]])
    assert merged.delta.vector().tolist() == pytest.approx([-0.25, 1.0])


@given(cohorts(), st.data())
def test_fisher_matches_exact_arithmetic(cohort: Any, data: Any) -> None:
    rows, weights = cohort
    size = len(rows[0])
    value = st.one_of(st.sampled_from([0.0, 1.0, 1e-6]), st.floats(0, 1, width=32))
    fishers = [data.draw(st.lists(value, min_size=size, max_size=size)) for _ in rows]
    fishers = np.float32(fishers).tolist()
    merged = merge(FisherAggregator(), rows, weights, fishers)
    for j, got in enumerate(merged.delta.vector().tolist()):
        parts = [
            (w * (Fraction(f[j]) + Fraction(1e-8)), Fraction(row[j]))
            for w, f, row in zip(weights, fishers, rows, strict=True)
        ]
        exact = float(sum(f * v for f, v in parts) / sum(f for f, _ in parts))
        scale = max(abs(row[j]) for row in rows)  # F below 2^-34 rounds away: about 1 % of epsilon
        assert got == pytest.approx(exact, rel=1e-6, abs=0.02 * scale + 1e-12)


def test_small_fishers_keep_their_digits() -> None:
    """Nine decades of F at LoRA's delta sizes: a single limb of the product is off by 100 % here."""
    rng = np.random.default_rng(0)
    size, weights = 20_000, [40_000, 60_000, 100_000]
    deltas = np.float32(rng.normal(size=(3, size)) * 1e-4)
    fishers = np.exp(rng.normal(size=(3, size)) * 3.0)
    fishers = np.float32(np.minimum(fishers / fishers.mean(axis=1, keepdims=True), 256.0))
    got = merge(FisherAggregator(), deltas, weights, fishers).delta.vector().double().numpy()
    w = np.array(weights)[:, None]
    full = fishers.astype(np.float64) + 1e-8
    exact = (w * full * deltas).sum(0) / (w * full).sum(0)
    assert fishers.min() < 1e-6
    assert np.abs(got - exact).max() <= 1e-3 * 1e-4


def test_a_fisher_that_is_not_normalised_is_refused() -> None:
    rule = FisherAggregator(cap=256.0)
    with pytest.raises(
        UpdateRejected, match=r"client c0, fisher: expected values scaled to mean 1, got mean 1\.07"
    ):
        merge(rule, [[1.0, 1.0]], [1], [[1.07, 1.07]])


def test_the_codec_may_round_an_honest_fisher_up() -> None:
    """The worst case: all but the maximum just above the middle between two levels."""
    size = 100_000
    fisher = np.full(size, 2.0**-10.083, dtype=np.float32)
    fisher[0] = 1.0
    fisher /= fisher.mean(dtype=np.float64)
    spec = StateSpec.of([TensorSpec("v", (size,), "vector")])
    codec = LogQuantCodec()
    travelled = codec.decode(codec.encode(state_of(spec, fisher), key=Key.root(0)), spec).vector().numpy()
    assert travelled.mean(dtype=np.float64) / fisher.mean(dtype=np.float64) > 1.05
    merge(FisherAggregator(cap=2048.0), [np.zeros(size)], [1], [travelled])


@pytest.mark.parametrize("value", [-1e-6, 5.1, float("nan"), float("inf")])
def test_bad_fishers_are_refused_and_leave_no_trace(value: float) -> None:
    spec = StateSpec.of([TensorSpec("v", (9,), "vector")])
    rule = FisherAggregator(cap=5.0)
    acc = rule.init(MergePlan(spec, {"a": 1}, 16.0))
    with pytest.raises(UpdateRejected, match=r"client a, fisher, tensor v"):
        rule.add(acc, update_of(spec, "a", [1.0] * 9, [0.5] * 8 + [value]))
    assert not acc.delta.any()
    assert not acc.fisher.any()
    assert not acc.participants.clients


def test_a_missing_or_foreign_fisher_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="statistic 'fisher'"):
        merge(FisherAggregator(), [[1.0]], [1])
    spec = StateSpec.of([TensorSpec("v", (1,), "vector")])
    update = update_of(spec, "a", [1.0], [1.0])
    other = update_of(StateSpec.of([TensorSpec("w", (1,), "vector")]), "a", [1.0], [1.0])
    update.statistics["fisher"] = other.statistics["fisher"]  # type: ignore[index]  # a plain dict below
    rule = FisherAggregator()
    with pytest.raises(SpecMismatch, match="client a, statistic fisher"):
        rule.add(rule.init(MergePlan(spec, {"a": 1}, 16.0)), update)


@given(cohorts(), st.data())
def test_a_sparse_update_is_added_like_the_dense_one(cohort: Any, data: Any) -> None:
    rows, weights = cohort
    spec = StateSpec.of([TensorSpec("v", (len(rows[0]) * 5,), "vector")])
    plan = MergePlan(spec, {f"c{i}": w for i, w in enumerate(weights)}, 16.0)
    rule = MeanAggregator()
    sparse, dense = rule.init(plan), rule.init(plan)
    for i, row in enumerate(rows):
        places = np.sort(data.draw(st.permutations(range(spec.numel)))[: len(row)])
        few = SparseState(spec, places, np.array(row, np.float32))
        whole = AdapterState.from_vector(spec, few.vector())
        for acc, delta in ((sparse, few), (dense, whole)):
            rule.add(acc, Update(f"c{i}", 1, delta, 1, 1))
    assert rule.finalize(sparse) == rule.finalize(dense)
    assert torch.equal(sparse.methods[""].total, dense.methods[""].total)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -16.5])
def test_a_sparse_update_beyond_the_bound_is_refused_by_tensor(value: float) -> None:
    spec = StateSpec.of([TensorSpec("a", (4,), "vector"), TensorSpec("b", (4,), "vector")])
    rule, places = MeanAggregator(), np.array([1, 5])
    acc = rule.init(MergePlan(spec, {"c": 1}, 16.0))
    update = Update("c", 1, SparseState(spec, places, np.array([1.0, value], np.float32)), 1, 1)
    with pytest.raises(UpdateRejected, match=r"client c, tensor b.*1 such"):
        rule.add(acc, update)
    assert not acc.methods


def test_a_sparse_update_outside_what_its_client_trains_is_refused() -> None:
    spec = StateSpec.of([TensorSpec("a", (4,), "vector"), TensorSpec("b", (4,), "vector")])
    rule = MeanAggregator()
    acc = rule.init(MergePlan(spec, {"c": 1}, 16.0, tensors={"c": ("a",)}))
    update = Update("c", 1, SparseState(spec, np.array([1, 5]), np.ones(2, np.float32)), 1, 1)
    with pytest.raises(UpdateRejected, match="zeros outside"):
        rule.add(acc, update)
