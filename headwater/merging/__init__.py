"""Merging: rules as accumulators that add. Entry points: the aggregators, and :class:`GapSketch`."""

from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.fisher import FisherAggregator
from headwater.merging.mean import MeanAggregator
from headwater.merging.median import MedianAggregator
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
    "TiesAggregator",
]
