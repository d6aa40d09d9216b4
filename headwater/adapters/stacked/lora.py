"""LoRA, rsLoRA and DoRA of several clients: :class:`StackedLora`, :class:`StackedDora`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from headwater.adapters.stacked.layer import ADAPTER, StackedLayer, Together


class StackedLora(StackedLayer):
    """W·x + s·B_k·(A_k·x), as two batched products over stacks [K, r, in] and [K, out, r].

    Where A stays at home it is one [r, in] for all.
    """

    module: Linear

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Of a linear layer (transposed or not), with plain factors, and in none of PEFT's variants."""
        if type(module) is not Linear or ADAPTER in cast(Any, module).lora_variant:
            return False
        return all(type(cast(Any, f)[ADAPTER]) is nn.Linear for f in (module.lora_A, module.lora_B))

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [cast(nn.ModuleDict, f)[ADAPTER] for f in (self.module.lora_A, self.module.lora_B)]

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return [cast(Tensor, part.weight) for part in self.parts()]

    def dropouts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [self.module.lora_dropout[ADAPTER]]

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        module, (a, b) = self.module, own
        scaling, dropout = module.scaling[ADAPTER], module.lora_dropout[ADAPTER]

        def forward(x: Tensor) -> Tensor:
            result: Tensor = module.base_layer(x)
            rows = together.rows(together.dropped(x.to(b.dtype), dropout))
            change = torch.bmm(rows @ a.transpose(-1, -2), b.transpose(1, 2)).mul(scaling)
            return (result + change.view(result.shape)).to(result.dtype)

        return forward


class StackedDora(StackedLora):
    """DoRA (arXiv 2402.09353, eq. 5): m_k/‖W + s·B_k·A_k‖ times what LoRA gives without the bias.

    The norms of a client's rows are summed as PEFT sums them, a client at a time: m/‖…‖ − 1 is near 0,
    and another rounding of it is 30 times as far from what the client learns alone. No gradient goes through.
    """

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """PEFT's DoRA of a linear layer."""
        if type(module) is not Linear:
            return False
        vectors = cast(Any, module).lora_magnitude_vector
        return ADAPTER in vectors and type(vectors[ADAPTER]) is DoraLinearLayer

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [*super().parts(), self.module.lora_magnitude_vector[ADAPTER]]

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        module, (a, b, magnitude) = self.module, own
        base, scaling, dropout = (
            module.get_base_layer(),
            module.scaling[ADAPTER],
            module.lora_dropout[ADAPTER],
        )

        def forward(x: Tensor) -> Tensor:
            result: Tensor = module.base_layer(x)
            weight = dequantize_module_weight(base).to(b.dtype)
            weight = weight.T if module.fan_in_fan_out else weight
            given = x.to(b.dtype)
            kept = together.dropped(given, dropout)
            if kept is not given:
                plain = torch.nn.functional.linear(kept, weight)
            else:
                plain = result if base.bias is None else result - base.bias
            share = (magnitude / _norms(weight, a, b, scaling)).unsqueeze(1)
            inner = together.rows(kept) @ a.transpose(-1, -2)
            change = share * torch.bmm(inner, b.transpose(1, 2)).mul(scaling)
            change = (share - 1) * together.rows(plain) + change
            return (result + change.view(result.shape)).to(result.dtype)

        return forward


def _norms(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Of the rows of W + s·B_k·A_k: [K, out]."""
    with torch.no_grad():
        pairs = zip(a.expand(len(b), -1, -1), b, strict=True)
        norms = [torch.linalg.norm(weight + scaling * (up @ down), dim=1) for down, up in pairs]
    return torch.stack(norms)
