"""A rule of ``headwater merge`` as the aggregator of a round: :func:`of_offline`, :func:`of_products`."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwater.config.strategy import DistanceStrategy, KeptStrategy, RuleStrategy
from headwater.merging.aggregator import Aggregator
from headwater.merging.kept import KeptAggregator
from headwater.merging.offline.rule import LinearRule, Rule
from headwater.merging.offline.rules.table import RULES
from headwater.merging.robust.coefficient_rule import CoefficientRule
from headwater.merging.rule_sums import TwoPassSums, sums_of
from headwater.merging.summed import MaximaAggregator, SummedAggregator, TwoPassAggregator
from headwater.seeds.keys import Key
from headwater.state import AdapterState


def of_offline(settings: RuleStrategy | DistanceStrategy, key: Key) -> Aggregator[Any]:
    """As sums where it has them, else on updates that are kept.

    Args:
        settings: the ``[strategy]`` table.
        key: of rules that draw.
    """
    made = _rule(settings)
    sums = sums_of(made)
    if sums is None:
        assert isinstance(settings, KeptStrategy), f"{settings.kind} says how much may be kept"
        return KeptAggregator(made, settings.max_kept_mb << 20)
    if isinstance(sums, TwoPassSums):
        return TwoPassAggregator(sums)
    return (SummedAggregator if sums.join is np.add else MaximaAggregator)(sums, key)


def of_products(settings: DistanceStrategy, base: AdapterState) -> Aggregator[Any]:
    """On what the updates change in the weights.

    Args:
        settings: the ``[strategy]`` table.
        base: what the round's clients started from.
    """
    made = _rule(settings)
    assert isinstance(made, LinearRule), "a rule by distances"
    return CoefficientRule.of_linear(made, settings.max_kept_mb << 20, base)


def _rule(settings: RuleStrategy | DistanceStrategy) -> Rule:
    rule = RULES[settings.kind]
    return rule(**{name: getattr(settings, name) for name in rule.model_fields})
