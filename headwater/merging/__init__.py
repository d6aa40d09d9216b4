"""Merging: rules as accumulators that add, and folders of adapters that are merged without a model.

Entry points: the aggregators, and :class:`GapSketch`; what is here is imported when it is first used, since
:mod:`headwater.merging.offline` loads no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwater.merging.aggregator import Aggregator, Merged
    from headwater.merging.fisher import FisherAggregator
    from headwater.merging.mean import MeanAggregator
    from headwater.merging.median import MedianAggregator
    from headwater.merging.product import ProductAggregator
    from headwater.merging.product_gap import GapReport, GapSketch
    from headwater.merging.ties import TiesAggregator

__all__ = [
    "Aggregator",
    "FisherAggregator",
    "GapReport",
    "GapSketch",
    "MeanAggregator",
    "MedianAggregator",
    "Merged",
    "ProductAggregator",
    "TiesAggregator",
]
_HOMES = {
    "Aggregator": "aggregator",
    "FisherAggregator": "fisher",
    "GapReport": "product_gap",
    "GapSketch": "product_gap",
    "MeanAggregator": "mean",
    "MedianAggregator": "median",
    "Merged": "aggregator",
    "ProductAggregator": "product",
    "TiesAggregator": "ties",
}


def __getattr__(name: str) -> object:
    """The name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headwater.merging' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"headwater.merging.{_HOMES[name]}"), name)
