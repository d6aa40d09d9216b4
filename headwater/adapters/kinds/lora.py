"""LoRA, with rsLoRA and DoRA: trained products B·A beside the weights of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headwater.adapters import targets
from headwater.adapters.base import Base
from headwater.adapters.kinds import token_rows
from headwater.adapters.kinds.kind import AdapterKind
from headwater.config.adapter import LoraAdapter
from headwater.state import TensorSpec

_A, _B = ".lora_A.", ".lora_B."
_MAGNITUDE = ".lora_magnitude_vector"


class LoraKind(AdapterKind[LoraAdapter]):
    """LoRA: ``lora_a`` is drawn U(±1/√d_in) (Kaiming, a = √5), ``lora_b`` is 0: it starts as the base.

    ``dora_magnitude`` starts as the row norms of the base weight (arXiv 2402.09353, eq. 5, where BA = 0). In
    space ``ffa`` every A stays at home. ``token_rows`` are rows of the embedding, and start as the base's.
    """

    settings = LoraAdapter
    roles = (
        (_A, "lora_a"),
        (_B, "lora_b"),
        (_MAGNITUDE, "dora_magnitude"),
        (token_rows.ROWS, token_rows.ROLE),
    )

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> LoraConfig:  # noqa: D102 - inherited
        adapter = self.adapter
        targets.require_targets(base, adapter.target_modules)
        targets.require_parameters(base, adapter.target_parameters or ())
        targets.require_layers(base, adapter.layers)
        token_rows.require_rows(base, adapter.trainable_token_indices)
        saved = common.get("modules_to_save") or ()
        return LoraConfig(
            r=adapter.rank,
            lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
            target_modules=self._targets(base),
            exclude_modules=targets.saved_whole(base, adapter.target_modules, saved),
            layers_to_transform=None if adapter.layers is None else list(adapter.layers),
            use_rslora=adapter.rslora,
            use_dora=adapter.dora,
            lora_dropout=adapter.dropout,
            fan_in_fan_out=targets.transposed(base, adapter.target_modules),
            target_parameters=list(adapter.target_parameters) if adapter.target_parameters else None,
            rank_pattern=adapter.rank_pattern or {},
            alpha_pattern=adapter.alpha_pattern or {},
            trainable_token_indices=token_rows.for_peft(adapter.trainable_token_indices),
            bias="none",
            **common,
        )

    def _targets(self, base: Base) -> str | list[str]:
        if self.adapter.target_modules != (targets.ALL_LINEAR,):
            return list(self.adapter.target_modules)
        if self.adapter.layers is None:
            return targets.ALL_LINEAR
        # PEFT takes that word for all layers only
        return sorted({name.rpartition(".")[2] for name in targets.in_layers(base, None)})

    def require_sound(self, who: str, peft: PeftModel, before: targets.Unadapted) -> None:  # noqa: D102 - inherited
        targets.require_untied(who, peft, before)
        if self.adapter.target_modules == (targets.ALL_LINEAR,):
            targets.require_all_linear(who, peft, before.linear, self.adapter.layers)
        for table in ("rank_pattern", "alpha_pattern"):
            targets.require_patterns(who, peft, table, getattr(self.adapter, table) or ())
        token_rows.require_one_meaning(who, peft, before)

    def prepare(self, peft: PeftModel) -> None:  # noqa: D102 - inherited
        token_rows.sparing(peft)

    def spec(self, peft: PeftModel, name: str, parameter: Tensor) -> TensorSpec:  # noqa: D102 - inherited
        shape = tuple(parameter.shape)
        if _A in name:
            return TensorSpec(name, shape, "lora_a", experts=_experts(_layer(peft, name, _A)))
        if _B not in name:
            return super().spec(peft, name, parameter)
        layer = _layer(peft, name, _B)
        return TensorSpec(
            name,
            shape,
            "lora_b",
            pair=name.replace(_B, _A),
            scaling=float(layer.scaling["default"]),
            transposed=isinstance(layer.get_base_layer(), Conv1D),
            experts=_experts(layer),
        )

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        if spec.role == "lora_a":
            bound = 1 / math.sqrt(spec.shape[1])
            return torch.from_numpy(draw.uniform(-bound, bound, spec.shape).astype(np.float32))
        if spec.role == "lora_b":
            return torch.zeros(spec.shape)
        if spec.role == token_rows.ROLE:
            return token_rows.base_rows(peft, spec.name)
        layer = _layer(peft, spec.name, _MAGNITUDE)
        weight: Tensor = dequantize_module_weight(layer.get_base_layer())
        weight = weight.T if layer.fan_in_fan_out else weight
        # in float64, so that the order of a machine's sums does not reach the rounded result
        return weight.double().square().sum(1).sqrt().float().cpu().reshape(spec.shape)

    def stays_home(self, spec: TensorSpec, space: str) -> bool:  # noqa: D102 - inherited
        return space == "ffa" and spec.role == "lora_a"

    def dropouts(self, peft: PeftModel) -> list[nn.Module]:
        """With DoRA also its layers: PEFT's drops nothing in a layer that is not itself in training mode."""
        found = super().dropouts(peft)
        if not (found and self.adapter.dora):
            return found
        return found + [m for m in peft.get_base_model().modules() if isinstance(m, LoraLayer)]

    @property
    def is_linear_layers(self) -> bool:
        """Not with DoRA, which sends the identity matrix through A and B too, nor with rows of tokens."""
        return not self.adapter.dora and self.adapter.trainable_token_indices is None


def _layer(peft: PeftModel, name: str, mark: str) -> BaseTunerLayer:
    """The PEFT layer that a tensor belongs to."""
    return peft.get_submodule(name.partition(mark)[0])


def _experts(layer: BaseTunerLayer) -> int:
    """How many experts' weights the layer's parameter stacks; 1 for an ordinary layer."""
    return int(getattr(layer, "num_experts", 1))
