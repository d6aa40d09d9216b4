"""Optimise: the parameters of a mechanism with the least error over a run, by BFGS in a few lines of NumPy.

Minimised is sensitivity² × variance: of the worst prefix sum (``"max"``) or of their mean (``"mean"``). No
matrix is made: n·buffers or n·bands steps an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from headwater.errors import ConfigError
from headwater.privacy.correlated.blt import BufferedToeplitz, residues, series
from headwater.privacy.correlated.mechanism import Floats, Participation
from headwater.privacy.correlated.toeplitz import Banded, best_coefficients

Error = Literal["max", "mean"]
Valued = Callable[[Floats], tuple[float, Floats]]
_STEPS = 400
_LARGEST = 1 - 1e-9
"""A decay at most: nearer to 1, differences of two of them lose too many digits."""


def best_blt(participation: Participation, buffers: int = 3, error: Error = "max") -> BufferedToeplitz:
    """The BLT with the least error (2408.08868, section 4).

    Searched are decays and zeros that alternate (θ₁ > ζ₁ > θ₂ > …), so that all it meets is valid.

    Args:
        participation: in which rounds an owner can be.
        buffers: how many decays, 1 to 6.
        error: which prefix sums count.

    Raises:
        ConfigError: another number of buffers.
    """
    if not 1 <= buffers <= 6:
        raise ConfigError("BLT", expected="1 to 6 buffers", got=str(buffers))
    n = participation.rounds
    weights = _weights(n, error)

    def loss(point: Floats) -> float:
        decays, zeros = _alternating(point)
        if not (np.diff(np.stack([decays, zeros], 1).ravel()) < -1e-12).all():
            return np.inf
        scales = residues(decays, zeros)
        if not (scales > 0).all():
            return np.inf
        sensitivity = BufferedToeplitz(tuple(decays), tuple(scales)).sensitivity(participation)
        prefix = np.cumsum(series(zeros, residues(zeros, decays), n))
        return float(2 * np.log(sensitivity) + np.log(weights @ np.square(prefix)))

    logit = np.log(max(n, 4)) + 1.0  # of the largest: 1 − θ is about one over the rounds
    start = np.concatenate([[logit], np.full(2 * buffers - 1, np.log((logit + 1.5) / (2 * buffers - 1)))])
    return BufferedToeplitz.of_zeros(*_alternating(minimise(_with_slope(loss), start)))


def best_bands(participation: Participation, bands: int, error: Error = "max") -> Banded:
    """The banded Toeplitz matrix with the least error for owners who are ``bands`` rounds apart, at least.

    Their columns do not overlap, so sensitivity is √k·‖c‖ (2306.08153).

    Args:
        participation: in which rounds an owner can be.
        bands: how many coefficients; at most the separation.
        error: which prefix sums count.

    Raises:
        ConfigError: more bands than rounds between.
    """
    n = participation.rounds
    if not 1 <= bands <= min(participation.separation, n):
        raise ConfigError(
            "bands",
            expected=f"1 to {min(participation.separation, n)}, the rounds from one part to the next",
            got=str(bands),
        )
    if bands == 1:
        return Banded((1.0,))
    weights = _weights(n, error)

    def loss(tail: Floats) -> tuple[float, Floats]:
        c = np.concatenate([[1.0], tail])
        inverse = _reciprocal(c, n)
        prefix = np.cumsum(inverse)
        twice = np.convolve(prefix, inverse)[:n]  # −∂prefix/∂c_j, moved by j
        norm, variance = float(c @ c), float(weights @ np.square(prefix))
        weighted = weights * prefix
        slope = np.array([-2 * weighted[j:] @ twice[: n - j] for j in range(1, bands)])
        return float(np.log(norm) + np.log(variance)), 2 * tail / norm + slope / variance

    tail = minimise(loss, best_coefficients(bands)[1:])
    return Banded((1.0, *np.minimum.accumulate(np.clip(tail, 0.0, 1.0)).tolist()))


def minimise(function: Valued, start: Floats) -> Floats:
    """A local minimum by BFGS with steps that are halved until they pay (Nocedal and Wright 2006, alg. 6.1).

    Args:
        function: value and slope at a point; infinite where there is none.
        start: where both are finite.
    """
    point, inverse = start.copy(), np.eye(start.size)
    value, slope = function(point)
    for _ in range(_STEPS):
        step = -inverse @ slope
        if float(slope @ step) > -1e-12:
            break
        step *= min(1.0, 2.0 / float(np.abs(step).max()))
        fall, size = float(slope @ step), 1.0
        while size > 1e-10:
            after, after_slope = function(point + size * step)
            if after <= value + 1e-4 * size * fall:
                break
            size /= 2
        else:
            break
        moved, turned = size * step, after_slope - slope
        point, value, slope = point + moved, after, after_slope
        if (curved := float(moved @ turned)) > 1e-14:
            seen = inverse @ turned
            inverse = (
                inverse
                + (curved + float(turned @ seen)) / curved**2 * np.outer(moved, moved)
                - (np.outer(seen, moved) + np.outer(moved, seen)) / curved
            )
    return point


def _weights(rounds: int, error: Error) -> Floats:
    """How much the square of the j-th prefix coefficient counts: it is in the sums from round j on."""
    return np.ones(rounds) if error == "max" else np.arange(rounds, 0, -1) / rounds


def _alternating(point: Floats) -> tuple[Floats, Floats]:
    """θ and ζ, from the logit of θ₁ and the logarithms of the steps down from it."""
    logits = np.concatenate([[0.0], np.cumsum(np.exp(np.clip(point[1:], -30, 6)))])
    values = np.minimum(1 / (1 + np.exp(np.clip(logits - point[0], -40, 700))), _LARGEST)
    return values[0::2], values[1::2]


def _with_slope(loss: Callable[[Floats], float]) -> Valued:
    """Central differences: the points are a dozen numbers at most."""

    def valued(point: Floats) -> tuple[float, Floats]:
        value, width = loss(point), 1e-5
        if not np.isfinite(value):
            return np.inf, np.zeros_like(point)
        around = np.array([(loss(point + width * e), loss(point - width * e)) for e in np.eye(point.size)])
        if not np.isfinite(around).all():
            return np.inf, np.zeros_like(point)  # the edge of what is valid
        return value, (around[:, 0] - around[:, 1]) / (2 * width)

    return valued


def _reciprocal(c: Floats, rounds: int) -> Floats:
    """The first coefficients of 1/c(x), c₀ = 1."""
    out, back = np.zeros(rounds), c[:0:-1]
    out[0] = 1.0
    for t in range(1, rounds):
        first = max(0, t - back.size)
        out[t] = -back[back.size - (t - first) :] @ out[first:t]
    return out
