"""How well a score tells what was trained on from what was not: :class:`Membership`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError
from headwater.privacy.audit.intervals import Floats, Interval, binomial_interval

FALSE_POSITIVE_RATES = (0.001, 0.01)
"""At which an attack is judged (Carlini et al. 2022, arXiv 2112.03570): a guess that is seldom wrong harms; a
mean over all guesses says little of it."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What a score gets. Intervals take trials for independent.

    Args:
        auc: how often a member's score is above a stranger's; 0.5 is chance. The interval is DeLong's (1988).
        tpr: by false positive rate, the share of members above a threshold that no more strangers pass.
            The interval is of that share at this threshold.
        members: how many.
        strangers: how many. Fewer than 1/rate: the rate is none of them.
    """

    auc: Interval
    tpr: dict[float, Interval]
    members: int
    strangers: int

    @staticmethod
    def of(
        members: npt.ArrayLike,
        strangers: npt.ArrayLike,
        *,
        rates: Sequence[float] = FALSE_POSITIVE_RATES,
        confidence: float = 0.95,
    ) -> Membership:
        """Measure a score, of which more speaks for membership.

        Args:
            members: of what was trained on [n].
            strangers: of what was not [m].
            rates: false positive rates.
            confidence: of each interval.

        Raises:
            ConfigError: fewer than two on a side, or a score that is no number.
        """
        inside, outside = (np.sort(np.asarray(x, np.float64).ravel()) for x in (members, strangers))
        for side, values in (("members", inside), ("strangers", outside)):
            if values.size < 2 or np.isnan(values).any():
                raise ConfigError(f"scores of {side}", expected="two numbers or more", got=f"{values.size}")
        tpr = {rate: _rate(inside, outside, rate, confidence) for rate in rates}
        return Membership(_auc(inside, outside, confidence), tpr, inside.size, outside.size)


def _auc(inside: Floats, outside: Floats, confidence: float) -> Interval:
    """Mann and Whitney's share with half of the ties, and DeLong's variance of it."""
    of_members, of_strangers = _passed(inside, outside), 1 - _passed(outside, inside)
    value = float(of_members.mean())
    variance = of_members.var(ddof=1) / inside.size + of_strangers.var(ddof=1) / outside.size
    if variance == 0:  # all apart, or all alike: there is nothing to estimate it from
        fewer = min(inside.size, outside.size)
        return Interval(value, *binomial_interval(round(value * fewer), fewer, confidence)[1:])
    reach = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def _passed(scores: Floats, others: Floats) -> Floats:
    """Of each score, the share of the sorted ``others`` below it, and half of those that are alike."""
    below, up_to = (np.searchsorted(others, scores, side) for side in ("left", "right"))
    found: Floats = (below + up_to) / 2 / others.size
    return found


def _rate(inside: Floats, outside: Floats, rate: float, confidence: float) -> Interval:
    allowed = math.floor(rate * outside.size)
    threshold = outside[outside.size - 1 - allowed] if allowed < outside.size else -math.inf
    above = int(inside.size - np.searchsorted(inside, threshold, "right"))
    return binomial_interval(above, inside.size, confidence)
