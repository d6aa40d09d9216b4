"""write_mlx(): a folder for mlx-lm's ``load_adapters``: factors transposed, one rank, the scale in B."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.adapters.serving.plain import PlainLora
from headwater.errors import ModelError
from headwater.merging.offline.output import write_json
from headwater.merging.offline.peft_config import CONFIG
from headwater.merging.offline.tensor_file import TensorWriter

WEIGHTS = "adapters.safetensors"
MODELS = (
    "cohere", "gemma", "gemma2", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip
"""``model_type`` of bases whose linear layers mlx-lm 0.32.2 names as transformers does."""


def write_mlx(folder: Path, lora: PlainLora, base: Mapping[str, Any]) -> None:
    """Write ``adapters.safetensors`` and ``adapter_config.json``.

    ``keys`` are whole names of modules, so mlx-lm adapts these and no others, whatever ``num_layers`` is.

    Args:
        folder: is there, and empty.
        lora: all of one rank; with magnitudes on all weights or on none.
        base: ``config.json`` of the base model.

    Raises:
        ModelError: mlx-lm has other names for the modules of such a base.
    """
    kind = base.get("model_type")
    if kind not in MODELS:
        raise ModelError(
            "--for mlx",
            expected=f"a base of type {', '.join(MODELS)}",
            got=f"{kind!r:.80}",
            hint="Of other bases mlx-lm's names were not compared: export --for merged, and convert that.",
        )
    (rank,) = lora.ranks
    dora = any(weight.magnitude is not None for weight in lora.weights.values())
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": int(base["num_hidden_layers"]),
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(lora.weights)},
    }
    write_json(folder / CONFIG, config)
    with TensorWriter(folder / WEIGHTS) as file:
        for module, weight in lora.weights.items():
            file.add(f"{module}.lora_a", weight.a.T)
            file.add(f"{module}.lora_b", weight.b.T)
            if weight.magnitude is not None:
                file.add(f"{module}.m", weight.magnitude)
