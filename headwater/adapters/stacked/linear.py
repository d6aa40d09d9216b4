"""Trained linear layers and layer norms, mostly of heads: :class:`StackedLinear`, :class:`StackedNorm`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from headwater.adapters.stacked.layer import StackedLayer, Together


class StackedLinear(StackedLayer):
    """W_k·x + b_k."""

    module: nn.Linear

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Torch's own, or what computes as it does."""
        return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return ()

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return _own(self.module)

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        weight, *bias = (
            stack_of(tensor, dims, together.clients) for tensor, dims in zip(own, (2, 1), strict=False)
        )
        added = bias[0].unsqueeze(1) if bias else weight.new_zeros(1)

        def forward(x: Tensor) -> Tensor:
            rows = together.rows(x)
            return torch.baddbmm(added, rows, weight.transpose(1, 2)).view(*x.shape[:-1], -1)

        return forward


class StackedNorm(StackedLayer):
    """A layer norm over the last dimension, scaled and moved by w_k and b_k."""

    module: nn.LayerNorm

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Torch's own, over one dimension."""
        if not isinstance(module, nn.LayerNorm) or type(module).forward is not nn.LayerNorm.forward:
            return False
        return len(module.normalized_shape) == 1

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return ()

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return _own(self.module)

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        shape, eps = self.module.normalized_shape, self.module.eps
        weight, *bias = (stack_of(tensor, 1, together.clients).unsqueeze(1) for tensor in own)

        def forward(x: Tensor) -> Tensor:
            plain = together.rows(torch.nn.functional.layer_norm(x, shape, eps=eps))
            moved = plain * weight if not bias else torch.addcmul(bias[0], plain, weight)
            return moved.view(x.shape)

        return forward


def stack_of(tensor: Tensor, dims: int, clients: int) -> Tensor:
    """One for each client, also where all have the same."""
    return tensor.expand(clients, *tensor.shape) if tensor.dim() == dims else tensor


def _own(module: nn.Linear | nn.LayerNorm) -> Sequence[Tensor]:
    """Weight, and bias where there is one."""
    return [module.weight] if module.bias is None else [module.weight, module.bias]
