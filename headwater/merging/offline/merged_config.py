"""merged_config(): ``adapter_config.json`` of LoRA whose scales are in its factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged_config(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The config of an adapter after its LoRA weights were computed anew, with s = 1.

    Args:
        config: of the adapter that it is like; AdaLoRA's becomes LoRA's.
        ranks: by LoRA module, without PEFT's prefix ``base_model.model.``; empty for other kinds.
    """
    config = dict(config) | {"inference_mode": True}
    if not ranks:
        return config
    if config["peft_type"] != "LORA":  # AdaLoRA's own settings are none of LoRA's
        kept = ("task_type", "base_model_name_or_path", "revision", "target_modules", "modules_to_save")
        config = {k: v for k, v in config.items() if k in kept}
        config |= {"peft_type": "LORA", "inference_mode": True}
    common = max(ranks.values(), key=list(ranks.values()).count)
    own = {name: rank for name, rank in sorted(ranks.items()) if rank != common}
    return config | {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": {_pattern(name): rank for name, rank in own.items()},
        "alpha_pattern": {_pattern(name): rank for name, rank in own.items()},
        "use_rslora": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
    }


def _pattern(name: str) -> str:
    """A module's name as a key of PEFT's patterns, which are regular expressions for the ends of names."""
    return "^" + name.replace(".", r"\.")
