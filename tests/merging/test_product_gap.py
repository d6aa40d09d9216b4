"""The sketch against dense float64 products."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest

from headwater.merging import GapReport, GapSketch, MeanAggregator
from headwater.merging.plan import MergePlan, Update
from headwater.merging.product_gap import ModuleGap
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.aggregator_laws import lora_spec, state_of

S = 2.0
SPEC = lora_spec(7, 5, 2, scaling=S, head=3)
WEIGHTS = {"a": 3, "b": 1, "c": 4}
PLAN = MergePlan(SPEC, WEIGHTS, 16.0)
Matrix = npt.NDArray[np.float64]


def factors(state: AdapterState) -> tuple[Matrix, Matrix]:
    return state["q.lora_A"].double().numpy(), state["q.lora_B"].double().numpy()


def cohort(seed: int = 0, *, shared_a: bool = False) -> tuple[AdapterState, list[Update], AdapterState]:
    """Base state, one update per client, and the base plus the mean delta."""
    rng = np.random.default_rng(seed)
    base = state_of(SPEC, rng.normal(size=SPEC.numel))
    updates = []
    for client in WEIGHTS:
        values = rng.normal(size=SPEC.numel)
        if shared_a:
            values[3 : 3 + 14] = 0.125  # the head, then A, then B in name order
        updates.append(Update(client, 1, state_of(SPEC, values), examples=1))
    rule = MeanAggregator()
    acc = rule.init(PLAN)
    for update in updates:
        acc = rule.add(acc, update)
    return base, updates, base + rule.finalize(acc).delta


def dense(base: AdapterState, updates: list[Update], merged: AdapterState) -> tuple[Matrix, Matrix]:
    """G and Σ p·s·B·A."""
    total = sum(WEIGHTS.values())
    ideal = np.zeros((5, 7))
    for update in updates:
        a, b = (x + y for x, y in zip(factors(base), factors(update.delta), strict=True))
        ideal += WEIGHTS[update.client] / total * S * b @ a
    a, b = factors(merged)
    return ideal - S * b @ a, ideal


def run(sketch: GapSketch, updates: list[Update], merged: AdapterState) -> GapReport:
    acc = sketch.init(PLAN)
    for update in updates:
        acc = sketch.add(acc, update)
    return sketch.finalize(acc, merged)


def test_it_is_the_projection_of_the_dense_gap() -> None:
    base, updates, merged = cohort()
    sketch = GapSketch(base, key=Key.root(1), probes=4)
    report = run(sketch, updates, merged)
    gap, ideal = dense(base, updates, merged)
    signs = sketch._signs["q.lora_B"].numpy()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert report.total.gap == pytest.approx(np.linalg.norm(gap @ signs) / 2.0, rel=1e-6)
    assert report.total.product == pytest.approx(np.linalg.norm(ideal @ signs) / 2.0, rel=1e-6)
    assert report.total.relative == report.total.gap / report.total.product
    assert report.saturated == 0
    assert not report.exact


def test_the_gap_is_the_covariance_of_the_factors() -> None:
    base, updates, merged = cohort()
    gap, _ = dense(base, updates, merged)
    total = sum(WEIGHTS.values())
    mean_a, mean_b = factors(merged)
    covariance = np.zeros((5, 7))
    for update in updates:
        a, b = (x + y for x, y in zip(factors(base), factors(update.delta), strict=True))
        covariance += WEIGHTS[update.client] / total * S * (b - mean_b) @ (a - mean_a)
    assert np.abs(gap - covariance).max() < 1e-5  # the merged state is float32
    assert np.linalg.norm(gap) > 1.0


def test_its_square_is_unbiased_with_the_stated_power() -> None:
    base, updates, merged = cohort()
    truth = float(np.linalg.norm(dense(base, updates, merged)[0]) ** 2)
    squares = [
        run(GapSketch(base, key=Key.root(2).child(i), probes=8), updates, merged).total.gap ** 2
        for i in range(300)
    ]
    stated = math.sqrt(2 / 8)
    assert abs(np.mean(squares) / truth - 1) < 4 * stated / math.sqrt(300)  # 4 standard errors: 12 %
    assert np.std(squares) / truth < 1.2 * stated


def test_factors_that_agree_on_a_have_no_gap() -> None:
    base, updates, merged = cohort(shared_a=True)
    report = run(GapSketch(base, key=Key.root(1)), updates, merged)
    assert report.total.relative < 1e-6
    assert report.total.product > 1.0


def test_modules_add_up_and_signs_differ_between_them() -> None:
    tensors = []
    for module in "kv":
        tensors += [
            TensorSpec(f"{module}.lora_A", (2, 64), "lora_a"),
            TensorSpec(f"{module}.lora_B", (4, 2), "lora_b", pair=f"{module}.lora_A"),
            TensorSpec(f"{module}.magnitude", (4,), "dora_magnitude"),
        ]
    spec = StateSpec.of(tensors)
    base = AdapterState.zeros(spec)
    rng = np.random.default_rng(0)
    plan = MergePlan(spec, {"a": 1}, 16.0)
    sketch = GapSketch(base, key=Key.root(1), probes=2)
    delta = state_of(spec, rng.normal(size=spec.numel))
    report = sketch.finalize(sketch.add(sketch.init(plan), Update("a", 1, delta, 1)), base)
    assert set(report.modules) == {"k.lora_B", "v.lora_B"}
    assert report.total.gap == pytest.approx(math.hypot(*(m.gap for m in report.modules.values())))
    assert not (sketch._signs["k.lora_B"] == sketch._signs["v.lora_B"]).all()
    doubled = AdapterState(spec, {n: v * 2 if "magnitude" in n else v for n, v in delta.items()})
    again = sketch.finalize(sketch.add(sketch.init(plan), Update("a", 1, doubled, 1)), base)
    assert again == report  # DoRA's magnitudes are outside the sketch


def test_where_a_does_not_travel_the_gap_is_zero_by_algebra() -> None:
    spec = StateSpec.of([TensorSpec("q.lora_B", (5, 2), "lora_b", pair="q.lora_A", scaling=2.0)])
    base = AdapterState.zeros(spec)
    sketch = GapSketch(base, key=Key.root(1))
    acc = sketch.add(
        sketch.init(MergePlan(spec, {"a": 1}, 1.0)), Update("a", 1, state_of(spec, [1.0] * 10), 1)
    )
    report = sketch.finalize(acc, base)
    assert report.exact
    assert report.total.gap == report.total.relative == 0.0
    assert report.modules == {}


def test_without_any_lora_nothing_is_measured() -> None:
    spec = StateSpec.of([TensorSpec("head", (3,), "head")])
    sketch = GapSketch(AdapterState.zeros(spec), key=Key.root(1))
    acc = sketch.add(
        sketch.init(MergePlan(spec, {"a": 1}, 1.0)), Update("a", 1, state_of(spec, [1.0] * 3), 1)
    )
    assert sketch.finalize(acc, AdapterState.zeros(spec)) == GapReport(ModuleGap(0.0, 0.0), {}, 0, 8, True)


def test_where_the_products_cancel_all_that_was_merged_is_error() -> None:
    """One client has A alone, the other B alone: neither changes a weight, their mean does."""
    base = AdapterState.zeros(SPEC)
    only_a, only_b = np.zeros(SPEC.numel), np.zeros(SPEC.numel)
    only_a[3:17], only_b[17:] = 1.0, 1.0
    updates = [Update("a", 1, state_of(SPEC, only_a), 1), Update("b", 1, state_of(SPEC, only_b), 1)]
    report = run(GapSketch(base, key=Key.root(1)), updates, state_of(SPEC, (only_a + only_b) / 2))
    assert report.total.product == 0.0
    assert report.total.gap > 0.0
    assert report.total.relative == 1.0
    assert ModuleGap(0.0, 0.0).relative == 0.0


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e38])
def test_every_report_is_json(value: float, scale: float) -> None:
    base, updates, merged = cohort()
    updates = [Update(u.client, 1, u.delta * scale, 1) for u in updates]
    base = base * scale
    wild = merged.vector()
    wild[5] = value
    for after in (merged * scale, AdapterState.from_vector(SPEC, wild)):
        report = run(GapSketch(base, key=Key.root(1)), updates, after)
        parts = [report.total, *report.modules.values()]
        json.dumps([(p.gap, p.product, p.relative, report.saturated) for p in parts], allow_nan=False)


@pytest.mark.parametrize("value", [1e6, float("inf"), float("nan")])
def test_a_merged_state_beyond_the_bound_saturates_too(value: float) -> None:
    base, updates, merged = cohort()
    wild = merged.vector()
    wild[3] = value  # a value of A: all five rows of B carry it
    report = run(GapSketch(base, key=Key.root(1), probes=4), updates, AdapterState.from_vector(SPEC, wild))
    assert report.saturated == 5 * 4
    assert 0.0 < report.total.gap < 5000.0


@pytest.mark.parametrize("weight", [2**40, 2**45, 2**49 - 1])
def test_weights_that_leave_it_few_bits_shrink_its_bound(weight: int) -> None:
    """Where the rule itself has room, the sketch is no reason to refuse the round."""
    base, updates, _ = cohort()
    plan = MergePlan(SPEC, {"a": weight}, 16.0)
    assert plan.scale_bits() >= 8
    sketch = GapSketch(base, key=Key.root(1), probes=4)
    acc = sketch.init(plan)
    assert acc.bits >= 8
    assert acc.bound == min(1024.0, 2.0 ** (61 - 8 - weight.bit_length()))  # no smaller than it must be
    report = sketch.finalize(sketch.add(acc, updates[0]), base + updates[0].delta)
    values = sketch._project(SPEC.by_name["q.lora_B"], base, updates[0].delta)
    assert report.saturated == 2 * int((values.abs() > acc.bound).sum())  # the client's, and the merged
    assert report.total.gap <= 2.0**-8 * math.sqrt(5)  # one client has no gap; what is left is rounding


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_wild_values_saturate_and_are_counted(value: float) -> None:
    base, updates, merged = cohort()
    wild = updates[0].delta.vector()
    wild[3] = value
    updates[0] = Update("a", 1, AdapterState.from_vector(SPEC, wild), 1)
    report = run(GapSketch(base, key=Key.root(1), probes=4), updates, merged)
    assert report.saturated == 5 * 4
    assert math.isfinite(report.total.gap)


def test_its_memory_does_not_grow_with_clients() -> None:
    base, _, _ = cohort()
    names = {f"c{i}": 1 for i in range(50)}
    sketch = GapSketch(base, key=Key.root(1), probes=3)
    acc = sketch.init(MergePlan(SPEC, names, 16.0))
    for name in names:
        acc = sketch.add(acc, Update(name, 1, base, 1))
    assert {k: tuple(v.shape) for k, v in acc.products.items()} == {"q.lora_B": (5, 3)}
