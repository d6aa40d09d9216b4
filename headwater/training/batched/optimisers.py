"""Optimisers over stacks of several clients' tensors: :func:`stacked_optimiser`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwater.config.training import BackpropTraining
from headwater.state import TensorSpec
from headwater.training.backprop import optimiser_of

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class StackedOptimiser(ABC):
    """Steps of many clients at once.

    A step may be that of the first clients alone: the others keep values and moments, and stay out.
    """

    @abstractmethod
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One step of those clients, and of those tensors, that the gradients [first clients, *shape] are of.

        All clients that are in have made the same number of steps.
        """


def stacked_optimiser(
    values: Mapping[str, Tensor], specs: Sequence[TensorSpec], training: BackpropTraining, factor: float
) -> StackedOptimiser:
    """The optimiser of a training.

    Args:
        values: by name, [clients, *shape]; changed in place.
        specs: of the tensors.
        training: names it, with its rates and weight decay.
        factor: of the rates.

    Raises:
        MissingDependency: 8-bit moments without what they need.
    """
    rates = {s.name: training.rate_of(s.role) * factor for s in specs}
    if training.optimizer == "adamw":
        return StackedAdamW(values, rates, weight_decay=training.weight_decay)
    if training.optimizer == "sgd":
        return StackedSgd(values, rates, weight_decay=training.weight_decay)
    return _OneByOne(values, specs, training, factor)


@dataclass(slots=True)
class _Moments:
    first: Tensor
    second: Tensor
    steps: int = 0


class StackedAdamW(StackedOptimiser):
    """AdamW (arXiv 1711.05101, algorithm 2), with β = 0.9, 0.999 and ε = 1e-8.

    Args:
        values: by name, [clients, *shape]; changed in place.
        rates: of learning, by name.
        weight_decay: λ.
    """

    def __init__(
        self, values: Mapping[str, Tensor], rates: Mapping[str, float], *, weight_decay: float
    ) -> None:
        self._values, self._rates, self._decay = values, rates, weight_decay
        self._moments = {n: _Moments(torch.zeros_like(v), torch.zeros_like(v)) for n, v in values.items()}

    def step(self, gradients: Mapping[str, Tensor]) -> None:  # noqa: D102 - inherited
        for name, gradient in gradients.items():
            active, moments = slice(len(gradient)), self._moments[name]
            moments.steps += 1
            first_share, second_share = 1 - _BETAS[0] ** moments.steps, 1 - _BETAS[1] ** moments.steps
            value, rate = self._values[name][active], self._rates[name]
            first, second = moments.first[active], moments.second[active]
            value.mul_(1 - rate * self._decay)
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            size = second.sqrt().div_(second_share**0.5).add_(_EPSILON)
            value.addcdiv_(first, size, value=-rate / first_share)


@dataclass(slots=True)
class StackedSgd(StackedOptimiser):
    """w ← w − η·(g + λ·w), without momentum.

    Args:
        values: by name, [clients, *shape]; changed in place.
        rates: η, by name.
        weight_decay: λ.
    """

    values: Mapping[str, Tensor]
    rates: Mapping[str, float]
    weight_decay: float = field(kw_only=True)

    def step(self, gradients: Mapping[str, Tensor]) -> None:  # noqa: D102 - inherited
        for name, gradient in gradients.items():
            value = self.values[name][: len(gradient)]
            if self.weight_decay:
                gradient = torch.add(gradient, value, alpha=self.weight_decay)
            value.sub_(gradient, alpha=self.rates[name])


class _OneByOne(StackedOptimiser):
    """Any other: each client's own, over its part of the stacks; its blocks are never two clients'."""

    def __init__(
        self,
        values: Mapping[str, Tensor],
        specs: Sequence[TensorSpec],
        training: BackpropTraining,
        factor: float,
    ) -> None:
        clients = len(values[specs[0].name])
        self._parameters = [
            {s.name: torch.nn.Parameter(values[s.name][at]) for s in specs} for at in range(clients)
        ]
        self._optimisers = [
            optimiser_of([(s, own[s.name]) for s in specs], training, factor) for own in self._parameters
        ]

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        clients = len(next(iter(gradients.values())))
        steps = zip(range(clients), self._parameters, self._optimisers, strict=False)
        for at, parameters, optimiser in steps:
            for name, parameter in parameters.items():
                parameter.grad = gradients[name][at].contiguous() if name in gradients else None
            optimiser.step()
