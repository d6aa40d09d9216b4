"""Prompt tuning: trained embeddings of tokens that stand before the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.random import Generator
from peft import PeftModel, PromptTuningConfig
from torch import Tensor

from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.config.adapter import PromptAdapter
from headwater.state import TensorSpec

PROMPT = "prompt_embeddings"
"""The one tensor that PEFT saves of an adapter of virtual tokens."""


def prompt_sizes(base: Base) -> dict[str, int]:
    """What PEFT must be told of a base before which a prompt stands.

    PEFT guesses these from names that not every architecture uses.
    """
    shape = base.model.config
    return {
        "token_dim": base.model.get_input_embeddings().embedding_dim,
        "num_layers": shape.num_hidden_layers,
        "num_attention_heads": getattr(shape, "num_attention_heads", 1),  # of no use to a prompt
    }


class PromptKind(AdapterKind[PromptAdapter]):
    """Prompt tuning: it starts as embeddings of random vocabulary entries (arXiv 2104.08691, §3.1)."""

    settings = PromptAdapter
    roles = ((PROMPT, "prompt"),)

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> PromptTuningConfig:  # noqa: D102 - inherited
        return PromptTuningConfig(num_virtual_tokens=self.adapter.tokens, **prompt_sizes(base), **common)

    def name_of(self, parameter: str) -> str:
        """PEFT saves a computed copy."""
        return PROMPT if parameter.startswith("prompt_encoder.") else ""

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        embeddings: Tensor = peft.word_embeddings.weight
        rows = draw.integers(0, embeddings.shape[0], spec.shape[0])
        return embeddings[torch.from_numpy(rows).to(embeddings.device)].detach().float().cpu().clone()
