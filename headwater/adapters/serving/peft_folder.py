"""write_folder(): a PEFT folder that vLLM, SGLang and OpenVINO read as PEFT does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.adapters.serving.plain import PlainLora
from headwater.merging.offline.output import write_json
from headwater.merging.offline.peft_config import CONFIG, WEIGHTS
from headwater.merging.offline.tensor_file import TensorWriter

_KEPT = (
    "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform",
    "revision", "task_type",
)  # fmt: skip
"""Settings that say where LoRA is; of all others the plain value is written."""
_PREFIX = "base_model.model."


def write_folder(
    folder: Path, lora: PlainLora, config: Mapping[str, Any], *, base: str | None, head: bool
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        folder: is there, and empty.
        lora: all of one rank.
        config: of the adapter as it was.
        base: where the base is; None for what the config says.
        head: whether a classifier's head is in the file, or not at all.
    """
    (rank,) = lora.ranks
    targets = sorted({name.rpartition(".")[2] for name in lora.weights})
    own = config.get("target_modules")
    plain: dict[str, Any] = {
        "peft_type": "LORA",
        "target_modules": sorted(own) if isinstance(own, list) and own else targets,
        "modules_to_save": sorted({n.rpartition(".")[0] for n in lora.head}) if head and lora.head else None,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    write_json(folder / CONFIG, kept | plain | ({} if base is None else {"base_model_name_or_path": base}))
    with TensorWriter(folder / WEIGHTS) as file:
        for module, weight in lora.weights.items():
            a, b = ("_embedding_A", "_embedding_B") if weight.part.embedding else ("_A.weight", "_B.weight")
            file.add(f"{_PREFIX}{module}.lora{a}", weight.a)
            file.add(f"{_PREFIX}{module}.lora{b}", weight.b)
        for name, values in (lora.head if head else {}).items():
            file.add(_PREFIX + name, values)
