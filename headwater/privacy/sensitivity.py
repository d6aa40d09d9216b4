"""Sensitivity: how far one client can move what is added up, as a value that travels with the update.

What differential privacy must know of an update is a bound that holds whatever the client's data are. It is
carried along as a type, as ``jax_privacy`` does for gradients (google-deepmind/jax_privacy,
``clipping.BoundedSensitivityCallable``): :class:`Unbounded` until something bounds it, then
:class:`Bounded`, and each step of a pipeline says what it makes of it. Noise asks for a :class:`Bounded` one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from headwater.errors import ConfigError

ROUNDING = 1 + 2**-7
"""A codec's rounding (bf16: 2^-8) may lift a norm this far above the bound it was clipped to."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """No client's update is longer than ``l2``, whatever its data are.

    So the sum of all updates moves by at most ``l2`` where one client is added or removed, and by at most
    twice that where another takes its place: its update may point the other way.

    Args:
        l2: the bound of the L2 norm, over all tensors together; above 0.

    Raises:
        ConfigError: the bound is not a number above 0.
    """

    l2: float

    def __post_init__(self) -> None:
        if not (self.l2 > 0 and math.isfinite(self.l2)):
            raise ConfigError("sensitivity", expected="a finite bound above 0", got=repr(self.l2))


@dataclass(frozen=True, slots=True)
class Unbounded:
    """An update may be as long as its client's data make it."""


Sensitivity: TypeAlias = Bounded | Unbounded
