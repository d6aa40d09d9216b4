"""Small adapters on disk, as PEFT saves them, without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

QUERY, KEY = "base_model.model.layers.0.query", "base_model.model.layers.1.key"


def save(folder: Path, config: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    base = {"base_model_name_or_path": "base", "inference_mode": True, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(base | dict(config)))
    save_file(
        {name: np.ascontiguousarray(v) for name, v in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def lora(folder: Path, seed: int = 0, head: bool = False, **config: object) -> Path:
    """LoRA of ranks 4 and 2 (by a pattern), with a factor's bias and a layer that was trained as a whole."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    save(
        folder,
        {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "rank_pattern": {"key": 2},
         "target_modules": ["query", "key"], "lora_dropout": 0.1, "init_lora_weights": True,
         "lora_bias": True, "megatron_core": "megatron.core"} | config,
        {
            f"{QUERY}.lora_A.weight": normal(4, 24),
            f"{QUERY}.lora_B.weight": 0.1 * normal(16, 4),
            f"{KEY}.lora_A.weight": normal(2, 24),
            f"{KEY}.lora_B.weight": 0.1 * normal(20, 2),
            f"{QUERY}.lora_B.bias": 0.01 * normal(16),
            f"{KEY}.lora_B.bias": 0.01 * normal(20),
            "base_model.model.classifier.weight": normal(3, 24),
        },
    )  # fmt: skip
    if head:
        save_file({"weight": normal(2, 24), "bias": normal(2)}, folder / "head.safetensors")
        notes = {"format": "headwater.adapter.v1", "kind": "encoder", "labels": ["no", "yes"], "chat": False}
        notes |= {"system": None, "pooling": "mean", "base": {"path": "base"}, "card": {"rounds": 3}}
        notes |= {"ends": None, "token_types": False, "rows": {"data": {"max_tokens": 48}}}
        (folder / "headwater.json").write_text(json.dumps(notes))
    return folder


def ia3(folder: Path) -> Path:
    draw = np.random.default_rng(3)
    values = 1 + 0.1 * draw.standard_normal((40, 1))
    config = {"peft_type": "IA3", "target_modules": ["key"], "feedforward_modules": []}
    return save(folder, config, {f"{KEY}.ia3_l": values.astype(np.float32)})


def prompt(folder: Path) -> Path:
    values = np.random.default_rng(4).standard_normal((5, 12)).astype(np.float16)
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "token_dim": 12, "num_layers": 2}
    return save(folder, config, {"prompt_embeddings": values})


def embedding_and_convolution(folder: Path) -> Path:
    draw = np.random.default_rng(5)
    return save(
        folder,
        {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "use_rslora": True,
            "target_modules": ["words", "conv"],
        },
        {
            "base_model.model.words.lora_embedding_A": draw.standard_normal((2, 30)).astype(np.float32),
            "base_model.model.words.lora_embedding_B": draw.standard_normal((8, 2)).astype(np.float32),
            "base_model.model.conv.lora_A.weight": draw.standard_normal((2, 3, 3, 3)).astype(np.float32),
            "base_model.model.conv.lora_B.weight": draw.standard_normal((5, 2, 1, 1)).astype(np.float32),
        },
    )
