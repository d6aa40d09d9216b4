"""What is summed under masks: parts, in so many bits; what cannot be (the law: test_masked_rounds.py)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from headwater.errors import ConfigError
from headwater.merging.aggregator import Aggregator
from headwater.merging.fisher import FisherAggregator
from headwater.merging.mean import MeanAggregator
from headwater.merging.median import MedianAggregator
from headwater.merging.merge_plan_json import merge_plan_from_json, merge_plan_to_json
from headwater.merging.plan import MASKED_BITS, MergePlan, Update
from headwater.merging.ties import TiesAggregator
from tests.laws.aggregator_laws import LAW, SPEC, bits, mixed_rounds

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


@given(case=mixed_rounds(("delta", "tensors", "rank")))
@settings(LAW, max_examples=25)
def test_a_mean_of_parts(case: tuple[MergePlan, list[Update]]) -> None:
    plan = dataclasses.replace(masked(case[0]), groups={}, noise=None, use=False, seeds=None, directions=None)
    rule = MeanAggregator()
    got, wanted = (rule.finalize(make(rule, plan, case[1])) for make in (summed, folded))
    assert bits(got) == bits(wanted)


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
