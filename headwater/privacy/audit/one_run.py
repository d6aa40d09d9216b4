"""ε from below by the guesses of one run, each about a canary that a fair coin put in or left out.

:func:`epsilon_by_guesses` holds for any mechanism (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846);
:func:`epsilon_of_gaussian` for one whose trade-off is that of a Gaussian, and is then tighter (Mahloujifar,
Melis, Chaudhuri 2024, arXiv 2410.22235). Guesses may hang on all that the run released, not on the coins.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from headwater.errors import ConfigError
from headwater.privacy.audit.intervals import bisected, probabilities

MOST_EPSILON = 100.0
"""What is above it is said to be this."""
_NORMAL = statistics.NormalDist()


def epsilon_by_guesses(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """The largest ε that so many right guesses refute, at δ; 0 where they refute none.

    Args:
        canaries: m, how many coins were thrown.
        guesses: r, of how many the auditor guessed the coin.
        right: v, how many of those it got.
        delta: δ.
        confidence: in (0, 1): an (ε, δ)-private run is refuted with a probability of at most the rest.

    Raises:
        ConfigError: no such counts.
    """
    _require(canaries, guesses, right)
    return _last(lambda e: p_value(canaries, guesses, right, e, delta) < 1 - confidence)


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are at most, were the run (ε, δ)-private (theorem 5.2).

    With δ = 0 they are no more than of randomised response: right with e^ε/(1+e^ε), each by itself. Each of
    m canaries can be in that share 2δ where it says more, and one such moves the count by i at most with the
    probability that was i below.
    """
    own = probabilities(guesses, 1 / (1 + math.exp(-epsilon)))
    reached = float(own[right:].sum())
    missing = np.cumsum(own[:right][::-1])  # P[right − i ≤ count < right], i = 1 … right
    slack = float((missing / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, reached + 2 * canaries * delta * slack)


def epsilon_of_gaussian(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """As :func:`epsilon_by_guesses`, of mechanisms that are μ-GDP: the ε at δ of the largest μ refuted.

    Rounds without sampling are such (μ = √rounds/z); those of drawn cohorts are only nearly.

    Raises:
        ConfigError: no such counts.
    """
    _require(canaries, guesses, right)
    significance = 1 - confidence
    mu = bisected(lambda m: _refuted(canaries, guesses, right, m, significance), 0.0, 2 * MOST_EPSILON)
    return epsilon_at(mu, delta)


def epsilon_at(mu: float, delta: float) -> float:
    """ε of a μ-GDP mechanism at δ (Dong, Roth, Su 2022, arXiv 1905.02383, corollary 2.13)."""

    def more(epsilon: float) -> bool:
        lower = math.log(max(_cdf(-epsilon / mu - mu / 2), 1e-320)) + epsilon
        return _cdf(-epsilon / mu + mu / 2) - math.exp(lower) > delta

    return _last(more) if mu > 0 else 0.0


def _refuted(canaries: int, guesses: int, right: int, mu: float, significance: float) -> bool:
    """Whether so many right guesses are less likely than ``significance`` (algorithm 2 of 2410.22235)."""
    hits, misses = significance * right / canaries, significance * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        more = max(misses, _cdf(_quantile(hits) - mu))
        if more == misses:
            break
        hits, misses = min(1.0, hits + i / (guesses - i) * (more - misses)), more
    return hits + misses > guesses / canaries


def _last(refuted: Callable[[float], bool]) -> float:
    if not refuted(0.0):
        return 0.0
    return MOST_EPSILON if refuted(MOST_EPSILON) else bisected(refuted, 0.0, MOST_EPSILON)


def _cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _quantile(share: float) -> float:
    return -math.inf if share <= 0 else math.inf if share >= 1 else _NORMAL.inv_cdf(share)


def _require(canaries: int, guesses: int, right: int) -> None:
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise ConfigError(
            "audit by one run",
            expected="right guesses, of guesses, of canaries",
            got=f"{right} of {guesses} of {canaries}",
        )
