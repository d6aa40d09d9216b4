"""The hash of an adapter from its files, without its base model: :func:`adapter_hash`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from headwater.errors import DecodeError

_NOTES, _WEIGHTS, _HEAD = "headwater.json", "adapter_model.safetensors", "head.safetensors"


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter as its files have it.

    Args:
        path: of it.
        sha256: of its values; of what its notes say where ``values`` is 0.
        values: how many were hashed; 0 where the files hold what was computed from the values (kinds such as
            ``lora_sb``), which only the base model's owner can compute again.
    """

    path: Path
    sha256: str
    values: int


def adapter_hash(path: Path) -> FoundAdapter:
    """The hash that receipts have as ``result``: over the spec's fingerprint and the values.

    Args:
        path: an exported folder, or a version's ``.safetensors`` file.

    Raises:
        DecodeError: neither, or values that are not those that its notes name.
    """
    try:
        return _of_version(path) if path.is_file() else _of_folder(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DecodeError(
            f"adapter {path}",
            expected="a folder that Headwater exported, or a version's file",
            got=str(error)[:200],
            hint="Adapters that older versions exported say too little: export it again.",
        ) from error


def _of_version(path: Path) -> FoundAdapter:
    with safe_open(path, framework="numpy") as file:
        note = json.loads(file.metadata()["headwater"])
        parts = ((file.get_tensor(name), 1.0) for name in sorted(file.keys()))
        sha256, values = _digest(str(note["spec"]), parts)
    return _agreed(path, sha256, values, str(note["sha256"]))


def _of_folder(path: Path) -> FoundAdapter:
    notes = json.loads((path / _NOTES).read_text(encoding="utf-8"))
    said, how = str(notes["adapter_sha256"]), notes["values"]
    if how is None:
        return FoundAdapter(path, said, 0)
    tensors = how["tensors"]
    text = json.dumps(tensors, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest() != notes["spec"]:
        raise ValueError("tensors that its notes describe, and that are not of their fingerprint")
    with ExitStack() as stack:
        opened: dict[str, tuple[Any, str]] = {}
        for name, prefix in ((_WEIGHTS, ""), (_HEAD, "head.")):
            if (path / name).is_file():
                file = stack.enter_context(safe_open(path / name, framework="numpy"))
                opened |= {prefix + key: (file, key) for key in list(file.keys())}
        parts = (_value(tensor, *opened[tensor["name"]]) for tensor in tensors)
        sha256, values = _digest(notes["spec"], parts)
    return _agreed(path, sha256, values, said)


def _value(tensor: Mapping[str, Any], file: Any, key: str) -> tuple[np.ndarray[Any, Any], float]:  # noqa: ANN401
    """A saved tensor, and what it was multiplied by."""
    value = file.get_tensor(key)
    if list(value.shape) != tensor["shape"]:
        raise ValueError(f"{key} is {list(value.shape)}, not {tensor['shape']}")
    return value, float(tensor["scaling"]) if tensor["role"] == "head" else 1.0


def _digest(spec: str, parts: Iterator[tuple[np.ndarray[Any, Any], float]]) -> tuple[str, int]:
    digest, values = hashlib.sha256(spec.encode()), 0
    for value, unit in parts:
        # units are powers of two: dividing gives back the bits that were multiplied
        digest.update(np.ascontiguousarray(value / np.float32(unit), dtype="<f4").tobytes())
        values += value.size
    return digest.hexdigest(), values


def _agreed(path: Path, sha256: str, values: int, said: str) -> FoundAdapter:
    if sha256 != said:
        raise DecodeError(
            f"adapter {path}",
            expected=f"the values that its notes name, sha256 {said}",
            got=f"sha256 {sha256}",
            hint="The values were altered, or belong to another adapter.",
        )
    return FoundAdapter(path, sha256, values)
