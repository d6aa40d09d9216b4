"""What is known of the clients' links: how fast their last updates came (:func:`noted`, :func:`link_bytes`).

A speed is a measured one: bytes that were through, by the time that their way took, latency included. What a
budget makes of it is the speed of an update of that size again, so sizes settle where the time is used up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_low

KEPT = 5
"""So many of a client's last speeds are kept. Of three and more, one stall is not the median."""
_DIGITS = 4
"""Significant bits of a budget: clients whose links are alike are asked the same."""
_MOST = 2**62


def noted(
    links: Mapping[str, tuple[int, ...]], measured: Mapping[str, Sequence[int]]
) -> Mapping[str, tuple[int, ...]]:
    """``links`` with what was measured since.

    Args:
        links: by client, in bytes/s, the oldest first.
        measured: likewise.
    """
    found = {client: (*links.get(client, ()), *speeds)[-KEPT:] for client, speeds in measured.items()}
    return dict(sorted({**links, **{client: speeds for client, speeds in found.items() if speeds}}.items()))


def link_bytes(speeds: Sequence[int], seconds: float) -> int | None:
    """How many bytes a link carries in so many seconds, rounded down to 4 bits; None if nobody knows.

    Args:
        speeds: that were measured, in bytes/s: the lower median counts.
        seconds: above 0.
    """
    if not speeds:
        return None
    whole = int(min(median_low(speeds) * seconds, _MOST))
    below = max(0, whole.bit_length() - _DIGITS)
    return whole >> below << below
