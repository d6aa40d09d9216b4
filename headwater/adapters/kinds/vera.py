"""VeRA: trained vectors around two random matrices that all layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from peft import PeftModel, VeraConfig
from torch import Tensor

from headwater.adapters import targets
from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.config.adapter import VeraAdapter
from headwater.state import TensorSpec

_PROJECTIONS = {"base_model.vera_A": "vera_a", "base_model.vera_B": "vera_b"}
"""The shared matrices: the names by which PEFT saves them, and their roles."""


class VeraKind(AdapterKind[VeraAdapter]):
    """VeRA (arXiv 2310.11454): ΔW = diag(b)·B·diag(d)·A, of which b and d are trained and travel.

    A [r, d_in] and B [d_out, r] are as large as the largest adapted layer; a smaller one takes their first
    columns and rows, as PEFT does. They are Kaiming uniform, U(±√(6/fan_in)), drawn from the federation's
    seed and not by PEFT, whose draws may differ from system to system: so the export brings them
    (``save_projection``). b starts as 0, so it starts as the base; d as ``d_initial``.
    """

    settings = VeraAdapter
    roles = ((".vera_lambda_b", "vera_lambda_b"), (".vera_lambda_d", "vera_lambda_d"))

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> VeraConfig:  # noqa: D102 - inherited
        adapter = self.adapter
        targets.require_targets(base, adapter.target_modules)
        targets.require_layers(base, adapter.layers)
        everything = adapter.target_modules == (targets.ALL_LINEAR,)
        chosen = self._all_linear(base, common) if everything else list(adapter.target_modules)
        layers = None if everything or adapter.layers is None else list(adapter.layers)
        return VeraConfig(
            r=adapter.rank,
            target_modules=chosen,
            layers_to_transform=layers,
            vera_dropout=adapter.dropout,
            d_initial=adapter.d_initial,
            fan_in_fan_out=targets.transposed(base, adapter.target_modules),
            save_projection=True,
            **common,
        )

    def _all_linear(self, base: Base, common: Mapping[str, Any]) -> list[str]:
        """By their full names: PEFT's word for it takes the layers of a head too, which it saves whole."""
        saved: Sequence[str] = common.get("modules_to_save") or ()
        return [
            name
            for name in targets.in_layers(base, self.adapter.layers)
            if not any(part.endswith((*targets.PEFT_HEADS, *saved)) for part in name.split("."))
        ]

    def require_sound(self, who: str, peft: PeftModel, before: targets.Unadapted) -> None:  # noqa: D102 - inherited
        targets.require_untied(who, peft, before)
        if self.adapter.target_modules == (targets.ALL_LINEAR,):
            targets.require_all_linear(who, peft, before.linear, self.adapter.layers)

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        shared = {"vera_a": peft.base_model.vera_A["default"], "vera_b": peft.base_model.vera_B["default"]}
        return {
            name: (TensorSpec(name, tuple(shared[role].shape), role), shared[role])
            for name, role in _PROJECTIONS.items()
        }

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        if spec.role == "vera_lambda_b":
            return torch.zeros(spec.shape)
        if spec.role == "vera_lambda_d":
            return torch.full(spec.shape, self.adapter.d_initial)
        bound = math.sqrt(6 / spec.shape[1])
        return torch.from_numpy(draw.uniform(-bound, bound, spec.shape).astype(np.float32))
