"""What a metric is: :class:`Metric`, and what everybody may ask of one by its name.

Metrics stand with the settings of what is learnt (``DataTraits.metrics``), so that a federation file can be
checked without torch. A name means one direction everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MAX_VALUE = 1e6
"""A client's value beyond it is refused: sums must stay finite whatever a client claims."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that says how good an adapter is.

    Args:
        lower: whether a smaller one is better.
        least: the smallest value that a client may report.
        most: the largest.
    """

    lower: bool = False
    least: float = 0.0
    most: float = 1.0

    @property
    def is_rate(self) -> bool:
        """Whether it is a share, from 0 to 1."""
        return (self.least, self.most) == (0.0, 1.0)


ANSWER_METRICS: Mapping[str, Metric] = MappingProxyType(
    {name: Metric() for name in ("rouge1", "rouge2", "rougeL")}
)
"""Of answers that are written out: ``evaluation.answers``."""

LOSS = Metric(lower=True, most=MAX_VALUE)
"""The mean loss, which every task has."""
