"""Adaptive clipping: the bound follows a quantile of norms (Andrew et al. 2021, arXiv 1905.03871).

Each round also releases, with noise of its own, how many updates were no longer than the bound. The two
releases cost together what one sum with noise multiplier z does, if the sum's own is a little larger
(theorem 1): :func:`sum_multiplier`.
"""

from __future__ import annotations

import math

from headwater.errors import ConfigError


def sum_multiplier(multiplier: float, count_sigma: float) -> float:
    """z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2), the multiplier of the sum's noise beside the count's.

    Each owner's part of the count is its bit minus ½, which is ±½: over that, σ_b is a multiplier of 2σ_b.

    Args:
        multiplier: z, of both together.
        count_sigma: σ_b, the standard deviation of the count's noise.

    Raises:
        ConfigError: the count alone costs too much of z: z_Δ would be above 2z.
    """
    left = multiplier**-2 - (2 * count_sigma) ** -2
    if left < multiplier**-2 / 4:  # the sum's noise at most twice what it is without
        raise ConfigError(
            "privacy.adaptive",
            expected=f"count_noise of at least {multiplier / math.sqrt(3):.3g}, the noise multiplier over √3",
            got=f"{count_sigma:g}",
            hint="Raise it, or ask more owners in a round: it is a twentieth of them unless you say.",
        )
    return float(left**-0.5)


def next_clip(clip: float, share: float, quantile: float, rate: float) -> float:
    """C·exp(−η(b̃ − γ)): shorter where more updates than the quantile were within the bound.

    Args:
        clip: C of the round.
        share: b̃, the noised share of updates within it; beyond [0, 1] it counts as 0 or 1.
        quantile: γ.
        rate: η.
    """
    return clip * math.exp(-rate * (min(max(share, 0.0), 1.0) - quantile))
