"""AdamW over stacks of several clients' tensors: :class:`StackedAdamW`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, slots=True)
class _Moments:
    first: Tensor
    second: Tensor


class StackedAdamW:
    """AdamW (arXiv 1711.05101, algorithm 2), with β = 0.9, 0.999 and ε = 1e-8, of many clients at once.

    A step may be that of the first clients alone: the others keep values and moments.

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
        self._steps = 0

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One step of those clients that the gradients [first clients, *shape] are of.

        A client that has left stays out: all that are in have made the same number of steps.
        """
        self._steps += 1
        first_share, second_share = 1 - _BETAS[0] ** self._steps, 1 - _BETAS[1] ** self._steps
        for name, gradient in gradients.items():
            active = slice(len(gradient))
            value, rate = self._values[name][active], self._rates[name]
            first, second = self._moments[name].first[active], self._moments[name].second[active]
            value.mul_(1 - rate * self._decay)
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            size = second.sqrt().div_(second_share**0.5).add_(_EPSILON)
            value.addcdiv_(first, size, value=-rate / first_share)
