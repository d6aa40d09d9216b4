"""deal: shares of something to names, at random by a seed, and as even as whole names allow."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence


def deal(names: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """What each name gets: the same for everybody who knows names, shares and seed.

    Quotas are by largest remainder (Hamilton), ties to what stands first in ``shares``. Names stand in the
    order of SHA-256 of ``"{seed}:{name}"``, the first get what stands first in ``shares``.

    Args:
        names: whom to deal to; their order does not matter.
        shares: what → fraction of the names, summing up to 1.
        seed: of the order.
    """
    exact = [len(names) * share for share in shares.values()]
    quotas = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (quotas[i] - exact[i], i))
    for i in by_remainder[: len(names) - sum(quotas)]:
        quotas[i] += 1
    order = sorted(names, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))
    dealt = [what for what, quota in zip(shares, quotas, strict=True) for _ in range(quota)]
    return dict(zip(order, dealt, strict=True))
