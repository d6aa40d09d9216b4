"""Part: the parameters that a plan lets a client train, for methods that ask autograd for gradients.

Tensors outside the plan need no gradient while they stand still: autograd then keeps no activations for
what lies below the first tensor that is trained, which is what ``last_layers`` saves. Of a tensor that is
trained in part (``rank``), gradients are masked and the other values put back after each step, whatever the
optimiser did to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from headwater.errors import TrainingError
from headwater.merging.coverage import covered
from headwater.protocol.messages import ClientPlan
from headwater.state import AdapterState, StateSpec, TensorSpec


class Parameterised(Protocol):
    """What is needed of :class:`headwater.adapters.model.AdaptedModel`."""

    @property
    def spec(self) -> StateSpec:
        """Of the trained tensors."""

    def parameters(self) -> list[tuple[TensorSpec, Parameter]]:
        """They, in the order of the spec."""


@dataclass(frozen=True)
class TrainablePart:
    """What is trained. Make it with :meth:`of` when the model holds the values to start from.

    Args:
        trained: parameters with a value to train, in the order of the spec.
        still: the others.
        masked: of the trained ones those with other values: where those are, and the values.
        mask: bool [numel], what is trained; None for everything.
    """

    trained: list[tuple[TensorSpec, Parameter]]
    still: list[Parameter]
    masked: list[tuple[Parameter, Tensor, Tensor]]
    mask: Tensor | None

    @staticmethod
    def of(model: Parameterised, plan: ClientPlan, *, who: str) -> TrainablePart:
        """What ``plan`` covers of ``model``.

        Raises:
            TrainingError: nothing.
        """
        pairs, mask = model.parameters(), covered(model.spec, plan.tensors, plan.rank)
        if mask is None:
            return TrainablePart(pairs, [], [], None)
        if not bool(mask.any()):
            raise TrainingError(who, expected="values to train", got="a plan that covers none")
        parts = torch.split(mask, [spec.numel for spec, _ in pairs])
        trained, still = list[tuple[TensorSpec, Parameter]](), list[Parameter]()
        masked = list[tuple[Parameter, Tensor, Tensor]]()
        for (spec, parameter), own in zip(pairs, parts, strict=True):
            if not bool(own.any()):
                still.append(parameter)
                continue
            trained.append((spec, parameter))
            if not bool(own.all()):
                outside = ~own.view(spec.shape).to(parameter.device)
                masked.append((parameter, outside, parameter.detach()[outside]))
        return TrainablePart(trained, still, masked, mask)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, nothing else needs a gradient."""
        before = [parameter.requires_grad for parameter in self.still]
        for parameter in self.still:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, needed in zip(self.still, before, strict=True):
                parameter.requires_grad_(needed)

    def mask_gradients(self) -> None:
        """No gradient for values outside."""
        for parameter, outside, _ in self.masked:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(outside, 0.0)

    def put_back(self) -> None:
        """Values outside as they were: weight decay moves them without a gradient."""
        with torch.no_grad():
            for parameter, outside, values in self.masked:
                parameter[outside] = values

    def only(self, state: AdapterState) -> AdapterState:
        """``state`` with zeros outside."""
        if self.mask is None:
            return state
        return AdapterState.from_vector(state.spec, state.vector().masked_fill_(~self.mask, 0.0))
