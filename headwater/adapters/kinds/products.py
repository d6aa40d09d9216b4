"""Kinds whose ΔW is put together from trained factors: Hadamard, Kronecker, blocks, shared bases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from numpy.random import Generator
from peft import PeftModel
from peft.tuners.delora import DeloraLayer
from peft.tuners.glora.layer import GloraEmptyPath
from peft.tuners.randlora import RandLoraLayer
from torch import Tensor

from headwater.adapters.kinds.layers import LayerKind
from headwater.adapters.kinds.starts import kaiming, uniform, zeros
from headwater.config.layer_adapters import (
    DeloraAdapter,
    GloraAdapter,
    GraloraAdapter,
    HiraAdapter,
    LohaAdapter,
    LokrAdapter,
    MissAdapter,
    PeanutAdapter,
    RandLoraAdapter,
)
from headwater.state import TensorSpec

_NORM, _A, _B = ".delora_w_norm", ".randlora_A", ".randlora_B"
_UNIT = math.sqrt(3)
"""U(±√3) has variance 1."""


def _number(value: float) -> float:
    """As PEFT's files have it: an integer where it is one."""
    return int(value) if value == int(value) else value


class LohaKind(LayerKind[LohaAdapter]):
    """ΔW = alpha/r · (W1a·W1b) ⊙ (W2a·W2b). W2b starts as 0, so it starts as the base."""

    settings = LohaAdapter
    makes = "LoHaConfig"
    tensors = (
        (".hada_w1_a", "loha_w1_a", kaiming),
        (".hada_w1_b", "loha_w1_b", kaiming),
        (".hada_w2_a", "loha_w2_a", kaiming),
        (".hada_w2_b", "loha_w2_b", zeros),
    )

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank, "alpha": _number(self.adapter.alpha)}


class LokrKind(LayerKind[LokrAdapter]):
    """ΔW = alpha/r · W1 ⊗ (W2a·W2b). W1 starts as 0, so it starts as the base.

    W2 is one matrix where r is no less than half of its larger side.
    """

    settings = LokrAdapter
    makes = "LoKrConfig"
    tensors = ((".lokr_w1", "lokr_w1", zeros), (".lokr_w2", "lokr_w2", kaiming))

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        adapter = self.adapter
        return {"r": adapter.rank, "alpha": _number(adapter.alpha), "decompose_factor": adapter.factor}


class HiraKind(LayerKind[HiraAdapter]):
    """ΔW = W ⊙ (B·A). B starts as 0, so it starts as the base."""

    settings = HiraAdapter
    makes = "HiraConfig"
    tensors = ((".hira_A", "hira_a", kaiming), (".hira_B", "hira_b", zeros))

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank}


class GraloraKind(LayerKind[GraloraAdapter]):
    """k × k blocks of W, each with a LoRA of rank r/k, whose inner vectors are mixed. B starts as 0."""

    settings = GraloraAdapter
    makes = "GraloraConfig"
    tensors = ((".gralora_A", "gralora_a", kaiming), (".gralora_B", "gralora_b", zeros))

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        adapter = self.adapter
        return {"r": adapter.rank, "alpha": _number(adapter.alpha), "gralora_k": adapter.blocks}


class MissKind(LayerKind[MissAdapter]):
    """Inputs of every r-th place are summed and sent through one block [r, d_out], which starts as 0."""

    settings = MissAdapter
    makes = "MissConfig"
    tensors = ((".miss_block", "miss_block", zeros),)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank}


class PeanutKind(LayerKind[PeanutAdapter]):
    """ΔW = σ(W·A)·B, σ the rectifier. B starts as 0, so it starts as the base."""

    settings = PeanutAdapter
    makes = "PeanutConfig"
    tensors = ((".peanut_A", "peanut_a", kaiming), (".peanut_B", "peanut_b", zeros))

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank, "act_fn": "relu", "depth": 0}


class DeloraKind(LayerKind[DeloraAdapter]):
    """ΔW = B·diag(λ / (r·‖aᵢ‖·‖bᵢ‖))·A·diag(‖W‖ by input), of which A, B and λ are trained.

    B starts as 0, so it starts as the base. The norms of W stay at home: every member has the base.
    """

    settings = DeloraAdapter
    makes = "DeloraConfig"
    tensors = (
        (".delora_A", "delora_a", kaiming),
        (".delora_B", "delora_b", zeros),
        (".delora_lambda", "delora_lambda", zeros),
    )

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank, "delora_lambda": _number(self.adapter.strength)}

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        found = {}
        for name, layer in peft.named_modules():
            if isinstance(layer, DeloraLayer):
                norm = layer.delora_w_norm["default"]
                found[name + _NORM] = TensorSpec(name + _NORM, tuple(norm.shape), "delora_norm"), norm
        return found

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        if spec.role == "delora_lambda":
            return torch.full(spec.shape, self.adapter.strength)
        if spec.role != "delora_norm":
            return super().start(spec, peft, draw)
        weight: Tensor = peft.get_submodule(spec.name.removesuffix(_NORM)).get_base_layer().weight
        # in float64, so that the order of a machine's sums does not reach the rounded result
        return weight.double().square().sum(0).sqrt().float().cpu()


class GloraKind(LayerKind[GloraAdapter]):
    """ΔW = W ⊙ A + B and Δb = W·c + d·b + e: A, B and c are products of two factors, d and e scalars.

    The first factors (PEFT's Xd), d and e start as 0, so it starts as the base. Layers without biases have A
    and B only; PEFT's file has zeros there for the rest.
    """

    settings = GloraAdapter
    makes = "GloraConfig"
    tensors = (
        *((f".glora_{path}.Xd", "glora_xd", zeros) for path in "ABC"),
        *((f".glora_{path}.Xu", "glora_xu", kaiming) for path in "ABC"),
        *((f".glora_{path}.X", "glora_scalar", zeros) for path in "DE"),
        (".zeros", "glora_nothing", zeros),
    )

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank}

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        found = {}
        for path, module in peft.named_modules():
            if isinstance(module, GloraEmptyPath):
                name = path.removesuffix(".default") + ".zeros"
                found[name] = TensorSpec(name, tuple(module.zeros.shape), "glora_nothing"), module.zeros
        return found


class RandLoraKind(LayerKind[RandLoraAdapter]):
    """ΔW = alpha/r · Σᵢ Bᵢ·diag(λᵢ)·Aᵢ·diag(γᵢ): λ and γ are trained, the bases are random and shared.

    λ starts as 0, so it starts as the base; γ as 1/d, d its longer side. The bases have variance 1 and are
    drawn from the federation's seed, uniformly as PEFT's are. PEFT's file has them again for each layer.
    """

    settings = RandLoraAdapter
    makes = "RandLoraConfig"
    tensors = (
        (".randlora_lambda", "randlora_lambda", zeros),
        (".randlora_gamma", "randlora_gamma", zeros),
        ("randlora_A", "randlora_a", uniform(_UNIT)),
        ("randlora_B", "randlora_b", uniform(_UNIT)),
    )

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        alpha = _number(self.adapter.alpha)
        return {"r": self.adapter.rank, "randlora_alpha": alpha, "save_projection": True}

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        model, found = peft.base_model, {}
        for part, role, shared in (
            (_A, "randlora_a", model.randlora_A),
            (_B, "randlora_b", model.randlora_B),
        ):
            name, basis = f"base_model{part}", shared["default"]
            found[name] = TensorSpec(name, tuple(basis.shape), role), basis
        return found

    def saved(self, peft: PeftModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With the bases under the name of every layer too, without which PEFT warns."""
        layers = [n for n, layer in peft.named_modules() if isinstance(layer, RandLoraLayer)]
        return dict(tensors) | {
            name + part: tensors[f"base_model{part}"].clone() for name in layers for part in (_A, _B)
        }

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        if spec.role == "randlora_gamma":
            return torch.full(spec.shape, 1 / max(spec.shape))
        return super().start(spec, peft, draw)
