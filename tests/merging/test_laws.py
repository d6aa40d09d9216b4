"""Every rule, and the sketch, under the laws of a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from headwater.merging import (
    FisherAggregator,
    GapSketch,
    MeanAggregator,
    MedianAggregator,
    ProductAggregator,
    TiesAggregator,
)
from headwater.merging.coverage import covered_by
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec
from tests.laws.aggregator_laws import BOUND, SPEC, AggregatorLaws, mixed_rounds, update_of


class TestMeanLaws(AggregatorLaws):
    def rule(self, spec: StateSpec) -> Any:
        return MeanAggregator()


class TestTiesLaws(AggregatorLaws):
    def rule(self, spec: StateSpec) -> Any:
        return TiesAggregator(0.5)


class TestTiesWithoutTrimmingLaws(AggregatorLaws):
    def rule(self, spec: StateSpec) -> Any:
        return TiesAggregator(1.0)


class TestFisherLaws(AggregatorLaws):
    def rule(self, spec: StateSpec) -> Any:
        return FisherAggregator(cap=64.0)


class TestMedianLaws(AggregatorLaws):
    def rule(self, spec: StateSpec) -> Any:
        return MedianAggregator(1 << 30)


class TestMedianOfPartsLaws(AggregatorLaws):
    @staticmethod
    def rounds() -> Any:
        return mixed_rounds(("delta", "tensors", "rank"))

    def rule(self, spec: StateSpec) -> Any:
        return MedianAggregator(1 << 30)


@st.composite
def drawn_rounds(draw: Any) -> tuple[MergePlan, list[Update]]:
    """Rounds of parts by NumPy: Hypothesis takes ten times as long for as many values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    names = [f"c{i}" for i in range(rng.integers(1, 6))]
    some = [(), ("head",), ("head", "q.lora_B"), ("q.lora_A", "q.lora_B")]
    plan = MergePlan(
        SPEC,
        {name: int(rng.choice([1, 3, 1000, 2**30])) for name in names},
        BOUND,
        tensors={name: some[rng.integers(4)] for name in names if rng.random() < 0.3},
        ranks={name: int(rng.integers(3)) for name in names if rng.random() < 0.5},
    )
    updates = []
    for name in names:
        values = rng.choice([0.0, -0.0, 0.25, -BOUND, BOUND, 1e-40, rng.normal()], size=SPEC.numel)
        mask = covered_by(plan, name)
        updates.append(update_of(SPEC, name, values if mask is None else np.where(mask, values, 0.0)))
    return plan, updates


class TestProductOfPartsLaws(AggregatorLaws):
    rounds = staticmethod(drawn_rounds)

    def rule(self, spec: StateSpec) -> Any:
        base = AdapterState(spec, {t.name: torch.full(t.shape, 2.0**-10) for t in spec})
        return ProductAggregator(base, key=Key.root(3))


class TestGapSketchLaws(AggregatorLaws):
    refuses_values = False

    def rule(self, spec: StateSpec) -> Any:
        base = AdapterState(spec, {t.name: torch.full(t.shape, 0.5) for t in spec})
        return GapSketch(base, key=Key.root(3), probes=2, bound=8.0)

    def finish(self, rule: Any, acc: Any) -> Any:
        return rule.finalize(acc, rule.base)
