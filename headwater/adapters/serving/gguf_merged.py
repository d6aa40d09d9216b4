"""merge_gguf(): a base's GGUF with an adapter in its weights; all else stays, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.adapters.serving.arrival import Arrival, some_rows
from headwater.adapters.serving.gguf_names import Naming, require_gguf
from headwater.adapters.serving.merged import changed
from headwater.adapters.serving.plain import Factors, PlainLora
from headwater.errors import DecodeError, ModelError

if TYPE_CHECKING:  # of an extra
    from gguf import GGUFReader, ReaderTensor

FILE = "merged.gguf"
TYPES = {"keep": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""GGUF's type of the adapted weights by ``--dtype``; ``keep`` leaves each its own."""


def merge_gguf(source: Path, lora: PlainLora, base: Mapping[str, Any], out: Path, dtype: str) -> Arrival:
    """Write ``source`` with the adapter's changes in its weights, rounded to a type.

    Args:
        source: the base model's GGUF, of whatever types.
        lora: the adapter.
        base: ``config.json`` of the base.
        out: the file to write.
        dtype: of :data:`TYPES`.

    Returns:
        What of the changes arrived, by some rows of each weight.

    Raises:
        MissingDependency: the package gguf is not installed.
        DecodeError: ``source`` is no GGUF.
        ModelError: it is of another base, or of a type that gguf cannot write.
    """
    gguf, naming = require_gguf(f"{source}"), Naming.of(base, f"{source}")
    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DecodeError(f"{source}", expected="a GGUF file", got=str(error)[:200]) from error
    changes = _by_name(source, lora, naming, {tensor.name: tensor for tensor in reader.tensors})
    arrival = Arrival()
    data = {
        name: _changed(gguf, tensor, changes[name], dtype, arrival, f"{source}, tensor {name}")
        for tensor in reader.tensors
        if (name := tensor.name) in changes
    }
    rewrite(gguf, reader, out, naming.architecture, data)
    return arrival


def rewrite(
    gguf: ModuleType, reader: GGUFReader, out: Path, architecture: str, data: Mapping[str, tuple[Any, Any]]
) -> None:
    """Write a GGUF again with other data for some tensors: bytes or values, and their type."""
    writer = gguf.GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if field.name != gguf.Keys.General.ARCHITECTURE and not field.name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values, kind = data.get(tensor.name, (tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _by_name(source: Path, lora: PlainLora, naming: Naming, tensors: Mapping[str, Any]) -> dict[str, Factors]:
    found = {}
    for module, factors in lora.weights.items():
        name = naming.name(module, f"{source}")
        part = factors.part
        shape = [int(n) for n in tensors[name].shape] if name in tensors else None
        if shape != [part.columns, part.rows]:
            raise ModelError(
                f"{source}, tensor {name}",
                expected=f"a weight of {part.rows} rows and {part.columns} columns",
                got="no such tensor" if shape is None else f"{shape[::-1]}",
                hint="It is the GGUF of another base.",
            )
        b, m = naming.rows(module, factors.b), factors.magnitude
        found[name] = Factors(factors.a, b, part, None if m is None else naming.rows(module, m))
    return found


def _changed(
    gguf: ModuleType,
    tensor: ReaderTensor,
    factors: Factors,
    dtype: str,
    arrival: Arrival,
    who: str,
) -> tuple[Any, Any]:
    """Bytes and type of a weight that the adapter changes."""
    named = TYPES[dtype]
    kind = tensor.tensor_type if named is None else gguf.GGMLQuantizationType[named]
    weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    total = changed(weight, factors)
    try:
        data = gguf.quants.quantize(total, kind)
        rows = some_rows(len(weight))
        arrival.add(weight[rows], total[rows] - weight[rows], gguf.quants.dequantize(data[rows], kind))
    except NotImplementedError as error:
        raise ModelError(
            who,
            expected="a type that the package gguf writes",
            got=f"{kind.name}",
            hint=f"Give the adapted weights another: --dtype {', '.join(TYPES)}.",
        ) from error
    return data, kind
