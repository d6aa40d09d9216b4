"""Adaption prompts (LLaMA-Adapter): a gated prompt that attention of the upper layers also looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.random import Generator
from peft import AdaptionPromptConfig, PeftModel
from torch import Tensor

from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.kinds.starts import normal, zeros
from headwater.config.layer_adapters import AdaptionPromptAdapter
from headwater.errors import ModelError
from headwater.state import TensorSpec

_STARTS = {"adaption_prompt": normal(1.0), "adaption_gate": zeros}


class AdaptionPromptKind(AdapterKind[AdaptionPromptAdapter]):
    """LLaMA-Adapter (arXiv 2303.16199): prompts start as N(0, 1), gates as 0: as the base.

    PEFT knows the attention of Llama, Mistral and GPT-2, and saves no head beside it.
    """

    settings = AdaptionPromptAdapter
    roles = ((".adaption_prompt", "adaption_prompt"), (".adaption_gate", "adaption_gate"))

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> AdaptionPromptConfig:  # noqa: D102 - inherited
        who, depth = f"adapter 'adaption-prompt' on {base.settings.path}", base.model.config.num_hidden_layers
        if base.settings.own_head:
            raise ModelError(
                who,
                expected='model.kind "causal-lm" or "encoder"',
                got=base.settings.kind,
                hint="PEFT saves no head of the base with it.",
            )
        if (self.adapter.upper_layers or 1) > depth:
            raise ModelError(
                who, expected=f"at most {depth} upper_layers", got=str(self.adapter.upper_layers)
            )
        return AdaptionPromptConfig(
            adapter_len=self.adapter.tokens,
            adapter_layers=self.adapter.upper_layers or depth,
            task_type=common["task_type"],
        )

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        return _STARTS[spec.role](spec, draw)

    def detach(self, peft: PeftModel) -> None:
        """PEFT's own way out of the base; it has no other."""
        peft.base_model.disable_adapter_layers()
