"""Under masks the server has the accumulator that it would have had: the very bits, of whoever is left."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.merging.aggregator import Aggregator
from headwater.merging.fisher import FisherAggregator
from headwater.merging.mean import MeanAggregator
from headwater.merging.median import MedianAggregator
from headwater.merging.merge_plan_json import merge_plan_from_json, merge_plan_to_json
from headwater.merging.plan import MASKED_BITS, MergePlan, Update
from headwater.merging.ties import TiesAggregator
from headwater.security.secagg.bounds import Promise
from tests.laws.aggregator_laws import LAW, SPEC, bits, mixed_rounds, rounds, update_of
from tests.security.secagg.play import Play

RULES: list[Aggregator[Any]] = [MeanAggregator(), TiesAggregator(0.5), FisherAggregator(cap=256.0)]


def masked(plan: MergePlan) -> MergePlan:
    """The plan as a round under masks has it."""
    return dataclasses.replace(
        plan, weights={n: min(w, 2**20) for n, w in plan.weights.items()}, sum_bits=MASKED_BITS
    )


def folded(rule: Aggregator[Any], plan: MergePlan, updates: list[Update]) -> Any:
    acc = rule.init(plan)
    for update in updates:
        acc = rule.add(acc, update)
    return acc


def summed(rule: Aggregator[Any], plan: MergePlan, updates: list[Update]) -> Any:
    """What the server has of the vectors that these clients make, each with a plan of its own."""
    layout = rule.sum_layout(plan)
    words = layout.zeros()
    for update in updates:
        own = merge_plan_from_json(merge_plan_to_json(plan.part([update.client])))
        assert rule.sum_layout(own) == layout
        values = rule.to_sums(folded(rule, own, [update]))
        for total, part in zip(words, layout.unpack(layout.pack(layout.to_words(values)), ""), strict=True):
            np.add(total, part, out=total)
    acc = rule.from_sums(plan, [update.client for update in updates], layout.to_values(words))
    rule.require_sound(acc)
    return acc


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@given(case=rounds(), data=st.data())
@LAW
def test_the_sums_are_the_accumulator(
    rule: Aggregator[Any], case: tuple[MergePlan, list[Update]], data: st.DataObject
) -> None:
    plan, updates = masked(case[0]), case[1]
    left = data.draw(st.lists(st.sampled_from(updates), min_size=1, unique_by=lambda u: u.client))
    wanted, got = folded(rule, plan, left), summed(rule, plan, left)
    assert bits(rule.finalize(got)) == bits(rule.finalize(wanted))
    if not isinstance(rule, MeanAggregator):  # which notes how an update came
        assert bits(got) == bits(wanted)


@pytest.mark.parametrize("sent", [("scalars",), ("delta", "tensors", "rank")], ids=["seeds", "parts"])
@given(data=st.data())
@LAW
def test_a_mean_of_coefficients_and_of_parts(sent: tuple[str, ...], data: st.DataObject) -> None:
    plan, updates = data.draw(mixed_rounds(sent))
    plan = dataclasses.replace(masked(plan), groups={}, noise=None, use=False)
    if sent != ("scalars",):
        plan = dataclasses.replace(plan, seeds=None, directions=None)
    rule = MeanAggregator()
    got, wanted = (rule.finalize(make(rule, plan, updates)) for make in (summed, folded))
    assert bits(got) == bits(wanted)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_masked_round_has_the_bits_of_a_plain_one(rule: Aggregator[Any]) -> None:
    """Through the whole protocol, with a client that drops out after its masks were agreed on."""
    draw = np.random.default_rng(3)
    plan = masked(MergePlan(SPEC, {f"c{i:03d}": 3 + i for i in range(5)}, 4.0))
    updates = [
        update_of(SPEC, n, draw.normal(size=SPEC.numel), draw.random(SPEC.numel)) for n in plan.weights
    ]
    play = Play(5, Promise(0.3, 0.0), rule.sum_layout(plan))
    vectors = {u.client: rule.to_sums(folded(rule, plan.part([u.client]), [u])) for u in updates}
    found = play.whole(vectors, {"c003": "vector"})
    acc = rule.from_sums(plan, found.names, found.values)
    rule.require_sound(acc)
    left = [update for update in updates if update.client != "c003"]
    assert bits(rule.finalize(acc)) == bits(rule.finalize(folded(rule, plan, left)))


def test_a_value_takes_47_bits_at_most() -> None:
    plan = masked(MergePlan(SPEC, {f"c{i}": 1000 for i in range(100)}, 16.0))
    (part,) = MeanAggregator().sum_layout(plan).parts
    assert part.bits <= MASKED_BITS
    assert plan.scale_bits() == 46 - 4 - 17
    assert all(part.bits <= MASKED_BITS for rule in RULES for part in rule.sum_layout(plan).parts)


def test_what_needs_single_updates_is_refused() -> None:
    plan = MergePlan(SPEC, {"c0": 1, "c1": 2}, 4.0)
    with pytest.raises(ConfigError, match="MedianAggregator"):
        MedianAggregator(2**20).sum_layout(plan)
    for other in ({"groups": {"c0": "a", "c1": "b"}}, {"use": True}):
        with pytest.raises(ConfigError, match=r"privacy\.masks"):
            MeanAggregator().sum_layout(dataclasses.replace(plan, **other))
