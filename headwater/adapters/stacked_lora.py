"""Several clients' LoRA and heads in one pass: :func:`stacked`.

The rows of a batch are those of K clients one after the other, equally many of each. The frozen weights see
one batch; beside them each client's rows go through its own factors, B_k·(A_k·x), as two batched products
over stacks [K, r, in] and [K, out, r]. A gradient of the sum of all losses is then each client's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from peft.tuners.lora import Linear

    from headwater.adapters.model import AdaptedModel
    from headwater.adapters.network import Network

_ADAPTER = "default"


def unstackable(model: AdaptedModel) -> str | None:
    """Why clients of this model cannot be trained as one batch; None if they can."""
    config = model.network.peft.active_peft_config
    if getattr(config, "use_dora", False):
        return "DoRA"
    if getattr(config, "lora_dropout", 0.0):
        return "adapter.dropout"
    reached = {id(p) for _, own in _layers(model.network) for p in own}
    if lost := [spec.name for spec, p in model.parameters() if id(p) not in reached]:
        return f"a trained tensor that is in no LoRA of a linear layer, {lost[0]}"
    return None


def _layers(network: Network) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Module and trained parameters of each layer that can be stacked."""
    from peft.tuners.lora import Linear

    for module in network.modules():
        if type(module) is Linear:
            factors = cast(nn.ModuleDict, module.lora_A), cast(nn.ModuleDict, module.lora_B)
            yield module, tuple(cast(Tensor, factor[_ADAPTER].weight) for factor in factors)
    if network.head is not None:
        yield network.head, (network.head.weight, network.head.bias)


@contextmanager
def stacked(model: AdaptedModel, values: Mapping[str, Tensor], clients: int) -> Iterator[None]:
    """Inside, the model computes with each client's own tensors.

    Args:
        model: one that is not :func:`unstackable`.
        values: by the name of the trained tensor, of all clients: [clients, *shape].
        clients: whose rows a batch has, one client's after the other's.
    """
    by_parameter = {id(parameter): values[spec.name] for spec, parameter in model.parameters()}
    with ExitStack() as stack:
        for module, parameters in _layers(model.network):
            own = [by_parameter.get(id(p), p) for p in parameters]
            if module is model.network.head:
                forward = _linear(own[0], own[1], clients)
            else:
                forward = _lora(cast("Linear", module), own[0], own[1], clients)
            stack.enter_context(_computes(module, forward))
        yield


@contextmanager
def _computes(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, this is what the module does."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _lora(module: Linear, a: Tensor, b: Tensor, clients: int) -> Callable[..., Tensor]:
    """W·x + s·B_k·(A_k·x); where A stays at home it is one [r, in] for all."""
    scaling = module.scaling[_ADAPTER]

    def forward(x: Tensor) -> Tensor:
        result: Tensor = module.base_layer(x)
        rows = x.to(b.dtype).reshape(clients, -1, x.shape[-1])
        inner = rows @ a.transpose(-1, -2)
        change = torch.bmm(inner, b.transpose(1, 2)).mul(scaling)
        return (result + change.view(result.shape)).to(result.dtype)

    return forward


def _linear(weight: Tensor, bias: Tensor, clients: int) -> Callable[..., Tensor]:
    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(clients, -1, x.shape[-1])
        return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2)).flatten(0, 1)

    return forward
