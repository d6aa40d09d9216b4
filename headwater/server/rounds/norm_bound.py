"""The norm bound: no update moves the merge further than a bound lets it (Sun et al. 2019, arXiv 1911.07963).

A server shortens each update before it adds it, so it goes with every rule.
"""

from __future__ import annotations

from dataclasses import replace

from headwater.merging.plan import Update
from headwater.privacy.clip import clip_l2
from headwater.state import AdapterState


def within(update: Update, bound: float) -> tuple[Update, float | None]:
    """``update``, shortened where its L2 norm is above ``bound``, and its noise with it.

    One with a value that is not finite comes back as it is: the rule refuses it. So do coefficients of seeds,
    which their plan bounds. A part of an adapter counts as zero outside.

    Args:
        update: decoded.
        bound: above 0.

    Returns:
        The update to add, and the norm that it came with if that was above the bound.
    """
    delta = update.delta
    if not isinstance(delta, AdapterState) or not delta.isfinite():
        return update, None
    clipped, norm = clip_l2(delta, bound)
    if clipped is delta:
        return update, None
    return replace(update, delta=clipped, noise=update.noise * (bound / norm) ** 2), norm
