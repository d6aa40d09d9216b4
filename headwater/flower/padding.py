"""Padding of what travels to sizes that many messages share: :func:`bucket`, :func:`filler`.

TLS hides content, and shows how long it is. An entropy coder's output is as long as its input is surprising,
so lengths tell of updates; and small replies tell by their lengths what they are.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Padding = Literal["none", "padme", "power-of-two"]
PADDINGS: tuple[Padding, ...] = ("none", "padme", "power-of-two")
LEAST = 4096
"""Bytes of the smallest bucket: requests, profiles, evaluations and failures are all in it."""


def bucket(size: int, padding: Padding) -> int:
    """The length to which ``size`` bytes are padded.

    ``padme`` adds at most 12 % and leaves O(log log size) bits to see (Nikitin et al. 2019, arXiv 1806.03160,
    algorithm 1: a size keeps as many leading bits as its exponent has); ``power-of-two`` adds up to 100 %.
    """
    if padding == "none":
        return size
    size = max(size, LEAST)
    exponent = size.bit_length() - 1
    kept = exponent.bit_length() if padding == "padme" else 0
    mask = (1 << exponent - kept) - 1
    return (size + mask) & ~mask


def filler(data: bytes, padding: Padding) -> bytes:
    """What is put behind ``data``, the same each time.

    It does not repeat itself: Flower names chunks by their hashes and sends equal ones once, which would
    undo the padding. It need not be secret, since TLS encrypts it.
    """
    missing = bucket(len(data), padding) - len(data)
    seed = b"headwater padding v1\0" + hashlib.sha256(data).digest()
    return hashlib.shake_256(seed).digest(missing) if missing else b""
