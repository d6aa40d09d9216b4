"""Intervals of shares: :func:`binomial_interval`, and the tails of the binomial distribution it stands on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError

Floats = npt.NDArray[np.float64]
_HALVINGS = 48


class Interval(NamedTuple):
    """A value and its interval.

    Args:
        value: as measured.
        low: the lower end.
        high: the upper end.
    """

    value: float
    low: float
    high: float


def binomial_interval(hits: int, trials: int, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson 1934: at least ``confidence``, whatever the share is, of independent trials.

    Args:
        hits: how many succeeded.
        trials: of how many, at least one.
        confidence: in (0, 1).

    Raises:
        ConfigError: no such count.
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ConfigError(
            "interval of a share", expected="hits of at least one trial", got=f"{hits} of {trials}"
        )
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else bisected(lambda p: at_least(hits, trials, p) < tail, 0.0, 1.0)
    high = 1.0 if hits == trials else bisected(lambda p: at_least(hits + 1, trials, p) < 1 - tail, 0.0, 1.0)
    return Interval(hits / trials, low, high)


def at_least(hits: int, trials: int, share: float) -> float:
    """P[Binomial(trials, share) ≥ hits]."""
    return float(probabilities(trials, share)[hits:].sum()) if hits > 0 else 1.0


def probabilities(trials: int, share: float) -> Floats:
    """P[Binomial(trials, share) = k] for k = 0 … trials."""
    k = np.arange(trials + 1)
    if share in (0.0, 1.0):
        return np.where(k == trials * share, 1.0, 0.0)
    logs = _log_factorials(trials)
    exponents = logs[-1] - logs - logs[::-1] + k * math.log(share) + (trials - k) * math.log1p(-share)
    found: Floats = np.exp(exponents)
    return found


@lru_cache(maxsize=16)
def _log_factorials(most: int) -> Floats:
    """The logarithms of k! for k = 0 … most."""
    return np.concatenate([np.zeros(1), np.cumsum(np.log(np.arange(1, most + 1)))])


def bisected(below: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``below`` ends to hold, between ``low`` and ``high``: the last value at which it was seen to."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return low
