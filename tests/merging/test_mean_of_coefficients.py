"""MeanAggregator over mixed rounds: the laws, a dense oracle in fractions, hostile updates."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headwater.errors import ConfigError, UpdateRejected
from headwater.merging import FisherAggregator, MeanAggregator, TiesAggregator
from headwater.merging.coverage import covered_by
from headwater.merging.method_weights import MethodWeight
from headwater.merging.plan import MergePlan, NoisePlan, Update
from headwater.seeds.coefficients import FINE_BITS, SeedCoefficients, SeedPlan
from headwater.seeds.seeded_state import SeededState
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.aggregator_laws import (
    BOUND,
    SEEDS,
    SPEC,
    AggregatorLaws,
    bits,
    directions,
    mixed_rounds,
    state_of,
    update_of,
)


class TestMixedMeanLaws(AggregatorLaws):
    """The laws of every rule, over updates of both kinds, of parts, and with noise."""

    rounds = staticmethod(mixed_rounds)

    def rule(self, spec: StateSpec) -> Any:
        return MeanAggregator()


def fold(plan: MergePlan, updates: list[Update]) -> Any:
    acc = MeanAggregator().init(plan)
    for update in updates:
        acc = MeanAggregator().add(acc, update)
    return acc


@settings(max_examples=100)
@given(mixed_rounds())
def test_mean_of_mixed_updates_is_the_dense_oracles(round_: Any) -> None:
    """Every update made dense, in fractions; each value's mean over those who train it."""
    plan, updates = round_
    merged = MeanAggregator().finalize(fold(plan, updates))
    assert plan.weighs or merged.noise is None
    shares = {
        name: MethodWeight(
            merged.report.get(f"weight_{name}", 1.0), merged.report.get(f"progress_{name}", 1.0)
        )
        for name in set(plan.groups.values())
    }
    above, below, most = ([Fraction(0)] * SPEC.numel for _ in range(3))
    for update in updates:
        share = shares[plan.groups[update.client]]
        weight, reached = plan.weights[update.client] * Fraction(share.weight), Fraction(share.progress)
        if isinstance(update.delta, SeedCoefficients):
            unit = Fraction(1, 2 ** (SEEDS.unit_bits + plan.directions.unit_bits))
            exact = plan.directions.combine(update.delta.seeds, update.delta.coefficients).tolist()
            dense = [value * unit for value in exact]
        else:
            dense = [Fraction(value) for value in update.delta.vector().tolist()]
        mask = covered_by(plan, update.client)
        for i in range(SPEC.numel):
            above[i] += weight * dense[i]
            if mask is None or bool(mask[i]):
                below[i] += weight * reached
                most[i] = max(most[i], reached)
    # half a unit of the values, half a fine unit of each seed's mean by method, and roundings to float32
    reach = SEEDS.count * 4.4 * 2.0 ** -(SEEDS.unit_bits + FINE_BITS + 1)
    weights = [b / m if m else Fraction(0) for b, m in zip(below, most, strict=True)]
    everybody = sum(plan.weights[u.client] * Fraction(shares[plan.groups[u.client]].weight) for u in updates)
    shortened = merged.report.get("shortened", 1.0)
    for got, total, weight in zip(merged.delta.vector().tolist(), above, weights, strict=True):
        expected = float(total / weight) * shortened if weight else 0.0
        ratio = max(1.0, float(everybody / weight)) if weight else 1.0
        limit = merged.report["resolution"] + reach + 2.0**-22 * (abs(expected) + 4 * BOUND)
        assert abs(got - expected) <= limit * ratio
    assert merged.weight == sum(plan.weights[u.client] for u in updates)
    assert (merged.coefficients is not None) == all(isinstance(u.delta, SeedCoefficients) for u in updates)


def test_mean_of_scalars_moves_a_span_as_it_says() -> None:
    """The merged coefficients expanded by a span are the merged delta, bit for bit."""
    updates = [
        Update("a", 1, SeedCoefficients.of(SEEDS, [(1, 500), (3, -20000), (3, -20000)]), 1),
        Update("b", 1, SeedCoefficients.of(SEEDS, [(0, 32767), (3, 7)]), 1),
    ]
    plan = MergePlan(SPEC, {"a": 3, "b": 2}, BOUND, SEEDS, directions())
    merged = MeanAggregator().finalize(fold(plan, updates))
    mean = [Fraction(2 * 32767, 5), Fraction(3 * 500, 5), Fraction(0), Fraction(3 * -40000 + 2 * 7, 5)]
    expected = [int((m * 2**FINE_BITS + Fraction(1, 2)).__floor__()) for m in mean]
    assert merged.coefficients.tolist()[:4] == expected
    assert not merged.coefficients[4:].any()
    seeded_state = SeededState(
        AdapterState.zeros(SPEC), directions(), SEEDS.unit_bits + FINE_BITS, merged.coefficients
    )
    assert seeded_state.state().tobytes() == merged.delta.tobytes()


def test_one_clients_scalars_come_back_exactly() -> None:
    scalars = SeedCoefficients.of(SEEDS, [(2, -31000), (5, 17)])
    plan = MergePlan(SPEC, {"a": 977}, BOUND, SEEDS, directions())
    merged = MeanAggregator().finalize(fold(plan, [Update("a", 1, scalars, 1)]))
    assert merged.delta.vector().tolist() == scalars.expand(directions()).tolist()


# --- hostile ---

ZEROS = [0.0] * SPEC.numel
PART = MergePlan(
    SPEC, {"a": 3, "b": 2, "c": 1}, BOUND, SEEDS, directions(), tensors={"b": ("head",)}, ranks={"c": 1}
)
FINE = SeedCoefficients.of(SEEDS, [(0, 5)])
HOSTILE = [
    ("a", replace(FINE, seeds=np.array([SEEDS.count])), 0.0, "seeds"),
    ("a", replace(FINE, seeds=np.array([-1])), 0.0, "seeds"),
    ("a", replace(FINE, coefficients=np.array([32768])), 0.0, "coefficients 32768"),
    ("a", replace(FINE, coefficients=np.array([-(2**63)])), 0.0, "coefficients -9223372036854775808"),
    ("a", SeedCoefficients.of(SEEDS, [(0, 1)] * (SEEDS.entries + 1)), 0.0, "coefficients"),
    ("a", SeedCoefficients(replace(SEEDS, unit_bits=0), FINE.seeds, FINE.coefficients), 0.0, "another plan"),
    ("a", FINE, float("nan"), "noise.*nan"),
    ("a", FINE, -1e-9, "noise"),
    ("a", FINE, float("inf"), "noise.*inf"),
    ("a", state_of(SPEC, ZEROS), 2.0**60, "noise"),
    ("b", state_of(SPEC, [*ZEROS[:2], *[1.0] * (SPEC.numel - 2)]), 0.0, "zeros outside"),
    ("c", state_of(SPEC, [1.0] * SPEC.numel), 0.0, "zeros outside"),
    ("b", FINE, 0.0, "names tensors or a rank"),
    ("c", FINE, 0.0, "names tensors or a rank"),
]


@pytest.mark.parametrize(("client", "delta", "noise", "named"), HOSTILE)
def test_hostile_updates_are_refused_by_name_and_leave_no_trace(client, delta, noise, named) -> None:
    others = {
        "a": Update("a", 1, FINE, 1),
        "b": update_of(SPEC, "b", [1.0, 1.0, *ZEROS[2:]]),
        "c": update_of(SPEC, "c", ZEROS),
    }
    acc = fold(PART, [update for name, update in others.items() if name != client])
    before = bits(acc)
    with pytest.raises(UpdateRejected, match=f"client {client}.*{named}"):
        MeanAggregator().add(acc, Update(client, 1, delta, 1, noise=noise))
    assert bits(acc) == before
    MeanAggregator().finalize(MeanAggregator().add(acc, others[client]))


@pytest.mark.parametrize("rule", [TiesAggregator(0.5), FisherAggregator()])
def test_rules_of_values_refuse_scalars(rule: Any) -> None:
    plan = MergePlan(SPEC, {"a": 1}, BOUND)
    acc = rule.init(plan)
    before = bits(acc)
    with pytest.raises(UpdateRejected, match="client a"):
        rule.add(acc, Update("a", 1, FINE, 1))
    assert bits(acc) == before


def test_scalars_without_a_plan_for_them_are_refused() -> None:
    with pytest.raises(UpdateRejected, match="client a: expected a delta, got coefficients"):
        fold(MergePlan(SPEC, {"a": 1}, BOUND), [Update("a", 1, FINE, 1)])


@pytest.mark.parametrize(
    "changes",
    [
        {"directions": None},
        {"directions": replace(directions(), size=3)},
        {"seeds": replace(SEEDS, entries=2**17)},
        {"weights": {"a": 2**45}, "value_bound": 2.0**-20},
    ],
)
def test_plans_whose_sums_could_overflow_are_refused(changes: dict[str, Any]) -> None:
    plan = replace(MergePlan(SPEC, {"a": 1}, BOUND, SEEDS, directions()), **changes)
    with pytest.raises(ConfigError, match="merge plan"):
        MeanAggregator().init(plan)


def test_the_largest_plan_does_not_overflow() -> None:
    """Every coefficient and weight at its bound: W·entries just below 2^47."""
    spec = StateSpec((TensorSpec("v", (5,), "vector"),))
    seeds = SeedPlan(0, 2, "gaussian", 15, 2**10)
    plan = MergePlan(spec, {"a": 2**36 - 1, "b": 2**36}, 2.0**-20, seeds, replace(directions(), size=5))
    extreme = SeedCoefficients.of(seeds, [(1, -32767)] * 2**10)
    merged = MeanAggregator().finalize(fold(plan, [Update(c, 1, extreme, 1) for c in "ab"]))
    assert merged.coefficients.tolist() == [0, -32767 * 2**10 * 2**FINE_BITS]
    assert merged.delta.vector().tolist() == extreme.expand(plan.directions).tolist()


def test_a_value_that_nobody_trained_does_not_move() -> None:
    plan = MergePlan(SPEC, {"a": 1}, BOUND, tensors={"a": ("head",)})
    merged = MeanAggregator().finalize(fold(plan, [update_of(SPEC, "a", [0.5, -0.5, *ZEROS[2:]])]))
    assert merged.delta["head"].tolist() == [0.5, -0.5]
    assert not torch.cat([merged.delta["q.lora_A"].reshape(-1), merged.delta["q.lora_B"].reshape(-1)]).any()


@pytest.mark.parametrize("known", [None, NoisePlan(3.0, {"one": 0.0, "other": 9.0}, {"other": 0.5})])
def test_no_clients_word_lifts_its_weight_above_the_planned_one(known) -> None:
    """Whatever noise it claims, and no claim counts for more than what arrived."""
    plan = MergePlan(
        SPEC, dict.fromkeys("abc", 1024), BOUND, noise=known, groups={"a": "other", "b": "one", "c": "one"}
    )
    for claim in (0.0, 1e-300, 1.0, 5.0, 1e10, 2.0**59):
        update = replace(update_of(SPEC, "a", [0.5] * SPEC.numel), noise=claim)
        acc = fold(plan, [update, *(update_of(SPEC, c, [0.25] * SPEC.numel) for c in "bc")])
        assert acc.norms["a"].noise <= acc.norms["a"].energy == SPEC.numel / 4
        report = MeanAggregator().finalize(acc).report
        assert 0 < report["weight_other"] <= 1
        assert 0 < report["weight_one"] <= 1


def test_steps_along_each_seed_add_up_where_the_plan_asks() -> None:
    updates = [
        Update("a", 1, SeedCoefficients.of(SEEDS, [(1, 500), (3, -20000), (3, 20000)]), 1),
        Update("b", 1, SeedCoefficients.of(SEEDS, [(0, 32767), (3, 7)]), 1),
    ]
    plan = MergePlan(SPEC, {"a": 3, "b": 2}, BOUND, SEEDS, directions())
    assert MeanAggregator().finalize(fold(plan, updates)).use is None
    use = MeanAggregator().finalize(fold(replace(plan, use=True), updates)).use
    assert use.lengths.tolist()[:4] == [32767, 500, 0, 40007]
    assert use.counts.tolist()[:4] == [1, 1, 0, 3]
    assert not use.lengths[4:].any()
