"""What canaries tell of a run: :func:`audit_canaries`.

A canary is an owner, or a row, that says something nobody else says, as loud as the bound allows. A fair coin
put it in or left it out; its score says how much of it is in what was released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError
from headwater.privacy.audit.intervals import Floats
from headwater.privacy.audit.one_run import (
    MOST_EPSILON,
    epsilon_at,
    epsilon_by_guesses,
    epsilon_of_gaussian,
)

SHARES = (1 / 64, 1 / 16, 1 / 4)
"""Of the canaries that are guessed in, and as many out: all are tried, each with its part of the risk."""


@dataclass(frozen=True, slots=True)
class CanaryAudit:
    """What one run's canaries say of ε.

    Args:
        epsilon: a lower bound, whatever the mechanism is.
        gaussian: a lower bound for Gaussian noise without sampling.
        estimate: no bound: ε of two Gaussians as far apart as the scores (after Andrew et al. 2023, arXiv
            2302.03098).
        canaries: how many coins were thrown.
        guesses: how many of them ``epsilon`` was got with.
        right: how many of those were right.
        delta: δ of all three.
        confidence: of each bound.
    """

    epsilon: float
    gaussian: float
    estimate: float
    canaries: int
    guesses: int
    right: int
    delta: float
    confidence: float


def audit_canaries(
    scores: npt.ArrayLike,
    inside: npt.NDArray[np.bool_],
    delta: float,
    *,
    confidence: float = 0.95,
    shares: Sequence[float] = SHARES,
) -> CanaryAudit:
    """Guess the coins of the highest scores *in* and of the lowest *out*, and bound ε by how often it is so.

    Args:
        scores: how much of each canary was seen [m].
        inside: whether its coin put it in [m]: independent, fair coins.
        delta: δ of the claim.
        confidence: with which each bound holds.
        shares: of the canaries to guess in, and as many out; at most a half.

    Raises:
        ConfigError: fewer than two canaries, or scores that are no numbers.
    """
    values, coins = np.asarray(scores, np.float64), np.asarray(inside, bool)
    if values.ndim != 1 or values.shape != coins.shape or values.size < 2 or np.isnan(values).any():
        raise ConfigError("canaries", expected="a score for each of two or more", got=str(values.shape))
    order, count = np.argsort(values, kind="stable"), values.size
    each = 1 - (1 - confidence) / len(shares)

    def best(bound: Callable[[int, int, int, float, float], float]) -> tuple[float, int, int]:
        tried = []
        for share in shares:
            side = max(1, int(share * count))
            right = int(coins[order[-side:]].sum()) + int((~coins[order[:side]]).sum())
            tried.append((bound(count, 2 * side, right, delta, each), 2 * side, right))
        return max(tried)

    epsilon, guesses, right = best(epsilon_by_guesses)
    gaussian = best(epsilon_of_gaussian)[0]
    apart = _apart(values[coins], values[~coins])
    return CanaryAudit(epsilon, gaussian, epsilon_at(apart, delta), count, guesses, right, delta, confidence)


def _apart(inside: Floats, outside: Floats) -> float:
    """How many standard deviations the means are apart; 0 where there are too few to tell."""
    if min(inside.size, outside.size) < 2:
        return 0.0
    squares = float(np.square(inside - inside.mean()).sum() + np.square(outside - outside.mean()).sum())
    spread = (squares / (inside.size + outside.size - 2)) ** 0.5
    distance = max(0.0, float(inside.mean() - outside.mean()))
    return min(distance / spread, 2 * MOST_EPSILON) if spread > 0 else 2 * MOST_EPSILON * (distance > 0)
