"""Named arrays as safetensors bytes and back: :func:`save`, or :func:`pieces`, and :func:`load`.

They end in exceptions only. Where memory is short, safetensors' own ones raise ``PanicException``, which is
no ``Exception``: whoever guards against failures would not see it, and the process would end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

_TYPES = {"float32": "F32", "int32": "I32", "uint8": "U8"}
"""What :func:`pieces` takes, and how safetensors names it."""


def save(arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]) -> bytes:
    """The arrays, any shapes and types of safetensors, in one container.

    Args:
        arrays: by name.
        metadata: at most one entry gives the same bytes every time: their order is not fixed.

    Raises:
        MemoryError: there is too little for the bytes.
    """
    with _no_panic():
        return safetensors.save(dict(arrays), metadata=dict(metadata))


def pieces(
    arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]
) -> list[bytes | memoryview]:
    """What :func:`save` returns, in pieces that share the arrays' memory: to hash and write without a copy.

    Args:
        arrays: by name, any shapes, of float32, int32 or uint8.
        metadata: as of :func:`save`.
    """
    # the container's own order: wide types first, then by name
    held = sorted(arrays.items(), key=lambda item: (list(_TYPES).index(item[1].dtype.name), item[0]))
    head: dict[str, object] = {"__metadata__": dict(metadata)}
    data: list[bytes | memoryview] = []
    end = 0
    for name, array in held:
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        start, end = end, end + flat.nbytes
        kind = flat.dtype.name
        head[name] = {"dtype": _TYPES[kind], "shape": list(array.shape), "data_offsets": [start, end]}
        data += [flat.reshape(-1).data.cast("B")] if flat.size else []
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *data]


def load(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """What :func:`save` has put into ``content``.

    Raises:
        SafetensorError: other bytes.
        MemoryError: there is too little for the arrays.
    """
    with _no_panic():
        return safetensors.load(content)


@contextmanager
def _no_panic() -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # what PanicException is; it can only be told by its name
        if type(error).__name__ != "PanicException":
            raise
        if "null" in str(error):  # Python gave it no object
            raise MemoryError("safetensors found too little memory") from error
        raise RuntimeError(f"safetensors: {error}") from error
