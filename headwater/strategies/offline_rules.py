"""A rule of ``headwater merge`` as the aggregator of a round: :func:`of_offline`."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwater.config.strategy import KeptStrategy, RuleStrategy
from headwater.merging.aggregator import Aggregator
from headwater.merging.kept import KeptAggregator
from headwater.merging.offline.rules.table import RULES
from headwater.merging.rule_sums import TwoPassSums, sums_of
from headwater.merging.summed import MaximaAggregator, SummedAggregator, TwoPassAggregator
from headwater.seeds.keys import Key


def of_offline(settings: RuleStrategy, key: Key) -> Aggregator[Any]:
    """As sums where it has them, else on updates that are kept.

    Args:
        settings: the ``[strategy]`` table.
        key: of rules that draw.
    """
    rule = RULES[settings.kind]
    made = rule(**{name: getattr(settings, name) for name in rule.model_fields})
    sums = sums_of(made)
    if sums is None:
        assert isinstance(settings, KeptStrategy), f"{settings.kind} says how much may be kept"
        return KeptAggregator(made, settings.max_kept_mb << 20)
    if isinstance(sums, TwoPassSums):
        return TwoPassAggregator(sums)
    return (SummedAggregator if sums.join is np.add else MaximaAggregator)(sums, key)
