"""TrainedTensors: the parameters of a model that are trained and travel, as states and as vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from headwater.state import AdapterState, StateSpec, TensorSpec


def unit_of(spec: TensorSpec) -> float:
    """What a state's value of 1 is in the model: 2^head_bits in a head, so that it is exact; else 1."""
    return spec.scaling if spec.role == "head" else 1.0


class TrainedTensors:
    """Parameters under the names of a spec; every value is in the unit that :func:`unit_of` gives.

    Args:
        pairs: each tensor's spec and its parameter, in the order of the spec.

    Attributes:
        pairs: as given.
        spec: the spec of all.
    """

    def __init__(self, pairs: Sequence[tuple[TensorSpec, Parameter]]) -> None:
        self.pairs = tuple(pairs)
        self.spec = StateSpec(tuple(spec for spec, _ in pairs))

    def load(self, state: AdapterState) -> None:
        """Set them to ``state``.

        Raises:
            SpecMismatch: another spec.
        """
        state.require_spec(self.spec, "state to load into the model")
        with torch.no_grad():
            for spec, parameter in self.pairs:
                parameter.copy_(state[spec.name] * unit_of(spec))

    def read(self) -> AdapterState:
        """A copy of them, on the CPU."""
        return AdapterState(
            self.spec,
            {s.name: p.detach().to("cpu", torch.float32, copy=True) / unit_of(s) for s, p in self.pairs},
        )

    def write(self, vector: Tensor) -> None:
        """Set them, in the order of :attr:`spec`, to ``vector``: float32 [spec.numel]."""
        start = 0
        with torch.no_grad():
            for spec, parameter in self.pairs:
                parameter.copy_(vector[start : start + spec.numel].view(spec.shape) * unit_of(spec))
                start += spec.numel

    def tangents(self, direction: Tensor) -> list[tuple[Parameter, Tensor]]:
        """Each parameter with its part of ``direction``, float32 [spec.numel], in the model's units."""
        parts = torch.split(direction, [spec.numel for spec, _ in self.pairs])
        return [(p, t.view(s.shape) * unit_of(s)) for (s, p), t in zip(self.pairs, parts, strict=True)]
