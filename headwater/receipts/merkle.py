"""Merkle trees over a round's updates (RFC 6962, section 2.1): :func:`root`, :func:`leaf_hash`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256 of a zero byte and the entry: 32 bytes."""
    return hashlib.sha256(b"\0" + entry).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The tree's root over leaf hashes in their order: 32 bytes; SHA-256 of nothing where there are none.

    Of n leaves the left half has as many as the largest power of two below n. Leaves and nodes are hashed
    with different first bytes, so that no node passes for a leaf.
    """
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()
