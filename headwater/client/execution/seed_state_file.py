"""The last versions of the seeds' coefficients, as a self-checking file: pure functions, no files.

A server that sends coefficients (``seeds.v1``) sends what changed since a version that it believes the client
has: the one that its last accepted update started from. So the version that a request was made from stays
until the server makes requests from another one, however many requests end without an answer that arrives.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from headwater.seeds.directions import Integers

KEPT = 3
"""Versions that are kept."""
Versions = tuple[tuple[int, Integers], ...]
"""(version, coefficients), least recently used first."""

_MAGIC = b"HWSUMS1\n"
_HEAD = struct.Struct("<QIB")
"""Of each version: its number, how many coefficients, bytes of each (4 or 8)."""


def with_version(versions: Versions, version: int, sums: Integers, base: int = 0) -> Versions:
    """``versions`` after one was made from ``base``: these two are the last ones used."""
    used = [v for v in versions if v[0] == base != version]
    others = [v for v in versions if v[0] not in (base, version)]
    return tuple([*others, *used, (version, sums)][-KEPT:])


def same(left: Versions, right: Versions) -> bool:
    """Whether both are the same versions in the same order."""
    return [v for v, _ in left] == [v for v, _ in right] and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(left, right, strict=True)
    )


def sums_to_bytes(versions: Versions) -> bytes:
    """A file content: a magic, the SHA-256 of the rest, and the versions, little-endian."""
    content = bytearray()
    for version, sums in versions:
        size = 4 if int(np.abs(sums).max(initial=0)) < 2**31 else 8
        content += _HEAD.pack(version, len(sums), size) + sums.astype(f"<i{size}").tobytes()
    return _MAGIC + hashlib.sha256(content).digest() + bytes(content)


def sums_from_bytes(data: bytes) -> Versions:
    """The versions in ``data``; none if it is torn, altered or foreign: they can be sent again."""
    head = len(_MAGIC) + 32
    content = data[head:]
    if data[:head] != _MAGIC + hashlib.sha256(content).digest():
        return ()
    versions, at = [], 0
    try:
        while at < len(content):
            version, count, size = _HEAD.unpack_from(content, at)
            at += _HEAD.size
            sums = np.frombuffer(content, f"<i{size}", count, at).astype(np.int64)
            at += count * size
            versions.append((version, sums))
    except (ValueError, TypeError, struct.error):  # the checksum held, so another program wrote it
        return ()
    return tuple(versions)
