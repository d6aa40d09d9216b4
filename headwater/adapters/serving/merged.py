"""merge_files(): a base's weight files with LoRA's changes in them, about as fast as a copy.

What no adapter changed is copied within the kernel; a changed weight is read, changed in float32 and written
once, in the type that it had.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from headwater.adapters.serving.against_base import OUTPUTS
from headwater.adapters.serving.arrival import Arrival, from_bfloat16, round_bfloat16, some_rows
from headwater.adapters.serving.base_files import BESIDE, INDEX, BaseFiles
from headwater.adapters.serving.plain import Factors, PlainLora
from headwater.errors import ModelError
from headwater.files import read_into
from headwater.merging.offline.tensor_file import Array, Place, TensorFile, TensorWriter

_BITS: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_AT_ONCE = 2
"""Weights in memory at a time."""
_CACHED = 1 << 17
"""Values of a weight that are worked on at a time."""
_SHORTER = "a file of the base became shorter while it was read"


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
    if base.config.get("tie_word_embeddings") and any(m.rpartition(".")[2] in OUTPUTS for m in lora.weights):
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


def copy_beside(base: Path, out: Path, dtype: str, *, shards: bool = False) -> None:
    """Configuration and tokenizer; ``config.json`` says another type where it is one.

    Args:
        base: the base's folder.
        out: the folder, which is there.
        dtype: as of :func:`merge_files`.
        shards: whether ``out`` has the base's shards, so that their list is true of it too. Servers read no
            file that a list leaves out.
    """
    for pattern in BESIDE:
        for path in sorted(base.glob(pattern)):
            beside = not path.name.endswith(".index.json") or (shards and path.name == INDEX)
            if path.is_file() and beside and not path.name.startswith("adapter_"):
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
    memory = threading.local()
    with file.path.open("rb", buffering=0) as source, out.open("wb", buffering=0) as target:
        _allocate(target, size)

        def write(item: tuple[int, str, Place]) -> Arrival:
            _, name, place = item
            if not hasattr(memory, "blocks"):
                memory.blocks = _Blocks()
            try:
                return _rewrite_weight(source, target, place, changes[name], memory.blocks)
            except FloatingPointError as error:
                raise ModelError(
                    f"merging {name} of {file.path}",
                    expected="values that float16 holds",
                    got="larger ones",
                    hint="Add --dtype float32.",
                ) from error

        at = 0
        for start, _, place in ours:
            _copy_range(source, target, at, start)
            at = place.stop
        _copy_range(source, target, at, size)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for own in pool.map(write, ours):
                arrival.join(own)


class _Blocks:
    """Memory of one thread, used for all weights: fresh memory costs as much as the sums."""

    def __init__(self) -> None:
        self._stored = np.empty(0, np.uint8)
        self._floats = np.empty((2, 0), np.float32)

    def stored(self, place: Place) -> Array:
        """Room for a weight's bits, [rows, columns]."""
        size = place.stop - place.start
        if size > self._stored.size:
            self._stored = np.empty(size, np.uint8)
        return self._stored[:size].view(_BITS[place.dtype]).reshape(place.shape)

    def floats(self, rows: int, columns: int) -> tuple[Array, Array]:
        """Room for some rows in float32, and for their sum."""
        values = rows * columns
        if values > self._floats.shape[1]:
            self._floats = np.empty((2, values), np.float32)
        weight, total = self._floats[:, :values].reshape(2, rows, columns)
        return weight, total


def _rewrite_weight(
    source: BinaryIO, target: BinaryIO, place: Place, factors: Factors, blocks: _Blocks
) -> Arrival:
    """Read and write the whole weight, change some rows at a time: few enough for a cache."""
    rows, columns = place.shape
    stored = blocks.stored(place)
    if read_into(source, place.start, stored.reshape(-1).view(np.uint8).data) != stored.nbytes:
        raise OSError(5, _SHORTER)
    step = max(1, _CACHED // columns)
    every = some_rows(rows).step
    arrival = Arrival()
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        weight, total = blocks.floats(block.stop - start, columns)
        bits = stored[block]
        if place.dtype == "BF16":
            widened = weight.view(np.uint32)
            np.copyto(widened, bits)
            np.left_shift(widened, 16, out=widened)
        else:
            np.copyto(weight, bits)
        changed(weight, factors, block, out=total)
        some = slice(-start % every, None, every)
        before, change = weight[some].copy(), total[some] - weight[some]
        if place.dtype == "BF16":
            round_bfloat16(total, weight.view(np.uint32), bits)
            arrival.add(before, change, from_bfloat16(bits[some]))
        else:
            with np.errstate(over="raise"):
                np.copyto(bits, total, casting="same_kind")
            arrival.add(before, change, bits[some])
    _write_at(target, place.start, stored)
    return arrival


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
            raise OSError(5, _SHORTER)
        start += sent


def _allocate(target: BinaryIO, size: int) -> None:
    """Room for all at once: a quarter less of the kernel's time than where each write asks for its own."""
    try:
        os.posix_fallocate(target.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what each says that cannot
            raise
        os.truncate(target.fileno(), size)


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
