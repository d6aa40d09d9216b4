"""write_gguf(): an adapter as a GGUF that llama.cpp's ``--lora`` and Ollama's ``ADAPTER`` read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headwater.adapters.serving.gguf_names import Naming, require_gguf
from headwater.adapters.serving.plain import PlainLora

FILE = "lora.gguf"


def write_gguf(path: Path, lora: PlainLora, base: Mapping[str, Any], *, name: str) -> None:
    """Write the factors in float32, as ``convert_lora_to_gguf.py`` names and turns them.

    llama.cpp adds alpha/r·B·A with one alpha and each weight's own r, and 1·B·A where alpha is 0
    (``llama_adapter_lora_weight::get_scale``): alpha is r where all weights have one rank, else 0.

    Args:
        path: of the file.
        lora: of any ranks.
        base: ``config.json`` of the base model.
        name: of the adapter, for its readers.

    Raises:
        MissingDependency: the package gguf is not installed.
        ModelError: a base or a module for which llama.cpp has no name.
    """
    who = f"{path.name}"
    gguf, naming = require_gguf(who), Naming.of(base, who)
    writer = gguf.GGUFWriter(path, naming.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.ranks[0]) if len(lora.ranks) == 1 else 0.0)
    for module, weight in lora.weights.items():
        own = naming.name(module, who)
        writer.add_tensor(f"{own}.lora_a", np.ascontiguousarray(weight.a))
        writer.add_tensor(f"{own}.lora_b", np.ascontiguousarray(naming.rows(module, weight.b)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
