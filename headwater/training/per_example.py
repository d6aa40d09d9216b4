"""Per-example squared gradients of linear layers from one backward pass: :class:`SquaredGradients`.

For y = x·Wᵀ + b the gradient of example i is Σ_t gᵢₜ xᵢₜᵀ (and Σ_t gᵢₜ), with g the gradient of the
summed losses at y: one batched product gives those of all examples (Goodfellow, arXiv 1510.01799, for
norms; here with the sum over positions before the square). So a layer must see the examples apart,
[b, …, d], and once: OPT's feed-forward layers see [b·t, d], a routed expert the tokens that are sent to
it, ALBERT's layer passes its own output. Only the forward pass shows it: :attr:`SquaredGradients.apart`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel


def can_hook(model: AdaptedModel) -> bool:
    """Whether every trained tensor is the weight or bias of a linear layer.

    DoRA is out: it also sends the identity matrix through A and B, to measure their product.
    """
    if not model.kind.is_linear_layers:
        return False
    owned = {id(p) for layer in _layers(model).values() for p in (layer.weight, layer.bias)}
    return all(id(p) in owned for _, p in model.parameters())


class SquaredGradients:
    """While entered, every backward pass adds each example's squared gradients.

    Only for models for which :func:`can_hook` holds, and losses summed over independent examples:
    :meth:`expect`, forward pass, look at :attr:`apart`, backward pass.

    Attributes:
        apart: whether every layer has seen the examples apart so far. If not, there are no totals.
    """

    def __init__(self, model: AdaptedModel) -> None:
        self._parameters = [p for _, p in model.parameters()]
        self._squares = {id(p): torch.zeros_like(p) for p in self._parameters}
        self._layers = _layers(model)
        self._repeated = {
            id(layer) for name, layer in self._layers.items() if any(p.isdigit() for p in name.split("."))
        }
        self._handles: list[Any] = []
        self._batch, self._passed = 0, set[int]()
        self.apart = True

    def __enter__(self) -> SquaredGradients:
        self._handles = [layer.register_forward_hook(self._seen) for layer in self._layers.values()]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def expect(self, batch: int) -> None:
        """The next forward pass is of ``batch`` examples."""
        self._batch, self._passed = batch, set()

    def totals(self) -> list[Tensor]:
        """Sums over all examples so far, in the order of the model's parameters."""
        return [self._squares[id(p)] for p in self._parameters]

    def _seen(self, layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = inputs[0].detach()
        # rows of a numbered layer are tokens, even where they happen to be as many as the examples
        rank = 3 if id(layer) in self._repeated else 2
        if values.ndim < rank or values.shape[0] != self._batch or id(layer) in self._passed:
            self.apart = False
        if not self.apart:
            return
        self._passed.add(id(layer))
        output.register_hook(lambda g: self._add(layer, values, g))  # type: ignore[no-untyped-call]  # torch

    def _add(self, layer: nn.Linear, inputs: Tensor, gradient: Tensor) -> None:
        x = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        g = gradient.reshape(gradient.shape[0], -1, gradient.shape[-1])
        if layer.weight.requires_grad:
            self._squares[id(layer.weight)] += torch.bmm(g.transpose(1, 2), x).square_().sum(0)
        if layer.bias is not None and layer.bias.requires_grad:
            self._squares[id(layer.bias)] += g.sum(1).square_().sum(0)


def _layers(model: AdaptedModel) -> dict[str, nn.Linear]:
    """Linear layers with a trained weight or bias, by full name."""
    return {
        name: layer
        for name, layer in model.network.named_modules()
        if isinstance(layer, nn.Linear) and any(p.requires_grad for p in layer.parameters(recurse=False))
    }
