"""IA3 of several clients: :class:`StackedIa3`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peft.tuners.ia3 import Linear
from torch import Tensor, nn

from headwater.adapters.stacked.layer import ADAPTER, StackedLayer, Together


class StackedIa3(StackedLayer):
    """l_k ⊙ (W·x + b), or W·(l_k ⊙ x) + b in a feed-forward layer."""

    module: Linear

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Of a linear layer, transposed or not."""
        return type(module) is Linear

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [self.module.ia3_l]

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return [self.module.ia3_l[ADAPTER]]

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        module, (scale,) = self.module, own
        base = module.get_base_layer()
        scale = scale.view(together.clients, 1, -1)  # [K, out, 1], or [K, 1, in]

        def forward(x: Tensor) -> Tensor:
            if module.is_feedforward:
                scaled = (together.rows(x.to(scale.dtype)) * scale).view(x.shape)
                result: Tensor = module.base_layer(scaled.to(base.weight.dtype))
            else:
                result = module.base_layer(x).to(scale.dtype)
                result = (together.rows(result) * scale).view(result.shape)
            return result.to(x.dtype)

        return forward
