"""LoRA-SB, PiSSA and OLoRA of several clients: :class:`StackedLoraSb`, :class:`StackedPrincipal`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

from headwater.adapters.kinds.lora_sb import Cored
from headwater.adapters.kinds.principal import Beside
from headwater.adapters.stacked.layer import ADAPTER, StackedLayer, Together


class StackedLoraSb(StackedLayer):
    """W·x + s·B·(R_k·(A·x)): the two factors are one batch's, the core each client's."""

    module: Linear

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Of a linear layer, transposed or not."""
        return type(module) is Linear and type(cast(Any, module).lora_A[ADAPTER]) is Cored

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [self.module.lora_A[ADAPTER], self.module.lora_B[ADAPTER]]

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return [self.module.lora_A[ADAPTER].weight]

    def dropouts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [self.module.lora_dropout[ADAPTER]]

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        module, (core,) = self.module, own
        a, b = module.lora_A[ADAPTER].a, module.lora_B[ADAPTER].weight
        scaling, dropout = module.scaling[ADAPTER], module.lora_dropout[ADAPTER]

        def forward(x: Tensor) -> Tensor:
            result: Tensor = module.base_layer(x)
            inner = together.rows(linear(together.dropped(x.to(b.dtype), dropout), a))
            change = linear(torch.bmm(inner, core.transpose(1, 2)), b).mul(scaling)
            return (result + change.view(result.shape)).to(result.dtype)

        return forward


class StackedPrincipal(StackedLoraSb):
    """W·x + s·(B_k·(A_k·x) − B₀·(A₀·x))."""

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Of a linear layer, transposed or not."""
        return type(module) is Linear and type(cast(Any, module).lora_A[ADAPTER]) is Beside

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return [self.module.lora_A[ADAPTER].weight, self.module.lora_B[ADAPTER].weight]

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        module, (a, b) = self.module, own
        a0, b0 = module.lora_A[ADAPTER].start, module.lora_B[ADAPTER].start
        scaling, dropout = module.scaling[ADAPTER], module.lora_dropout[ADAPTER]

        def forward(x: Tensor) -> Tensor:
            result: Tensor = module.base_layer(x)
            rows = together.rows(together.dropped(x.to(b.dtype), dropout))
            change = torch.bmm(rows @ a.transpose(-1, -2), b.transpose(1, 2)) - linear(linear(rows, a0), b0)
            return (result + change.mul(scaling).view(result.shape)).to(result.dtype)

        return forward
