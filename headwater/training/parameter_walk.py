"""ParameterWalk: parameters that move along random directions and are always recomputed, never added back.

MeZO (arXiv 2305.17333, algorithm 1) probes with θ += εz, θ −= 2εz, θ += εz, which in floating point does
not return to θ. A :class:`ParameterWalk` keeps where it started and what it added up since; each probe writes
``start + offset + ε·z`` into the model anew. So what the model holds is a function of the steps alone:
a probe leaves no trace, and whoever knows the steps has the same bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.state import AdapterState, StateSpec

if TYPE_CHECKING:  # a walk on another kind of model needs no transformers
    from headwater.adapters.model import Batch

_BLOCK = 2**16
"""Values computed at a time, so that what is temporary in float64 stays small."""

Values = npt.NDArray[Any]


class ZerothOrderModel(Protocol):
    """What a walk needs of an adapted model."""

    spec: StateSpec

    def load(self, state: AdapterState) -> None:
        """Set the trained tensors."""

    def write(self, vector: Tensor) -> None:
        """Set them from float32 [spec.numel]."""

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The losses of a batch and their counts, both [b]."""

    def caching_prefix(
        self, tensors: tuple[str, ...] | None = None, budget_bytes: int = 0
    ) -> AbstractContextManager[None]:
        """Inside, what no trained tensor changes is computed once for each batch."""


class ParameterWalk:
    """One client's way through parameter space, without gradients.

    The weights are ``float32(start + offset)``, one rounding of a sum in float64, as
    :func:`headwater.seeds.seeded_state.shifted` gives them. Temporaries are of the adapter's size; the base
    model is never copied, and no forward pass leaves an autograd graph.

    Args:
        model: which is written to; the walk owns its values.
        start: where the walk begins.
        unit_bits: steps are integers times 2^-unit_bits, exact in any order; None: steps are float64.

    Attributes:
        offset: int64 [numel] in units of 2^-unit_bits, or float64 [numel]: the sum of all steps.

    Raises:
        SpecMismatch: a state of another spec than the model's.
    """

    def __init__(self, model: ZerothOrderModel, start: AdapterState, *, unit_bits: int | None = None) -> None:
        model.load(start)
        self._model, self._unit = model, 2.0 ** -(unit_bits or 0)
        self._start: npt.NDArray[np.float32] = start.vector().numpy()
        self._written = np.empty_like(self._start)
        self.offset: Values = np.zeros(len(self._start), np.float64 if unit_bits is None else np.int64)

    def step(self, direction: Values, coefficient: float) -> None:
        """Add coefficient·direction; both integers (z in its own units) if the walk's steps are."""
        for part in self._parts():
            self.offset[part] += direction[part].astype(self.offset.dtype) * coefficient

    def weights(self) -> Tensor:
        """Where the walk stands, float32 [numel]; also written into the model."""
        self._write(None, 0.0)
        return torch.from_numpy(self._written.copy())

    def loss(self, batch: Batch, direction: Values | None = None, epsilon: float = 0.0) -> float:
        """The batch's mean loss at the weights + reach·direction, which stay in the model.

        Args:
            batch: the examples.
            direction: z, [numel]; None for the weights themselves.
            epsilon: ±ε times the unit of ``direction``.
        """
        self._write(direction, epsilon)
        with torch.inference_mode():
            losses, counts = self._model.losses(batch)
            return float(losses.sum(dtype=torch.float64)) / max(1, int(counts.sum()))

    def central(self, batch: Batch, direction: Values, epsilon: float) -> tuple[float, float]:
        """(loss at + reach·z, loss at − reach·z), of the same batch."""
        return self.loss(batch, direction, epsilon), self.loss(batch, direction, -epsilon)

    def _write(self, direction: Values | None, epsilon: float) -> None:
        if direction is None and not self.offset.any():
            self._written[:] = self._start  # the sum would make +0.0 of -0.0
            self._model.write(torch.from_numpy(self._written))
            return
        with np.errstate(over="ignore"):  # an infinite weight gives a loss that is reported
            for part in self._parts():
                value = self.offset[part] * self._unit
                value += self._start[part]
                if direction is not None:
                    value += np.multiply(direction[part], epsilon, dtype=np.float64)
                self._written[part] = value
        self._model.write(torch.from_numpy(self._written))

    def _parts(self) -> list[slice]:
        return [slice(low, low + _BLOCK) for low in range(0, len(self._start), _BLOCK)]
