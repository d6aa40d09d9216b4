"""Masks: the ChaCha20 key streams (RFC 8439) of seeds, added to words or taken from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms

from headwater.security.secagg.ring import Words

_BLOCK = 2**15
"""Bytes at a time: words, stream and the zeros that it is made of fit the first caches."""
_ZEROS = bytes(_BLOCK)
_AT_ONCE = 64
"""Streams that are read side by side; each holds a state of its own."""
_START = bytes(16)
"""Counter and nonce. A seed is of one pair and one round, so its stream is used once."""


def add_masks(words: Sequence[Words], masks: Iterable[tuple[bytes, bool]]) -> None:
    """Add the streams of seeds, or subtract them, in place.

    Args:
        words: of a vector's parts; each stream runs over them in order, little-endian.
        masks: 32 bytes that are used for nothing else, and whether their stream is subtracted.
    """
    waiting, zeros, buffer = iter(masks), memoryview(_ZEROS), np.empty(_BLOCK, np.uint8)
    while streams := [_open(seed, negative) for seed, negative in islice(waiting, _AT_ONCE)]:
        for part in words:
            step = _BLOCK // part.itemsize
            for start in range(0, part.size, step):
                some = part[start : start + step]
                room = buffer[: some.nbytes]
                mask = room.view(part.dtype.newbyteorder("<"))
                for stream, apply in streams:
                    stream.update_into(zeros[: some.nbytes], room.data)
                    apply(some, mask, out=some)


def _open(seed: bytes, negative: bool) -> tuple[CipherContext, np.ufunc]:
    """A stream at its start, and what is done with it."""
    stream = Cipher(algorithms.ChaCha20(seed, _START), mode=None).encryptor()
    return stream, np.subtract if negative else np.add
