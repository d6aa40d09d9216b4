"""Error feedback as a file that checks itself: :func:`to_pieces`, :func:`read_state`, :func:`pending_round`.

Layout: ``HWFB2`` and a line feed, the SHA-256 of all that follows (32 bytes), a safetensors container with
the residual or the pending update. What was sent is mostly zeros: a tensor of which at least half is stands
there as the places and values of the others. The container's one metadata entry, JSON, holds the spec's
fingerprint, whether there is a residual, and the pending round. ``HWFB1`` held what was sent in full, and is
still read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError

from headwater.compression.feedback import FeedbackState, Pending
from headwater.errors import SpecMismatch, StorageError
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.tensor_bytes import load, pieces

_MAGIC = b"HWFB2\n"
_READ = (_MAGIC, b"HWFB1\n")
_HEAD = len(_MAGIC) + 32
_ENTRY = "headwater"

Arrays = dict[str, np.ndarray[Any, Any]]


class Readable(Protocol):
    """What is read from front to back: an open file, or a record of several clients' file."""

    def read(self, size: int = -1, /) -> bytes:
        """The next ``size`` bytes, fewer at the end; all that are left where it is negative."""


def to_pieces(state: FeedbackState) -> list[bytes | memoryview]:
    """``state`` as the content of a file, one piece after the other; the same state gives the same bytes."""
    pending = state.pending
    states: dict[str, AdapterState] = {}
    arrays: Arrays = {}
    if state.residual is not None:
        states["residual"] = state.residual
    if pending is not None:
        states |= {"residual_if_accepted": pending.residual_if_accepted, "sent": pending.sent}
        arrays["envelope"] = np.frombuffer(pending.envelope, np.uint8)
    for part, values in states.items():
        for name, value in values.items():
            flat = value.contiguous().numpy()
            arrays |= _sparse(f"{part}/{name}", flat) if part == "sent" else {f"{part}/{name}": flat}
    entry = {
        "spec": next((s.spec.fingerprint() for s in states.values()), ""),
        "round": None if pending is None else pending.round,
        "residual": state.residual is not None,
    }
    content = pieces(arrays, metadata={_ENTRY: json.dumps(entry, sort_keys=True)})
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return [_MAGIC + digest.digest(), *content]


def read_state(file: Readable, spec: StateSpec) -> FeedbackState:
    """The state in an open file.

    Raises:
        StorageError: torn, altered or foreign bytes.
        SpecMismatch: intact, but of another adapter than ``spec``.
    """
    start, content = file.read(_HEAD), file.read()
    intact = start[len(_MAGIC) :] == hashlib.sha256(content).digest()
    if not intact or start[: len(_MAGIC)] not in _READ:
        raise _torn("a file that carries its own SHA-256", f"{len(start) + len(content)} bytes that do not")
    try:
        entry = _entry(content)
        arrays = load(content)
        if entry["spec"] not in ("", spec.fingerprint()):
            raise _of_another(entry, spec)
        residual = _state(arrays, "residual", spec) if entry["residual"] else None
        if entry["round"] is None:
            return FeedbackState(residual)
        kept, sent = (_state(arrays, part, spec) for part in ("residual_if_accepted", "sent"))
        return FeedbackState(residual, Pending(entry["round"], arrays["envelope"].tobytes(), kept, sent))
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        # the checksum held, so another program or version wrote this
        raise _torn("a feedback state of this version", repr(error)[:80]) from None


def pending_round(file: Readable, spec: StateSpec) -> int | None:
    """The pending update's round, or None, from the head of an open file alone, which nothing checks.

    Whoever goes on with the state reads the whole file, and so finds out if the head was wrong.

    Raises:
        StorageError: no head of such a file.
        SpecMismatch: of another adapter than ``spec``.
    """
    try:
        start = file.read(_HEAD + 8)
        if start[: len(_MAGIC)] not in _READ:
            raise ValueError("other first bytes")
        size = start[_HEAD:]
        entry = _entry(size + file.read(int.from_bytes(size, "little")))
        if entry["spec"] not in ("", spec.fingerprint()):
            raise _of_another(entry, spec)
        return None if entry["round"] is None else int(entry["round"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _torn("the head of a feedback state", repr(error)[:80]) from None


def _entry(content: bytes) -> dict[str, Any]:
    """Our own entry in a container's head."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_ENTRY]))


def _sparse(name: str, values: np.ndarray[Any, Any]) -> Arrays:
    """``values``, or where at least half of them are +0 the places and values of the others."""
    bits = values.reshape(-1).view(np.int32)  # −0 is kept
    places = np.flatnonzero(bits != 0)
    if 2 * places.size > bits.size or bits.size > np.iinfo(np.int32).max:
        return {name: values}
    return {f"{name}/at": places.astype(np.int32), f"{name}/values": values.reshape(-1)[places]}


def _state(arrays: Mapping[str, np.ndarray[Any, Any]], part: str, spec: StateSpec) -> AdapterState:
    return AdapterState(spec, {t.name: _tensor(arrays, f"{part}/{t.name}", t) for t in spec})


def _tensor(arrays: Mapping[str, np.ndarray[Any, Any]], name: str, tensor: TensorSpec) -> torch.Tensor:
    if name in arrays:
        return torch.from_numpy(arrays[name])
    values = np.zeros(tensor.numel, np.float32)
    values[arrays[f"{name}/at"]] = arrays[f"{name}/values"]
    return torch.from_numpy(values).reshape(tensor.shape)


def _of_another(entry: Mapping[str, Any], spec: StateSpec) -> SpecMismatch:
    return SpecMismatch(
        "error feedback",
        expected=f"residuals of spec {spec.fingerprint()[:12]}",
        got=str(entry["spec"])[:12],
        hint="The adapter changed: start this client with an empty feedback state.",
    )


def _torn(expected: str, got: str) -> StorageError:
    return StorageError(
        "error feedback file",
        expected=expected,
        got=got,
        hint="Restore it from a backup, or delete it: what this client held back is lost, no more.",
    )
