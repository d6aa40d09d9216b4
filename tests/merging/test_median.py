"""The median against an oracle in exact fractions; minorities, parts, codecs, and what it may keep."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.compression.dense import DenseCodec
from headwater.errors import ConfigError, UpdateRejected
from headwater.merging import FisherAggregator, MeanAggregator, MedianAggregator, TiesAggregator
from headwater.merging.coverage import covered_by
from headwater.merging.plan import MergePlan, Update
from headwater.protocol.staleness import staleness_weight
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.keys import Key
from headwater.state import StateSpec, TensorSpec
from tests.laws.aggregator_laws import BOUND, SEEDS, SPEC, bits, mixed_rounds, state_of, update_of
from tests.merging.test_rules import cohorts, merge

RULE = MedianAggregator(1 << 30)


def middle(row: list[tuple[float, int]]) -> Fraction:
    """The weighted median of (value, weight), by its definition, one comparison at a time."""
    row = [(value, weight) for value, weight in row if weight]
    if not row:
        return Fraction(0)
    half = Fraction(sum(weight for _, weight in row), 2)
    below = {x: sum(w for value, w in row if value <= x) for x, _ in row}
    lower = min(x for x in below if below[x] >= half)
    upper = min(x for x in below if below[x] > half)
    return (Fraction(lower) + Fraction(upper)) / 2


@given(cohorts())
def test_the_median_is_its_definition_rounded_once(cohort: Any) -> None:
    rows, weights = cohort
    found = merge(RULE, rows, weights)
    for j, got in enumerate(found.delta.vector().tolist()):
        exact = middle([(row[j], w) for row, w in zip(rows, weights, strict=True)])
        assert got == float(np.float32(float(exact)))
    assert found.weight == sum(weights)
    assert found.report["kept_bytes"] == 4 * len(rows) * len(rows[0])


@given(cohorts(), st.integers(1, 9))
def test_equal_weights_give_the_usual_median(cohort: Any, weight: int) -> None:
    rows, _ = cohort
    got = merge(RULE, rows, [weight] * len(rows)).delta.vector().numpy()
    np.testing.assert_array_equal(got, np.median(np.float64(np.float32(rows)), axis=0).astype(np.float32))


def test_of_five_two_cannot_move_it_beyond_the_others() -> None:
    honest = [[0.1, -0.2, 0.0], [0.3, -0.1, 0.5], [0.2, 0.0, -0.5]]
    liars = [[16.0, 16.0, -16.0], [16.0, 16.0, -16.0]]
    got = merge(RULE, honest + liars, [1] * 5).delta.vector().numpy()
    assert (got >= np.min(np.float32(honest), axis=0)).all()
    assert (got <= np.max(np.float32(honest), axis=0)).all()
    assert abs(merge(MeanAggregator(), honest + liars, [1] * 5).delta.vector()).min() > 5  # the mean moves
    heavy = merge(RULE, honest + liars, [1, 1, 1, 2, 2]).delta.vector()  # half of the weight decides
    assert heavy.tolist() == [16.0, 16.0, -16.0]


@given(mixed_rounds(("delta", "tensors", "rank")))
def test_of_parts_it_is_the_median_of_those_who_train_them(found: Any) -> None:
    plan, updates = found
    acc = RULE.init(plan)
    for update in updates:
        acc = RULE.add(acc, update)
    got = RULE.finalize(acc).delta.vector().tolist()
    masks = {u.client: covered_by(plan, u.client) for u in updates}
    for j, value in enumerate(got):
        row = [
            (float(u.delta.vector()[j]), plan.weights[u.client])
            for u in updates
            if masks[u.client] is None or bool(masks[u.client][j])
        ]
        assert value == float(np.float32(float(middle(row))))


def test_values_outside_a_clients_part_and_coefficients_are_refused() -> None:
    plan = MergePlan(SPEC, {"a": 1, "b": 1}, BOUND, tensors={"a": ("head",)}, seeds=SEEDS)
    ones = update_of(SPEC, "a", np.ones(SPEC.numel))
    with pytest.raises(UpdateRejected, match="client a"):
        RULE.add(RULE.init(plan), ones)
    with pytest.raises(UpdateRejected, match="client b"):
        RULE.add(RULE.init(plan), Update("b", 1, SeedCoefficients.of(SEEDS, [(0, 1)]), 1))


def test_the_sign_of_zero_does_not_depend_on_who_came_first() -> None:
    for rows in ([[0.0], [-0.0]], [[-0.0], [0.0]], [[-0.0]], [[-1.0], [1.0]]):
        assert bits(merge(RULE, rows, [1] * len(rows)).delta.vector()) == bits(torch.zeros(1))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_are_those_of_what_arrives_whatever_threads_and_blocks(
    dtype: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StateSpec.of([TensorSpec("v", (5_000,), "vector")])
    codec, rng = DenseCodec(dtype), np.random.default_rng(3)
    plan = MergePlan(spec, {f"c{i}": 1 + i for i in range(7)}, 16.0)
    arrived = []
    for name in plan.weights:
        sent = codec.encode(state_of(spec, rng.normal(size=5_000)), key=Key.root(1))
        arrived.append(Update(name, 1, codec.decode(sent, spec), 1))
    before = torch.get_num_threads()

    def merged(order: list[Update]) -> Any:
        acc = RULE.init(plan)
        for update in order:
            acc = RULE.add(acc, update)
        return bits(RULE.finalize(acc).delta)

    expected = merged(arrived)
    torch.set_num_threads(threads)
    try:
        monkeypatch.setattr("headwater.merging.buffered_rule._AT_ONCE", 7 * 33)
        assert merged(arrived[::-1]) == expected
    finally:
        torch.set_num_threads(before)


def test_a_stale_update_weighs_less() -> None:
    """A buffered version weighs by staleness: half of the weight, not of the clients, is in the middle."""
    rows = [[1.0], [2.0], [3.0]]
    fresh, old = staleness_weight(1, 0, 0.5), staleness_weight(1, 8, 0.5)
    assert merge(RULE, rows, [fresh] * 3).delta.vector().tolist() == [2.0]
    assert merge(RULE, rows, [old, old, fresh]).delta.vector().tolist() == [3.0]


def test_what_would_not_fit_is_refused_with_the_numbers() -> None:
    rule = MedianAggregator(10 * SPEC.nbytes)
    rule.require_room(SPEC, 10)
    with pytest.raises(ConfigError, match=r"11 clients x \d+ B = \d+ B"):
        rule.require_room(SPEC, 11)
    with pytest.raises(ConfigError, match="total weight"):
        rule.init(MergePlan(SPEC, {"a": 2**61 + 1}, BOUND))


def test_a_rule_says_whether_a_secure_sum_could_feed_it() -> None:
    """Additive accumulators do not grow with clients; a median's does."""
    spec = StateSpec.of([TensorSpec("v", (64,), "vector")])
    plan = MergePlan(spec, {f"c{i}": 1 for i in range(4)}, 16.0)

    def size(thing: Any) -> int:
        if isinstance(thing, torch.Tensor):
            return thing.nbytes
        if isinstance(thing, dict):
            return sum(map(size, thing.values()))
        if dataclasses.is_dataclass(thing):
            return sum(size(getattr(thing, field.name)) for field in dataclasses.fields(thing))
        return 0

    for rule in (MeanAggregator(), TiesAggregator(0.5), FisherAggregator(), RULE):
        acc, sizes = rule.init(plan), []
        for name in plan.weights:
            acc = rule.add(acc, update_of(spec, name, np.ones(64), np.ones(64)))
            sizes.append(size(acc))
        assert rule.additive == (sizes[0] == sizes[-1]), type(rule).__name__
