"""A loss and its directional derivative in one pass of forward-mode AD: :func:`slope`.

Every value carries its tangent along (dual numbers; Baydin et al. 2022, "Gradients without
backpropagation", arXiv 2202.08587): one pass gives L and ∇L·v exactly, keeps no activation, and holds twice
what an inference holds. What :mod:`headwater.adapters.jvp_rules` does not do itself is left to torch, with
the mathematical attention: the fused kernels have no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.adapters.jvp_rules import ForwardADRules
from headwater.errors import ModelError


def slope(
    network: nn.Module,
    loss: Callable[[], Tensor],
    tangents: Iterable[tuple[Parameter, Tensor]],
    *,
    who: str,
) -> tuple[float, float]:
    """``loss()`` and its derivative along the tangents.

    Args:
        network: the module whose parameters ``loss`` uses.
        loss: computes the 0-dim loss of ``network``.
        tangents: parameters and their tangents, of the same shapes; others stand still.
        who: names adapter and model in the error.

    Raises:
        ModelError: a part of the model has no forward mode.
    """
    names = {id(parameter): f"network.{name}" for name, parameter in network.named_parameters()}
    # inference_mode would drop the tangents
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), ForwardADRules():
        duals = dict[str, Tensor]()
        for parameter, tangent in tangents:
            dual = forward_ad.make_dual(parameter.detach(), tangent.to(parameter))  # type: ignore[no-untyped-call]  # torch leaves it untyped
            duals[names[id(parameter)]] = dual
        try:
            value = torch.func.functional_call(_Loss(network, loss), duals)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("forward AD", "forward-mode", "jvp", "dual")):
                raise
            raise ModelError(
                who,
                expected="an adapter and a model of operations that have forward-mode differentiation",
                got=str(error).splitlines()[0][:200],
                hint="Use mezo or kseed, which need losses only, or backprop.",
            ) from error
        primal, derivative = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]  # likewise
        return float(primal), 0.0 if derivative is None else float(derivative)


class _Loss(nn.Module):
    """Calls ``loss`` while functional_call has the dual numbers in ``network``."""

    def __init__(self, network: nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.network, self._loss = network, loss

    def forward(self) -> Tensor:
        return self._loss()
