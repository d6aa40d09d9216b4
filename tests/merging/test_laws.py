"""Every rule, and the sketch, under the laws of a rule."""

from __future__ import annotations

from typing import Any

import torch

from headwater.merging import (
    FisherAggregator,
    GapSketch,
    MeanAggregator,
    MedianAggregator,
    ProductAggregator,
    TiesAggregator,
)
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec
from tests.laws.aggregator_laws import AggregatorLaws, mixed_rounds


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


class TestProductOfPartsLaws(AggregatorLaws):
    @staticmethod
    def rounds() -> Any:
        return mixed_rounds(("delta", "tensors", "rank"))

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
