"""Directions again, written from docs/reference/directions.md with Python's integers alone.

Nothing of Headwater and nothing of NumPy is used here: it is the oracle, and the proof that the page is
enough for a stranger.
"""

from __future__ import annotations

import hashlib
from statistics import NormalDist

MASK = 2**64 - 1


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 of four counter words and two key words, least significant word first."""
    x, k = list(counter), list(key)
    for _ in range(10):
        first, second = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [(second >> 64) ^ x[1] ^ k[0], second & MASK, (first >> 64) ^ x[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return x


def family(federation_seed: int, distribution: str) -> bytes:
    """The 16 bytes that name a federation's directions."""
    digest = hashlib.sha256(b"headwater.key.v1" + federation_seed.to_bytes(16, "big", signed=True)).digest()
    for part in ("seeds", distribution):
        digest = hashlib.sha256(digest + b"s" + part.encode()).digest()
    return digest[:16]


def block(key: bytes, number: int, line: int, kind: int) -> bytes:
    """32 random bytes."""
    words = [int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")]
    return b"".join(word.to_bytes(8, "little") for word in philox4x64([number, line, kind, 0], words))


def quantile(index: int) -> int:
    """Entry ``index`` of the table of N(0, 1)."""
    if index < 32768:
        return -quantile(65535 - index)
    return round(NormalDist().inv_cdf((index + 0.5) / 65536) * 4096)


def value(key: bytes, distribution: str, seed: int, index: int) -> int:
    """Value ``index`` of direction ``seed``, in units of 1 (rademacher) or 2^-12 (gaussian)."""
    if distribution == "rademacher":
        byte = block(key, index // 32, seed // 8, 1)[index % 32]
        return 1 if byte >> (seed % 8) & 1 else -1
    at = 2 * (index % 16)
    return quantile(int.from_bytes(block(key, index // 16, seed, 2)[at : at + 2], "little"))
