"""Clipping: :func:`clip_l2` bounds the L2 norm of a whole update.

DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963): δ ← δ·min(1, C/‖δ‖), the norm over all tensors
together.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from headwater.errors import ConfigError, TrainingError
from headwater.protocol.failures import FailureCode, coded
from headwater.state import AdapterState

_MARGIN = 2.0**-40


def clip_l2(state: AdapterState, bound: float) -> tuple[AdapterState, float]:
    """Scale ``state`` down so that its L2 norm is at most ``bound``.

    The result's norm never exceeds the bound, rounding included: every scaled value is rounded
    towards zero, and the target lies 2^-40 (1e-12) below the bound, more than the float64 sums can be
    off (2^-48 for 2^31 values in NumPy's pairwise order, which no thread count changes). A state
    below the target comes back as it is, so clipping twice is clipping once.

    Args:
        state: a delta.
        bound: C, above 0.

    Returns:
        The clipped state, and the norm before clipping.

    Raises:
        ConfigError: the bound is not a number above 0.
        TrainingError: the state has a value that is not finite.
    """
    if not (bound > 0 and math.isfinite(bound)):
        raise ConfigError("clip_l2", expected="a finite bound above 0", got=repr(bound))
    vector = state.vector().numpy().astype(np.float64)
    norm = _norm(vector)
    if not math.isfinite(norm):
        error = TrainingError(
            "clip_l2",
            expected="finite values",
            got="NaN or infinity in the update",
            hint="The local training diverged: lower its learning rate.",
        )
        raise coded(error, FailureCode.DIVERGED)
    if norm <= bound * (1.0 - _MARGIN / 2):
        return state, norm
    vector *= bound * (1.0 - _MARGIN) / norm
    rounded = vector.astype(np.float32)
    rounded = np.where(np.abs(rounded) > np.abs(vector), np.nextafter(rounded, np.float32(0)), rounded)
    return AdapterState.from_vector(state.spec, torch.from_numpy(rounded)), norm


def _norm(vector: npt.NDArray[np.float64]) -> float:
    return math.sqrt(float(np.sum(np.square(vector))))
