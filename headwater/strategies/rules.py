"""The table of merge rules: :func:`rule_for`. Packages bring others (docs/how-to/add-a-rule.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headwater.config.plugins import implementation
from headwater.config.strategy import (
    DistanceStrategy,
    FisherStrategy,
    FLTrustStrategy,
    GeometricMedianStrategy,
    MeanStrategy,
    MedianStrategy,
    RuleStrategy,
    Strategy,
    TiesStrategy,
    TrimmedMeanStrategy,
)
from headwater.merging.aggregator import Aggregator
from headwater.merging.fisher import FisherAggregator
from headwater.merging.mean import MeanAggregator
from headwater.merging.median import MedianAggregator
from headwater.merging.product import ProductAggregator
from headwater.merging.robust.coefficient_rule import CoefficientRule
from headwater.merging.robust.fltrust import FLTrust
from headwater.merging.robust.screen import ScreenedAggregator
from headwater.merging.robust.trimmed_mean import TrimmedMeanAggregator
from headwater.merging.robust.weiszfeld import WeiszfeldAggregator
from headwater.merging.ties import TiesAggregator
from headwater.seeds.keys import Key
from headwater.state import AdapterState

FAIR_RIDGE = 0.01
"""λ of space ``fair``, as in its paper."""

# Any: the settings' class is the key, so each line knows its own.
RULES: Mapping[type[Any], Callable[[Any], Aggregator[Any]]] = {
    MeanStrategy: lambda settings: MeanAggregator(),
    TiesStrategy: lambda settings: TiesAggregator(settings.density),
    FisherStrategy: lambda settings: FisherAggregator(settings.cap),
    MedianStrategy: lambda settings: MedianAggregator(settings.max_kept_mb << 20),
    TrimmedMeanStrategy: lambda settings: TrimmedMeanAggregator(settings.drop, settings.max_kept_mb << 20),
    FLTrustStrategy: lambda settings: _fltrust(settings, None),
}


def rule_for(settings: Strategy, key: Key | None = None) -> Aggregator[Any]:
    """The aggregator of a ``[strategy]`` table.

    Args:
        settings: the table.
        key: of rules that draw; of seed 0 if None.

    Raises:
        ConfigError: neither :data:`RULES` nor an installed package has one for these settings.
    """
    return _screened(settings, _plain(settings, key or Key.root(0)), key or Key.root(0))


def rule_in_round(settings: Strategy, base: AdapterState, key: Key) -> Aggregator[Any]:
    """The aggregator of a round whose clients start from ``base``: one of products must know their factors.

    Args:
        settings: the ``[strategy]`` table.
        base: the global adapter as clients have it.
        key: randomness of the round.

    Raises:
        ConfigError: as :func:`rule_for`.
    """
    return _screened(settings, _plain_in_round(settings, base, key), key)


def _screened(settings: Strategy, rule: Aggregator[Any], key: Key) -> Aggregator[Any]:
    """The rule, with a look at each update where the table asks for one."""
    if settings.screen is None:
        return rule
    return ScreenedAggregator(rule, settings.screen, key.child("screen"), settings.fewest)


def _plain(settings: Strategy, key: Key) -> Aggregator[Any]:
    make = RULES.get(type(settings))
    if isinstance(settings, GeometricMedianStrategy) and settings.passes is not None:
        return WeiszfeldAggregator(settings.passes, settings.smoothing)
    if make is None and isinstance(settings, RuleStrategy | DistanceStrategy):
        from headwater.strategies.offline_rules import of_offline  # three dozen settings classes: 0.1 s

        return of_offline(settings, key)
    make = make or implementation("rules", settings)
    made: Aggregator[Any] = make(settings)
    return made


def _plain_in_round(settings: Strategy, base: AdapterState, key: Key) -> Aggregator[Any]:
    if isinstance(settings, DistanceStrategy) and settings.merges_products:
        from headwater.strategies.offline_rules import of_products

        return of_products(settings, base) if settings.of_offline else _fltrust(settings, base)
    if not (isinstance(settings, MeanStrategy) and settings.merges_products):
        return _plain(settings, key)
    return ProductAggregator(
        base,
        key=key.child("product"),
        by_holders=settings.rank_weights == "holders",
        ridge=FAIR_RIDGE if settings.space == "fair" else None,
    )


def _fltrust(settings: Any, base: AdapterState | None) -> CoefficientRule:  # noqa: ANN401 - as in RULES
    about = {"trusted": sorted(settings.trusted)}
    most = settings.max_kept_mb << 20
    return CoefficientRule(settings.kind, FLTrust(frozenset(settings.trusted)), most, base, about)
