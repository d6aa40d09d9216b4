"""The laws of the rule whose updates wait where loops are compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headwater.merging import TiesAggregator
from headwater.state import StateSpec
from tests.laws.aggregator_laws import AggregatorLaws
from tests.support.kernels import computed_by


@pytest.fixture(autouse=True, scope="class")
def _compiled() -> Iterator[None]:
    with computed_by("compiled"):
        yield


class TestTiesLaws(AggregatorLaws):
    def rule(self, spec: StateSpec) -> TiesAggregator:
        return TiesAggregator(0.5)
