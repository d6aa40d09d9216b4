"""What an update weighs that started from an older version: :func:`staleness_weight`."""

from __future__ import annotations

from headwater.errors import ConfigError

WEIGHT_SCALE = 2**10
"""What a fresh update's weight is multiplied by, so that an older one's can be a fraction of it."""


def staleness_weight(weight: int, staleness: int, exponent: float) -> int:
    """max(1, round(weight · 2¹⁰ · (1+s)⁻ᵃ)), the integer weight of an update s versions old.

    The factor is FedAsync's polynomial s_a (arXiv 1903.03934, section 5.2), with a = ½ the 1/√(1+s) of
    FedBuff's experiments (arXiv 2106.06639). Weights are integers since accumulators are. The factor 2¹⁰
    is the same for every update, so it cancels in a mean; with it even a weight of 1 is rounded by at
    most 0.21 % for s ≤ 20, a = ½. FedBuff divides the buffer's sum by the number of updates, a mean here
    by the sum of the weights: a buffer of stale updates moves the model as far as one of fresh ones.

    Args:
        weight: what the update weighs at s = 0, at least 1.
        staleness: s, the versions made since its client was asked.
        exponent: a ≥ 0; 0 makes all ages equal.

    Raises:
        ConfigError: a number is out of range.
    """
    if weight < 1 or staleness < 0 or not exponent >= 0:
        raise ConfigError(
            "staleness weight",
            expected="weight ≥ 1, staleness ≥ 0, exponent ≥ 0",
            got=f"{weight}, {staleness}, {exponent}",
        )
    decay: float = (1 + staleness) ** -exponent
    factor = round(2.0**53 * decay)  # integers from here on: exact for any weight
    return max(1, (weight * WEIGHT_SCALE * factor + 2**52) >> 53)
