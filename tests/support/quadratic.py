"""A quadratic that stands in for an adapted model: every slope, gradient and optimum is known.

:class:`Quadratic` has what trainers use of ``headwater.adapters.model.AdaptedModel``. The loss of an
example whose only token is ``i`` is ``½ Σ h·(w − tᵢ)²``, in float64 over float32 parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.tasks.batches import Batch, Example

PAIR = StateSpec.of(
    [
        TensorSpec("layer.0.lora_A.weight", (4, 6), "lora_a"),
        TensorSpec("layer.0.lora_B.weight", (5, 4), "lora_b", pair="layer.0.lora_A.weight"),
        TensorSpec("layer.1.lora_A.weight", (4, 6), "lora_a"),
        TensorSpec("layer.1.lora_B.weight", (5, 4), "lora_b", pair="layer.1.lora_A.weight"),
        TensorSpec("head.bias", (3,), "head"),
    ]
)
"""An adapter of two layers and a head: 91 values."""


def flat(size: int) -> StateSpec:
    """One vector of ``size`` values."""
    return StateSpec((TensorSpec("vector", (size,), "vector"),))


def examples(count: int) -> list[Example]:
    """Examples 0 … count − 1: of the targets t₀, t₁, …"""
    return [Example(np.array([i], np.int32), np.array([0], np.int64)) for i in range(count)]


def batches_seen(model: Quadratic) -> list[list[int]]:
    """From now on, the examples of every batch whose loss is computed, which no gradient may follow."""
    seen: list[list[int]] = []
    forward = model.forward

    def watched(batch: Batch) -> Output:
        assert torch.is_inference_mode_enabled()
        seen.append(batch.tokens.reshape(-1).tolist())
        return forward(batch)

    model.forward = watched
    return seen


@dataclass(frozen=True)
class Output:
    """As AdaptedModel's, without logits: ``losses`` float64 [b], ``counts`` int64 [b]."""

    losses: Tensor
    counts: Tensor

    @property
    def loss(self) -> Tensor:
        return self.losses.sum() / self.counts.sum().clamp(min=1)


class Quadratic:
    """½ Σ h·(w − tᵢ)², the mean over a batch's examples.

    Args:
        spec: of w.
        targets: float [examples, numel], t; one row for all examples is enough.
        curvature: float [numel], h; 1 if absent.
    """

    base = SimpleNamespace(device=torch.device("cpu"))

    def __init__(
        self, spec: StateSpec, targets: Sequence[Sequence[float]] | Tensor, curvature: Tensor | None = None
    ) -> None:
        self.spec = spec
        self.targets = torch.as_tensor(targets, dtype=torch.float64)
        self.curvature = torch.ones(spec.numel).double() if curvature is None else curvature.double()
        self._parameters = [(t, torch.nn.Parameter(torch.zeros(t.shape))) for t in spec]

    @staticmethod
    def random(
        spec: StateSpec, *, seed: int = 0, examples: int = 1, condition: float | None = None
    ) -> Quadratic:
        """Targets of N(0, 1); curvatures 1, or log-uniform between 1 and ``condition``."""
        rng = np.random.default_rng(seed)
        targets = torch.from_numpy(rng.standard_normal((examples, spec.numel)))
        spread = np.exp(rng.uniform(0, np.log(condition), spec.numel)) if condition else np.ones(spec.numel)
        return Quadratic(spec, targets, torch.from_numpy(spread))

    def initial_state(self) -> AdapterState:
        return AdapterState.zeros(self.spec)

    def load(self, state: AdapterState) -> None:
        state.require_spec(self.spec, "state to load into the model")
        self.write(state.vector())

    def read(self) -> AdapterState:
        return AdapterState(self.spec, {t.name: p.detach().clone() for t, p in self._parameters})

    def write(self, vector: Tensor) -> None:
        start = 0
        with torch.no_grad():
            for spec, parameter in self._parameters:
                parameter.copy_(vector[start : start + spec.numel].view(spec.shape))
                start += spec.numel

    def parameters(self) -> list[tuple[TensorSpec, torch.nn.Parameter]]:
        return list(self._parameters)

    @contextlib.contextmanager
    def training(self, *, checkpointing: bool = False) -> Iterator[None]:
        yield

    def forward(self, batch: Batch) -> Output:
        away = self._flat() - self._targets(batch)
        return Output((0.5 * self.curvature * away**2).sum(1), torch.ones(len(batch), dtype=torch.int64))

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        output = self.forward(batch)
        return output.losses, output.counts

    @contextlib.contextmanager
    def caching_prefix(self, tensors: tuple[str, ...] | None = None, budget_bytes: int = 0) -> Iterator[None]:
        yield

    def slope(self, batch: Batch, direction: Tensor) -> tuple[float, float]:
        with torch.inference_mode():
            slope = self.gradient(batch) @ direction.double()
            return float(self.forward(batch).loss), float(slope)

    def gradient(self, batch: Batch) -> Tensor:
        """∇ of the batch's loss at the present values: float64 [numel]."""
        with torch.no_grad():
            return (self.curvature * (self._flat() - self._targets(batch))).mean(0)

    def loss_of(self, state: AdapterState) -> float:
        """The mean loss of all examples at ``state``."""
        away = state.vector().double() - self.targets
        return float((0.5 * self.curvature * away**2).sum(1).mean())

    def _flat(self) -> Tensor:
        return torch.cat([p.reshape(-1) for _, p in self._parameters]).double()

    def _targets(self, batch: Batch) -> Tensor:
        return self.targets[batch.tokens[:, 0] % len(self.targets)]
