"""Weights of successive versions of one adapter, whose average stands for a fall of the learning rate.

WSM (arXiv 2507.17634): the average Σ c_j·θ_j of K versions, oldest first, is where training would have got
had the step from θ_{i−1} to θ_i been only w_i = Σ_{j≥i} c_j as long. So a fall f of the rate over these
versions, from f(0) = 1 to f(1) = 0, gives c_j = f(j/K) − f((j+1)/K), j = 0 … K − 1: linear is the plain mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from headwater.errors import ConfigError

DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: (1.0 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}
"""The falls, by name."""


def decay_weights(decay: str, count: int) -> list[float]:
    """c_0 … c_{count−1}, oldest first: all above 0, of sum 1.

    Raises:
        ConfigError: an unknown decay, or no version.
    """
    if decay not in DECAYS:
        raise ConfigError("--decay", expected=", ".join(DECAYS), got=repr(decay))
    if count < 1:
        raise ConfigError("--decay", expected="at least one version", got=str(count))
    fall = DECAYS[decay]
    return [fall(j / count) - fall((j + 1) / count) for j in range(count)]
