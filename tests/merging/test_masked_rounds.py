"""Every rule that is summed under masks, and every kind of update that may be: the bits of a plain round."""

from __future__ import annotations

from headwater.compression.codecs.randk import RandkCodec
from headwater.merging.fisher import FisherAggregator
from headwater.merging.mean import MeanAggregator
from headwater.merging.ties import TiesAggregator
from tests.laws.masked_sum_laws import MaskedSumLaws


class TestMean(MaskedSumLaws):
    rule = MeanAggregator()


class TestMeanOfRandomCoordinates(MaskedSumLaws):
    rule, codec = MeanAggregator(), RandkCodec(0.25)


class TestMeanOfCoefficients(MaskedSumLaws):
    rule, seeds = MeanAggregator(), True


class TestTies(MaskedSumLaws):
    rule = TiesAggregator(0.5)


class TestFisher(MaskedSumLaws):
    rule = FisherAggregator(cap=256.0)
