"""The table of merge rules: :func:`rule_for`. A new rule is one line here (docs/how-to/add-a-rule.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headwater.config.strategy import FisherStrategy, MeanStrategy, Strategy, TiesStrategy
from headwater.errors import ConfigError
from headwater.merging.aggregator import Aggregator
from headwater.merging.fisher import FisherAggregator
from headwater.merging.mean import MeanAggregator
from headwater.merging.ties import TiesAggregator

# Any: the settings' class is the key, so each line knows its own.
RULES: Mapping[type[Any], Callable[[Any], Aggregator[Any]]] = {
    MeanStrategy: lambda settings: MeanAggregator(),
    TiesStrategy: lambda settings: TiesAggregator(settings.density),
    FisherStrategy: lambda settings: FisherAggregator(settings.cap),
}


def rule_for(settings: Strategy) -> Aggregator[Any]:
    """The aggregator of a ``[strategy]`` table.

    Raises:
        ConfigError: no rule is registered for this kind.
    """
    make = RULES.get(type(settings))
    if make is None:
        known = ", ".join(kind.__name__ for kind in RULES)
        raise ConfigError("strategy.kind", expected=f"one of {known}", got=type(settings).__name__)
    return make(settings)
