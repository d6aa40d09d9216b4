"""Shamir's secret sharing (1979) of 32-byte secrets: t shares give the secret, t - 1 say nothing of it.

Over the field of :data:`PRIME` elements, the smallest prime above 2^256: any 32 bytes are one element.
A share is 33 bytes; its point x is not in it, since both sides know whose it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

from headwater.errors import DecodeError
from headwater.security.secagg.secret import SECRET_BYTES, Secret

PRIME = 2**256 + 297
SHARE_BYTES = 33


def split(secret: Secret, points: Sequence[int], threshold: int) -> list[bytes]:
    """A share for each point.

    Args:
        secret: to be shared.
        points: distinct, 1 … PRIME - 1.
        threshold: so many of the shares give the secret, 1 … len(points).

    Raises:
        ValueError: no such threshold, or points that are no such.
    """
    if not 1 <= threshold <= len(points):
        raise ValueError(f"a threshold of {threshold} with {len(points)} shares")
    if len(set(points)) != len(points) or not all(0 < x < PRIME for x in points):
        raise ValueError("points must be distinct and not 0")
    known = int.from_bytes(secret.value, "big")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    shares = []
    for x in points:
        value = 0
        for coefficient in coefficients:  # Horner, the highest power first
            value = (value * x + coefficient) % PRIME
        shares.append(((value * x + known) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def join(shares: Mapping[int, bytes], who: str) -> Secret:
    """The secret that lies on these shares, of which there must be exactly as many as the threshold.

    Args:
        shares: by point.
        who: whose secret it is, for the message.

    Raises:
        DecodeError: they are no shares of 32 bytes.
    """
    points = tuple(sorted(shares))
    total = 0
    for x, weight in zip(points, _weights(points), strict=True):
        total += int.from_bytes(shares[x], "big") * weight
    total %= PRIME
    if total >= 2 ** (8 * SECRET_BYTES) or any(len(share) != SHARE_BYTES for share in shares.values()):
        raise DecodeError(who, expected="shares of its secret", got="others")
    return Secret(total.to_bytes(SECRET_BYTES, "big"))


@lru_cache(maxsize=256)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients at 0, Π_j≠i x_j / (x_j - x_i): the same for clients with the same holders."""
    product = 1
    for x in points:
        product = product * x % PRIME
    below = []
    for x in points:
        value = x
        for other in points:
            if other != x:
                value = value * (other - x) % PRIME
        below.append(value)
    # one inversion for all (Montgomery's trick)
    running, before = 1, []
    for value in below:
        before.append(running)
        running = running * value % PRIME
    inverse = pow(running, -1, PRIME)
    weights = [0] * len(points)
    for i in reversed(range(len(points))):
        weights[i] = product * inverse * before[i] % PRIME
        inverse = inverse * below[i] % PRIME
    return tuple(weights)
