"""merge_files(): a base's weight files with LoRA's changes in them, about as fast as a copy.

What no adapter changed is copied within the kernel; a changed weight is read, changed in float32 and written
once, in the type that it had.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from headwater.adapters.serving.arrival import Arrival, from_bfloat16, round_bfloat16, some_rows
from headwater.adapters.serving.base_files import BESIDE, BaseFiles
from headwater.adapters.serving.plain import Factors, PlainLora
from headwater.files import read_into
from headwater.merging.offline.tensor_file import Array, Place, TensorFile, TensorWriter

_BITS: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_OUTPUTS = ("lm_head", "embed_out", "output_projection")
"""Last names of a model's output, which may be its embeddings once more."""
_AT_ONCE = 2
"""Weights in memory at a time."""
_CACHED = 1 << 16
"""Values of a weight that are worked on at a time."""


def changed(weight: Array, factors: Factors, rows: slice | None = None, out: Array | None = None) -> Array:
    """W + B·A, or DoRA's m·(W + B·A)/‖W + B·A‖ by rows (arXiv 2402.09353, eq. 5); float32.

    Args:
        weight: float32 [outputs, inputs], or the rows of it.
        factors: of all rows.
        rows: which of them ``weight`` has; None for all.
        out: where the result goes; None for a new array.
    """
    b = factors.b if rows is None else factors.b[rows]
    total = np.matmul(b, factors.a, out=out)
    total += weight
    if factors.magnitude is not None:
        m = factors.magnitude if rows is None else factors.magnitude[rows]
        total *= (m / np.linalg.norm(total, axis=1))[:, None]
    return total


def in_place(lora: PlainLora, base: BaseFiles, files: list[TensorFile]) -> dict[str, Factors] | None:
    """The changes by the names of tensors in a base's files, if each is one such tensor; else None."""
    names = base.names(sorted(lora.weights), files)
    if names is None or base.config.get("quantization_config"):
        return None
    if base.config.get("tie_word_embeddings") and any(m.rpartition(".")[2] in _OUTPUTS for m in lora.weights):
        return None
    places = {name: place for file in files for name, place in file.tensors.items()}
    found = {name: lora.weights[module] for name, module in names.items()}
    for name, factors in found.items():
        place, part = places[name], factors.part
        plain = not part.embedding and part.experts == 1 and len(part.shape_a) == 2
        if not plain or place.dtype not in _BITS or place.shape != (part.rows, part.columns):
            return None
    return found


def merge_files(
    files: list[TensorFile],
    changes: Mapping[str, Factors],
    out: Path,
    dtype: str,
    progress: Callable[[str], None] = lambda text: None,
) -> Arrival:
    """Write the files of weights with the changes in them.

    Args:
        files: of the base.
        changes: by tensor.
        out: the folder, which is there.
        dtype: ``keep``, or ``float32``, into which all tensors go.
        progress: is told what is done.

    Returns:
        What of the changes arrived, by some rows of each weight.
    """
    arrival = Arrival()
    for file in files:
        progress(f"merging {file.path.name}")
        if dtype == "keep":
            _rewrite(file, changes, out / file.path.name, arrival)
        else:
            _widen(file, changes, out / file.path.name, arrival)
    return arrival


def copy_beside(base: Path, out: Path, dtype: str) -> None:
    """Configuration, tokenizer and the list of shards; ``config.json`` says another type where it is one."""
    for pattern in BESIDE:
        for path in sorted(base.glob(pattern)):
            if path.is_file() and not path.name.startswith("adapter_"):
                shutil.copyfile(path, out / path.name)
    if dtype != "keep":
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        text = json.dumps(config | {"dtype": dtype}, indent=2) + "\n"
        (out / "config.json").write_text(text, encoding="utf-8")


def _rewrite(file: TensorFile, changes: Mapping[str, Factors], out: Path, arrival: Arrival) -> None:
    """The same layout, byte for byte but for the changed weights."""
    size = file.path.stat().st_size
    ours = sorted((p.start, n, p) for n, p in file.tensors.items() if n in changes)
    with file.path.open("rb", buffering=0) as source, out.open("wb", buffering=0) as target:
        os.truncate(target.fileno(), size)

        def write(item: tuple[int, str, Place]) -> Arrival:
            _, name, place = item
            own = Arrival()
            raw = _changed_bits(source, place, changes[name], own)
            _write_at(target, place.start, raw)
            return own

        at = 0
        for start, _, place in ours:
            _copy_range(source, target, at, start)
            at = place.stop
        _copy_range(source, target, at, size)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for own in pool.map(write, ours):
                arrival.inner += own.inner
                arrival.missed += own.missed
                arrival.energy += own.energy


def _changed_bits(source: BinaryIO, place: Place, factors: Factors, arrival: Arrival) -> Array:
    """The bits of a changed weight, by as many rows at a time as a processor's cache holds."""
    raw = np.empty(place.stop - place.start, np.uint8)
    read_into(source, place.start, raw.data)
    stored = raw.view(_BITS[place.dtype]).reshape(place.shape)
    rows, columns = place.shape
    step = max(1, _CACHED // columns)
    scratch = np.empty((3, min(step, rows), columns), np.float32)
    measured = some_rows(rows).step
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        weight, total, bits = scratch[:, : block.stop - start]
        if place.dtype == "BF16":
            np.copyto(weight.view(np.uint32), stored[block])
            np.left_shift(weight.view(np.uint32), 16, out=weight.view(np.uint32))
        else:
            np.copyto(weight, stored[block])
        changed(weight, factors, block, out=total)
        if place.dtype == "BF16":
            round_bfloat16(total, bits.view(np.uint32), stored[block])
        else:
            np.copyto(stored[block], total, casting="same_kind")
        some = slice(-start % measured, None, measured)
        before, change = weight[some], total[some] - weight[some]
        after = from_bfloat16(stored[block][some]) if place.dtype == "BF16" else stored[block][some]
        arrival.add(before, change, after)
    return stored


def _widen(file: TensorFile, changes: Mapping[str, Factors], out: Path, arrival: Arrival) -> None:
    with TensorWriter(out) as writer:
        for name, place in file.tensors.items():
            if place.dtype not in (*_BITS, "F64"):  # counters and masks
                writer.add_bits(name, _raw(file, place), place.dtype)
                continue
            weight = file.read(name)
            if name in changes:
                total = changed(weight, changes[name])
                rows = some_rows(len(weight))
                arrival.add(weight[rows], total[rows] - weight[rows], total[rows])
                weight = total
            writer.add(name, weight)


def _raw(file: TensorFile, place: Place) -> Array:
    raw = np.empty(place.stop - place.start, np.uint8)
    with file.path.open("rb", buffering=0) as source:
        read_into(source, place.start, raw.data)
    width = raw.size // max(1, math.prod(place.shape))
    return raw.view(f"<u{width}").reshape(place.shape) if raw.size else raw.reshape(place.shape)


def _copy_range(source: BinaryIO, target: BinaryIO, start: int, stop: int) -> None:
    """Bytes [start, stop) to the same place in another file."""
    target.seek(start)
    while start < stop:
        sent = os.sendfile(target.fileno(), source.fileno(), start, min(stop - start, 1 << 30))
        if not sent:
            raise OSError(5, "a file of the base became shorter while it was read")
        start += sent


def _write_at(target: BinaryIO, start: int, values: Array) -> None:
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    while view:
        sent = os.pwrite(target.fileno(), view, start)
        start, view = start + sent, view[sent:]


def measured_rows(lora: PlainLora, base: BaseFiles) -> Iterator[tuple[Array, Array]]:
    """Some rows of each adapted weight of a base, and their change: for :func:`~.arrival.arrivals`."""
    files = base.files()
    for name, factors in (in_place(lora, base, files) or {}).items():
        weight = next(file for file in files if name in file.tensors).read(name)
        rows = some_rows(len(weight))
        some = np.ascontiguousarray(weight[rows], np.float32)
        yield some, changed(some, factors, rows) - some
