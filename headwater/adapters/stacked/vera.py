"""VeRA of several clients: :class:`StackedVera`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peft.tuners.vera import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

from headwater.adapters.stacked.layer import ADAPTER, StackedLayer, Together


class StackedVera(StackedLayer):
    """W·x + b_k ⊙ B·(d_k ⊙ (A·x)): the two matrices are one batch's, the vectors each client's."""

    module: Linear

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Of a linear layer, transposed or not."""
        return type(module) is Linear

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [self.module.vera_lambda_b, self.module.vera_lambda_d]

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return [self.module.vera_lambda_b[ADAPTER], self.module.vera_lambda_d[ADAPTER]]

    def dropouts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [self.module.vera_dropout[ADAPTER]]

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        module = self.module
        b, d = (tensor.unsqueeze(1) for tensor in own)
        wide, tall = module.vera_A[ADAPTER], module.vera_B[ADAPTER]
        dropout = module.vera_dropout[ADAPTER]

        def forward(x: Tensor) -> Tensor:
            result: Tensor = module.base_layer(x)
            down, up = wide[:, : module.in_features].to(x.device), tall[: module.out_features].to(x.device)
            inner = together.rows(linear(together.dropped(x.to(d.dtype), dropout), down))
            change = b * linear(d * inner, up)
            return (result + change.view(result.shape)).to(result.dtype).to(x.dtype)

        return forward
