"""What each client of a stack trains, where plans name tensors or ranks: :class:`StackedPart`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.merging.coverage import covered
from headwater.protocol.messages import ClientPlan
from headwater.state import AdapterState, StateSpec


def covers_something(spec: StateSpec, plan: ClientPlan) -> bool:
    """Whether a plan names tensors of ``spec``, and values to train."""
    if not set(plan.tensors or ()) <= spec.by_name.keys():
        return False
    mask = covered(spec, plan.tensors, plan.rank)
    return mask is None or bool(mask.any())


def only_covered(state: AdapterState, plan: ClientPlan) -> AdapterState:
    """``state`` with zeros where the plan trains nothing."""
    mask = covered(state.spec, plan.tensors, plan.rank)
    return (
        state if mask is None else AdapterState.from_vector(state.spec, state.vector().masked_fill_(~mask, 0))
    )


@dataclass(frozen=True)
class StackedPart:
    """Make it with :meth:`of`.

    Args:
        trained: names of the tensors that some client trains, in the order of the spec.
        outside: bool [clients, *shape] of the tensors that not all train whole: where a client does not.
        start: the values of those tensors, [clients, *shape].
    """

    trained: tuple[str, ...]
    outside: Mapping[str, Tensor]
    start: Mapping[str, Tensor]

    @staticmethod
    def of(spec: StateSpec, plans: Sequence[ClientPlan], values: Mapping[str, Tensor]) -> StackedPart:
        """What the plans of a stack's clients cover, of ``values`` [clients, *shape] to start from."""
        masks = [covered(spec, plan.tensors, plan.rank) for plan in plans]
        if all(mask is None for mask in masks):
            return StackedPart(tuple(s.name for s in spec), {}, {})
        whole = torch.ones(spec.numel, dtype=torch.bool)
        rows = torch.stack([whole if mask is None else mask for mask in masks])
        parts = zip(spec, torch.split(rows, [s.numel for s in spec], dim=1), strict=True)
        own = {s.name: part.view(-1, *s.shape) for s, part in parts}
        outside = {n: (~mask).to(values[n].device) for n, mask in own.items() if not bool(mask.all())}
        trained = tuple(n for n, mask in own.items() if bool(mask.any()))
        return StackedPart(trained, outside, {n: values[n].clone() for n in outside})

    def mask(self, gradients: Mapping[str, Tensor]) -> None:
        """No gradient [first clients, *shape] outside, in place."""
        for name, gradient in gradients.items():
            if name in self.outside:
                gradient.masked_fill_(self.outside[name][: len(gradient)], 0.0)

    def put_back(self, values: Mapping[str, Tensor]) -> None:
        """Values outside as they were: weight decay moves them without a gradient."""
        for name, outside in self.outside.items():
            values[name].copy_(torch.where(outside, self.start[name], values[name]))
