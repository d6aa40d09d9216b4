"""P-tuning: tokens before the input whose embeddings a small trained network computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from peft import PeftModel, PromptEncoderConfig
from torch import Tensor, nn

from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.kinds.prompt import PROMPT, prompt_sizes
from headwater.config.adapter import PTuningAdapter
from headwater.state import TensorSpec

_HERE, _IN_PEFT = "prompt_encoder.", "prompt_encoder.default."


class PTuningKind(AdapterKind[PTuningAdapter]):
    """P-tuning (arXiv 2103.10385): embeddings and the network over them are trained and travel.

    PEFT saves and loads the prompt that the network computes, not the network; so does the export. Starts
    are torch's in law: embeddings N(0, 1), linear layers and LSTMs U(±1/√fan_in).
    """

    exports_itself = False
    settings = PTuningAdapter
    roles = ((_HERE, "prompt_encoder"),)

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> PromptEncoderConfig:  # noqa: D102 - inherited
        adapter = self.adapter
        # PEFT warns of a number of layers for an MLP
        layers = {"encoder_num_layers": adapter.lstm_layers} if adapter.encoder == "lstm" else {}
        return PromptEncoderConfig(
            num_virtual_tokens=adapter.tokens,
            encoder_reparameterization_type=adapter.encoder.upper(),
            encoder_hidden_size=adapter.hidden_size,
            **layers,
            **prompt_sizes(base),
            **common,
        )

    def name_of(self, parameter: str) -> str:
        """The network's own names: PEFT saves none of them."""
        return parameter.replace(_IN_PEFT, _HERE) if parameter.startswith(_IN_PEFT) else ""

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        path = spec.name.removeprefix(_HERE).rpartition(".")[0]
        layer = peft.prompt_encoder["default"].get_submodule(path)
        if isinstance(layer, nn.Embedding):
            return torch.from_numpy(draw.standard_normal(spec.shape).astype(np.float32))
        bound = 1 / math.sqrt(layer.in_features if isinstance(layer, nn.Linear) else layer.hidden_size)
        return torch.from_numpy(draw.uniform(-bound, bound, spec.shape).astype(np.float32))

    def saved(self, peft: PeftModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompt that the network computes with these values, and what else there is (a head)."""
        encoder = copy.deepcopy(peft.prompt_encoder["default"])
        encoder.load_state_dict({n.removeprefix(_HERE): v for n, v in tensors.items() if n.startswith(_HERE)})
        tokens = peft.prompt_tokens["default"].to(encoder.embedding.weight.device)
        with torch.no_grad():
            prompt = encoder(tokens[None])[0].float().cpu()
        return {n: v for n, v in tensors.items() if not n.startswith(_HERE)} | {PROMPT: prompt}
