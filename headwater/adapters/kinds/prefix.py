"""Prefix tuning: trained keys and values that every layer attends to before the input's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from peft import PeftModel, PrefixTuningConfig
from torch import Tensor

from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.kinds.prompt import PROMPT
from headwater.config.adapter import PrefixAdapter
from headwater.state import TensorSpec

STD = 0.02
_GUESSED = {
    "token_dim": ("hidden_size", ("hidden_size", "n_embd", "d_model")),
    "num_layers": ("num_hidden_layers", ("num_hidden_layers", "num_layers", "n_layer")),
    "num_attention_heads": (
        "num_attention_heads",
        ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
    ),
}
"""transformers' common name of each size, and the names that PEFT knows it by."""


class PrefixKind(AdapterKind[PrefixAdapter]):
    """Prefix tuning without an encoder: it starts as N(0, 0.02²)."""

    settings = PrefixAdapter
    roles = ((PROMPT, "prefix"),)

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> PrefixTuningConfig:  # noqa: D102 - inherited
        return PrefixTuningConfig(num_virtual_tokens=self.adapter.tokens, **_unguessed(base), **common)

    def name_of(self, parameter: str) -> str:
        """PEFT saves a computed copy."""
        return PROMPT if parameter.startswith("prompt_encoder.") else ""

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        return torch.from_numpy((STD * draw.standard_normal(spec.shape)).astype(np.float32))


def _unguessed(base: Base) -> dict[str, int]:
    """Sizes that PEFT would not find in the model's configuration, under transformers' common names."""
    known = base.model.config.to_dict()
    return {
        size: getattr(base.model.config, common)
        for size, (common, names) in _GUESSED.items()
        if not any(name in known for name in names) and hasattr(base.model.config, common)
    }
