"""Masks: the ChaCha20 key stream (RFC 8439) of a seed, added to words or taken from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from headwater.security.secagg.ring import Words

_BLOCK = 2**16
_ZEROS = bytes(_BLOCK)
_START = bytes(16)
"""Counter and nonce. A seed is of one pair and one round, so its stream is used once."""


def add_mask(words: Sequence[Words], seed: bytes, *, negative: bool = False) -> None:
    """Add the stream of ``seed``, or subtract it, in place.

    Args:
        words: of a vector's parts; the stream runs over them in order, little-endian.
        seed: 32 bytes that are used for nothing else.
        negative: subtract.
    """
    encryptor = Cipher(algorithms.ChaCha20(seed, _START), mode=None).encryptor()
    stream = np.empty(_BLOCK, np.uint8)
    for part in words:
        step = _BLOCK // part.itemsize
        for start in range(0, part.size, step):
            some = part[start : start + step]
            room = stream[: some.nbytes]
            encryptor.update_into(memoryview(_ZEROS)[: some.nbytes], room.data)
            mask = room.view(part.dtype.newbyteorder("<"))
            if negative:
                np.subtract(some, mask, out=some)
            else:
                np.add(some, mask, out=some)
