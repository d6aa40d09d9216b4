"""Key: reproducible randomness as a value.

A key is 32 bytes derived by SHA-256 from the federation's seed and a path of names, such as
``root.child("round", 3, "client", "edge-7")``. The same path gives the same key on every machine,
whatever was drawn before. Generators made from it are NumPy's Philox (counter-based, the same
stream on every platform); what torch alone must draw is seeded by :meth:`Key.seed`.

Masks and deployed differential privacy must not use it: they take entropy of the operating system.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True, slots=True)
class Key:
    """32 bytes of reproducible randomness."""

    digest: bytes

    @staticmethod
    def root(seed: int) -> Key:
        """The root key of a federation with this seed."""
        return Key(hashlib.sha256(b"headwater.key.v1" + seed.to_bytes(16, "big", signed=True)).digest())

    def child(self, *path: str | int) -> Key:
        """The key at ``path`` below this one. Path parts are typed: ``1`` and ``"1"`` differ."""
        digest = self.digest
        for part in path:
            tag = b"i" if isinstance(part, int) else b"s"
            digest = hashlib.sha256(digest + tag + str(part).encode()).digest()
        return Key(digest)

    def seed(self) -> int:
        """A 63-bit integer, for libraries that want a seed."""
        return int.from_bytes(self.digest[:8], "big") >> 1

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator (Philox) at the start of this key's stream."""
        key = _PhiloxKey(self.digest[:16])
        return np.random.Generator(np.random.Philox(key))  # type: ignore[arg-type] # its stub lacks the interface


class _PhiloxKey(ISeedSequence):
    """A key as Philox takes it: the stream of ``Philox(key=…)``, which asks the system for entropy first."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[Any]:
        """The 16 bytes, a big-endian integer, as words of which the least significant comes first."""
        return np.frombuffer(self._key, np.dtype(dtype).newbyteorder(">"))[::-1].astype(dtype)
