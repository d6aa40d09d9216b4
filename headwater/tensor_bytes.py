"""Named arrays as safetensors bytes and back: :func:`save` and :func:`load`, which end in exceptions only.

Where memory is short, safetensors' own ones raise ``PanicException``, which is no ``Exception``: whoever
guards against failures would not see it, and the process would end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors import numpy as safetensors


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
