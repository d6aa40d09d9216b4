"""IA3: trained vectors that rescale what linear layers give, or what they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.random import Generator
from peft import IA3Config, PeftModel
from torch import Tensor

from headwater.adapters import targets
from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.config.adapter import Ia3Adapter
from headwater.state import TensorSpec


class Ia3Kind(AdapterKind[Ia3Adapter]):
    """IA3: every value starts as 1, so it starts as the base."""

    settings = Ia3Adapter
    roles = ((".ia3_l", "ia3"),)

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> IA3Config:  # noqa: D102 - inherited
        targets.require_targets(base, self.adapter.target_modules)
        return IA3Config(
            target_modules=list(self.adapter.target_modules),
            feedforward_modules=list(self.adapter.feedforward_modules),
            fan_in_fan_out=targets.transposed(base, self.adapter.target_modules),
            **common,
        )

    def require_sound(self, who: str, peft: PeftModel, before: targets.Unadapted) -> None:  # noqa: D102 - inherited
        targets.require_untied(who, peft, before)

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        return torch.ones(spec.shape)
