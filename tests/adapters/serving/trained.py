"""Adapters that PEFT made over a tiny Llama, with random values in every trained tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.tiny_models import tiny_llama

TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 6, "use_rslora": True,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7},
        "alpha_pattern": {"v_proj": 3, "k_proj": 2.5},
    },
    "dora": {"r": 4, "lora_alpha": 6, "use_dora": True},
}  # fmt: skip


def base(folder: Path) -> Path:
    """The base model, written once."""
    return folder if folder.is_dir() else tiny_llama(folder)


def save(folder: Path, base: Path, config: PeftConfig, *, seed: int = 0) -> Path:
    """An adapter of that kind."""
    draw = torch.Generator().manual_seed(seed)
    model = get_peft_model(load(base), config)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def lora(folder: Path, base: Path, **settings: Any) -> Path:
    """LoRA of those settings."""
    return save(folder, base, LoraConfig(**{"target_modules": TARGETS, "task_type": "CAUSAL_LM"} | settings))


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=tokens).logits.double()
