"""Error feedback in the layouts of earlier versions, which are read and not written any more.

``HWFB2`` and a line feed, the SHA-256 of all that follows, a safetensors container with the residual or the
pending update. Of what was sent, a tensor of which at least half is zeros stands there as the places and
values of the others; ``HWFB1`` held it in full. The one metadata entry, JSON, holds the spec's fingerprint,
whether there is a residual, and the pending round.
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
from headwater.tensor_bytes import load

_MAGIC = b"HWFB2\n"
EARLIER = (_MAGIC, b"HWFB1\n")
"""How such files begin."""
_HEAD = len(_MAGIC) + 32
_ENTRY = "headwater"

Arrays = dict[str, np.ndarray[Any, Any]]


class Readable(Protocol):
    """What is read from front to back: an open file, or a record of several clients' file."""

    def read(self, size: int = -1, /) -> bytes:
        """The next ``size`` bytes, fewer at the end; all that are left where it is negative."""


def earlier_state(data: bytes, spec: StateSpec) -> FeedbackState:
    """The state in a whole file.

    Raises:
        StorageError: torn, altered or foreign bytes.
        SpecMismatch: intact, but of another adapter than ``spec``.
    """
    content = data[_HEAD:]
    if data[len(_MAGIC) : _HEAD] != hashlib.sha256(content).digest():
        raise torn("a file that carries its own SHA-256", f"{len(data)} bytes that do not")
    try:
        entry = _entry(content)
        arrays = load(content)
        if entry["spec"] not in ("", spec.fingerprint()):
            raise of_another(str(entry["spec"]), spec)
        residual = _state(arrays, "residual", spec) if entry["residual"] else None
        if entry["round"] is None:
            return FeedbackState(residual)
        kept, sent = (_state(arrays, part, spec) for part in ("residual_if_accepted", "sent"))
        return FeedbackState(None, Pending(entry["round"], arrays["envelope"].tobytes(), kept, sent))
    except (SafetensorError, ValueError, OverflowError, KeyError, TypeError, IndexError) as error:
        # the checksum held, so another program or version wrote this
        raise torn("a feedback state of this version", repr(error)[:80]) from None


def earlier_round(start: bytes, file: Readable, spec: StateSpec) -> int | None:
    """The pending update's round, or None, from the head alone, which nothing checks.

    Args:
        start: what was read of ``file`` already, less than up to its head.
        file: the rest.
        spec: of the adapter.

    Raises:
        StorageError: no head of such a file.
        SpecMismatch: of another adapter than ``spec``.
    """
    try:
        start += file.read(_HEAD + 8 - len(start))
        size = start[_HEAD:]
        entry = _entry(size + file.read(int.from_bytes(size, "little")))
        if entry["spec"] not in ("", spec.fingerprint()):
            raise of_another(str(entry["spec"]), spec)
        return None if entry["round"] is None else int(entry["round"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise torn("the head of a feedback state", repr(error)[:80]) from None


def _entry(content: bytes) -> dict[str, Any]:
    """Our own entry in a container's head."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_ENTRY]))


def _state(arrays: Mapping[str, np.ndarray[Any, Any]], part: str, spec: StateSpec) -> AdapterState:
    return AdapterState(spec, {t.name: _tensor(arrays, f"{part}/{t.name}", t) for t in spec})


def _tensor(arrays: Mapping[str, np.ndarray[Any, Any]], name: str, tensor: TensorSpec) -> torch.Tensor:
    if name in arrays:
        return torch.from_numpy(arrays[name])
    values = np.zeros(tensor.numel, np.float32)
    values[arrays[f"{name}/at"]] = arrays[f"{name}/values"]
    return torch.from_numpy(values).reshape(tensor.shape)


def of_another(fingerprint: str, spec: StateSpec) -> SpecMismatch:
    """The error of a file of another adapter."""
    return SpecMismatch(
        "error feedback",
        expected=f"residuals of spec {spec.fingerprint()[:12]}",
        got=fingerprint[:12],
        hint="The adapter changed: start this client with an empty feedback state.",
    )


def torn(expected: str, got: str) -> StorageError:
    """The error of a file that is none, or not whole."""
    return StorageError(
        "error feedback file",
        expected=expected,
        got=got,
        hint="Restore it from a backup, or delete it: what this client held back is lost, no more.",
    )
