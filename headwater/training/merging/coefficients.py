"""Sums Σ c_i·τ_i in the network, with c as numbers or as a tensor with gradients: :class:`Sums`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from headwater.merging.offline.rule import Floats
from headwater.tasks.batches import Batch, Example, collate
from headwater.training.merging.network import RowsNetwork, Values
from headwater.training.score import reading_of


class Sums:
    """The adapters' changes side by side, so that a merge is one product.

    What has no place where nothing is changed, as a fresh head, is the mean by weight whatever c is.

    Args:
        network: of the base.
    """

    def __init__(self, network: RowsNetwork) -> None:
        self.network = network
        movable = set(network.movable)
        self.keys = [*network.adapters.modules, *sorted(movable)]
        """What has coefficients: LoRA modules, and tensors that are merged by what changed in them."""
        self._rest = network.averaged([n for n in network.adapters.plain if n not in movable])

    @cached_property
    def _stacks(self) -> Mapping[str, tuple[Tensor, Tensor, Tensor]]:
        """Of each module [B_1 … B_T], [A_1; …; A_T], and which adapter each of their directions is of."""
        found = {}
        for module in self.network.adapters.modules:
            pairs = [folder.factors(module) for folder in self.network.adapters.folders]
            owner = np.repeat(np.arange(len(pairs)), [len(a) for _, a in pairs])
            found[module] = (
                self.network.tensor(np.concatenate([b for b, _ in pairs], axis=1)),
                self.network.tensor(np.concatenate([a for _, a in pairs])),
                torch.from_numpy(owner),
            )
        return found

    @cached_property
    def _distances(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Of each tensor that is merged by distances its origin, and the distances [T, …]."""
        adapters, found = self.network.adapters, {}
        for name in self.network.movable:
            origin = adapters.origin(name)
            assert origin is not None
            start: Floats = np.broadcast_to(origin, adapters.shape(name)).astype(np.float64)
            far = np.stack([adapters.value(i, name) - start for i in range(len(adapters))])
            found[name] = (self.network.tensor(start), self.network.tensor(far))
        return found

    def values(self, coefficients: Tensor) -> Values:
        """What the network computes with.

        Args:
            coefficients: c [T] for all, or [keys, T], a row for each of :attr:`keys`.
        """
        rows = coefficients.expand(len(self.keys), -1)
        found = dict(self._rest)
        for key, c in zip(self.keys, rows, strict=True):
            if key in self._stacks:
                b, a, owner = self._stacks[key]
                found |= self.network.lora(key, b * c[owner.to(c.device)], a)
            else:
                start, far = self._distances[key]
                found |= self.network.plain(key, start + torch.tensordot(c, far, 1))
        return found

    def loss(self, coefficients: Floats, examples: Sequence[Example]) -> float:
        """The mean loss on ``examples``."""
        return self.network.loss(self.values(self.network.tensor(coefficients)), examples)

    def by_key(self, coefficients: Floats) -> dict[str, Floats]:
        """As :class:`~headwater.merging.offline.measured.Measured` has them."""
        rows = np.broadcast_to(coefficients, (len(self.keys), coefficients.shape[-1]))
        return {key: np.array(row, np.float64) for key, row in zip(self.keys, rows, strict=True)}

    def batches(self, examples: Sequence[Example]) -> Iterator[Batch]:
        """All examples, the short ones first."""
        size = reading_of(self.network.predictor).batch_size
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
        for start in range(0, len(order), size):
            yield collate([examples[i] for i in order[start : start + size]], self.network.pad)
