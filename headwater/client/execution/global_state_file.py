"""A global state that a client holds, as a self-checking file: pure functions, no files."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from headwater.state import AdapterState, StateSpec

_MAGIC = b"HWBASE1\n"


def held_to_pieces(state: AdapterState, sha256: str) -> list[bytes | memoryview]:
    """A file content: a magic, :meth:`AdapterState.sha256`, and the values as fp32, little-endian."""
    values = state.flat().numpy().astype("<f4", copy=False)
    return [_MAGIC, bytes.fromhex(sha256), values.tobytes() if not values.size else values.data.cast("B")]


def held_from_bytes(data: bytes, spec: StateSpec) -> AdapterState | None:
    """The state in ``data``; None if it is torn, altered, foreign or of another spec."""
    head = len(_MAGIC) + hashlib.sha256().digest_size
    if len(data) != head + spec.nbytes or not data.startswith(_MAGIC):
        return None
    values = np.frombuffer(data, "<f4", offset=head).astype(np.float32)
    state = AdapterState.from_vector(spec, torch.from_numpy(values))
    return state if bytes.fromhex(state.sha256()) == data[len(_MAGIC) : head] else None
