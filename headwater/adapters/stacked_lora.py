"""Several clients' LoRA and heads in one pass: :func:`stacked`.

The rows of a batch are those of K clients one after the other, equally many of each. The frozen weights see
one batch; beside them each client's rows go through its own factors, B_k·(A_k·x), as two batched products
over stacks [K, r, in] and [K, out, r]. A gradient of the sum of all losses is then each client's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from peft.tuners.lora import Linear

    from headwater.adapters.model import AdaptedModel

_ADAPTER = "default"


def unstackable(model: AdaptedModel) -> str | None:
    """Why clients of this model cannot be trained as one batch; None if they can."""
    config = model.network.peft.active_peft_config
    if getattr(config, "use_dora", False):
        return "DoRA"
    reached = {id(p) for _, own in _layers(model) for p in own}
    if lost := [spec.name for spec, p in model.parameters() if id(p) not in reached]:
        return f"a trained tensor that is in no linear layer nor the LoRA of one, {lost[0]}"
    return None


def _layers(model: AdaptedModel) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Each layer that is stacked, LoRA or a trained head's, with its parameters."""
    from peft.tuners.lora import Linear

    trained = {id(parameter) for _, parameter in model.parameters()}
    factors: set[nn.Module] = set()
    for module in model.network.modules():
        if type(module) is Linear:
            pair = [cast(nn.ModuleDict, f)[_ADAPTER] for f in (module.lora_A, module.lora_B)]
            factors.update(pair)
            if all(type(factor) is nn.Linear for factor in pair):  # LoRA-SB's A is more than a weight
                yield module, tuple(cast(Tensor, factor.weight) for factor in pair)
        elif isinstance(module, nn.Linear) and module not in factors and id(module.weight) in trained:
            yield module, (module.weight,) if module.bias is None else (module.weight, module.bias)


@dataclass(frozen=True, slots=True)
class Dropping:
    """How each client's inputs of its factors are dropped: as alone, from a stream of its own.

    Args:
        generators: one for each client.
        shapes: rows and tokens of each client's own batch, which it would draw for.
    """

    generators: Sequence[torch.Generator]
    shapes: Sequence[tuple[int, int]]

    def kept(self, x: Tensor, share: float) -> Tensor:
        """0 where ``x`` [K·b, t, d] is dropped, else 1 over the share that is kept, as torch has it."""
        clients, (rows, width, size) = len(self.generators), (x.shape[0], x.shape[1], x.shape[2])
        found = torch.zeros(clients, rows // clients, width, size, dtype=x.dtype)
        for own, generator, (batch, tokens) in zip(found, self.generators, self.shapes, strict=True):
            drawn = torch.empty(batch, tokens, size, dtype=x.dtype)
            own[:batch, :tokens] = drawn.bernoulli_(share, generator=generator).div_(share)
        return found.view(x.shape).to(x.device)


@contextmanager
def stacked(
    model: AdaptedModel, values: Mapping[str, Tensor], clients: int, dropping: Dropping | None = None
) -> Iterator[None]:
    """Inside, the model computes with each client's own tensors.

    Args:
        model: one that is not :func:`unstackable`.
        values: by the name of the trained tensor, of all clients: [clients, *shape].
        clients: whose rows a batch has, one client's after the other's.
        dropping: of the adapter's inputs, while the model trains; None for nothing.
    """
    by_parameter = {id(parameter): values[spec.name] for spec, parameter in model.parameters()}
    with ExitStack() as stack:
        for module, parameters in _layers(model):
            own = [by_parameter.get(id(p), p) for p in parameters]
            if isinstance(module, nn.Linear):
                forward = _linear(own, clients)
            else:
                forward = _lora(cast("Linear", module), own[0], own[1], clients, dropping)
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


def _lora(
    module: Linear, a: Tensor, b: Tensor, clients: int, dropping: Dropping | None
) -> Callable[..., Tensor]:
    """W·x + s·B_k·(A_k·x); where A stays at home it is one [r, in] for all."""
    scaling = module.scaling[_ADAPTER]
    share = 1.0 - float(getattr(module.lora_dropout[_ADAPTER], "p", 0.0))

    def forward(x: Tensor) -> Tensor:
        result: Tensor = module.base_layer(x)
        x = x.to(b.dtype)
        if dropping is not None and share < 1:
            x = x * dropping.kept(x, share)
        rows = x.reshape(clients, -1, x.shape[-1])
        inner = rows @ a.transpose(-1, -2)
        change = torch.bmm(inner, b.transpose(1, 2)).mul(scaling)
        return (result + change.view(result.shape)).to(result.dtype)

    return forward


def _linear(own: list[Tensor], clients: int) -> Callable[..., Tensor]:
    """W_k·x + b_k."""
    weight, bias = own[0], own[1].unsqueeze(1) if len(own) > 1 else own[0].new_zeros(1)

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(clients, -1, x.shape[-1])
        return torch.baddbmm(bias, rows, weight.transpose(1, 2)).view(*x.shape[:-1], -1)

    return forward
