"""merged_config(): ``adapter_config.json`` of LoRA whose scales are in its factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_ANY_LORA = (
    "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "layers_pattern",
    "layers_to_transform", "modules_to_save", "revision", "target_modules", "task_type",
    "trainable_token_indices",
)  # fmt: skip
"""Of an AdaLoRA's ``adapter_config.json``: what LoRA means the same by."""
_STARTS = ("corda_config", "eva_config", "loftq_config", "lora_ga_config")
"""Settings of how training began."""


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
        config = {key: value for key, value in config.items() if key in _OF_ANY_LORA}
        config |= {"peft_type": "LORA", "inference_mode": True}
    for start in _STARTS:
        config.pop(start, None)
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
