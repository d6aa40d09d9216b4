"""LiRA: guesses of membership by shadow runs: :func:`likelihood_ratios`.

After Carlini et al. 2022 (arXiv 2112.03570). Of each candidate the attacker knows how confident models are
that saw it, and how confident those that did not: two Gaussians, of log-odds. Every run is once the one
attacked, with all others as its shadows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError
from headwater.privacy.audit.intervals import Floats

ENOUGH = 64
"""Shadows from which a candidate has a variance of its own; below, all share one (section VI-C)."""
_LEAST_LOSS, _LEAST_VARIANCE = 1e-12, 1e-12


def log_odds(losses: npt.ArrayLike) -> Floats:
    """log(p/(1−p)) of p = exp(−loss), for cross-entropies of single labels [...] (equation 4).

    It is near a Gaussian where the loss is not.
    """
    given = np.maximum(np.asarray(losses, np.float64), _LEAST_LOSS)
    found: Floats = -given - np.log(-np.expm1(-given))
    return found


def likelihood_ratios(
    scores: npt.ArrayLike, inside: npt.NDArray[np.bool_], *, offline: bool = False
) -> Floats:
    """How much more a run's score of a candidate is one of a run that saw it [runs, candidates].

    Args:
        scores: log-odds of each run's model [runs, candidates].
        inside: whether the run saw the candidate.
        offline: only shadows that did *not* see it are used: an attacker who trained them before knowing the
            candidate. Then the result is standard deviations above their mean.

    Raises:
        ConfigError: shapes that differ, or a candidate whose shadows are all of one side.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or values.shape != inside.shape:
        raise ConfigError("shadow runs", expected=f"scores {list(inside.shape)}", got=str(list(values.shape)))
    found = np.empty_like(values)
    for target in range(len(values)):
        others = np.arange(len(values)) != target
        out_mean, out_spread, out_variance = _gaussian(values[others], ~inside[others])
        away = np.square(values[target] - out_mean) / out_variance
        if offline:
            found[target] = np.sign(values[target] - out_mean) * np.sqrt(away)
            continue
        in_mean, in_spread, in_variance = _gaussian(values[others], inside[others])
        near = np.square(values[target] - in_mean) / in_variance
        found[target] = (away - near + np.log(out_spread) - np.log(in_spread)) / 2
    return found


def _gaussian(values: Floats, which: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Mean and variance of each candidate's scores, of the runs marked, and the variance of one more run's.

    The last is more by the mean's own, variance/count: without it a run that saw a candidate looks unlike the
    *fewer* shadows that did, and guesses at nothing come out below chance.
    """
    count = which.sum(0)
    if (count < 1).any() or count.sum() <= len(count):
        raise ConfigError(
            "shadow runs",
            expected="of each candidate some that saw it and some that did not, besides the run attacked",
            got=f"{int(count.min())}",
            hint="Have more runs, and let each candidate be in half of them.",
        )
    mean = np.where(which, values, 0).sum(0) / count
    squares = np.where(which, np.square(values - mean), 0)
    own = squares.sum(0) / np.maximum(count - 1, 1)
    shared = squares.sum() / (count.sum() - len(count))
    variance = np.maximum(np.where(count >= ENOUGH, own, shared), _LEAST_VARIANCE)
    return mean, variance, variance * (1 + 1 / count)
