"""SharedPrefix: leaves a model's frozen prefix out of all passes over a batch but the first.

What a prefix is and how it is kept: :mod:`headwater.adapters.prefix_cache`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from headwater.adapters.network import Network
from headwater.adapters.prefix_cache import FrozenPrefix, PrefixCache, all_above
from headwater.adapters.trained_tensors import TrainedTensors


class SharedPrefix:
    """The frozen prefix of one model.

    Args:
        network: the model.
        trained: what is trained in it.
        layered: whether the adapter lies in layers; another changes what reaches the first one, or every one.
        device: where the model computes.
    """

    def __init__(
        self, network: Network, trained: TrainedTensors, *, layered: bool, device: torch.device
    ) -> None:
        self._network, self._trained, self._layered, self._device = network, trained, layered, device
        self._current: FrozenPrefix | None = None
        self._kept: dict[str, tuple[int, PrefixCache]] = {}  # by purpose: number of the layer above, and what
        self._above: dict[tuple[str, frozenset[str]], bool] = {}

    @property
    def kept_bytes(self) -> int:
        """What is kept at the moment, for all purposes together."""
        return sum(kept.used_bytes for _, kept in self._kept.values())

    def inherit(self, earlier: SharedPrefix) -> None:
        """Use what ``earlier`` kept, where its first trained layer is this one's, too.

        Args:
            earlier: of another adapter on the same base; it must no longer be used.
        """
        if self._layered and earlier._layered:
            self._kept = earlier._kept

    def exists(self, tensors: Collection[str] | None) -> bool:
        """Whether there are layers below all of ``tensors`` (all if None)."""
        return self._below(tensors) is not None

    @contextlib.contextmanager
    def caching(self, tensors: Collection[str] | None, budget_bytes: int, *, purpose: str) -> Iterator[None]:
        """Inside, the prefix is computed once for each batch: see ``AdaptedModel.caching_prefix``."""
        self._current = self._below(tensors)
        if self._current is not None and budget_bytes:
            self._current = self._current.keeping(self._cache(self._current, budget_bytes, purpose))
        try:
            yield
        finally:
            self._current = None

    def prepare(self, tokens: Tensor, mask: Tensor) -> None:
        """Compute now what :meth:`skipped` needs of this batch, if anything."""
        if self._current is not None:
            self._hidden(self._current, tokens, mask)

    def skipped(self, tokens: Tensor, mask: Tensor) -> contextlib.AbstractContextManager[None]:
        """Inside, a pass over this batch begins above the prefix; outside :meth:`caching` it does not."""
        if self._current is None:
            return contextlib.nullcontext()
        return self._current.skipped(self._hidden(self._current, tokens, mask))

    def _cache(self, prefix: FrozenPrefix, budget_bytes: int, purpose: str) -> PrefixCache:
        first, kept = self._kept.get(purpose, (prefix.first, None))
        if kept is None or first != prefix.first or kept.budget_bytes != budget_bytes:
            kept = PrefixCache(budget_bytes)
        lowest = self._below(None)
        if lowest is not None and lowest.first == prefix.first:
            self._kept[purpose] = prefix.first, kept
        else:  # a tensor below may move between two tasks
            kept = PrefixCache(budget_bytes)
        kept.begin()
        return kept

    def _below(self, tensors: Collection[str] | None) -> FrozenPrefix | None:
        if not self._layered:
            return None
        names = {id(parameter): name for name, parameter in self._network.named_parameters()}
        trained = [names[id(p)] for s, p in self._trained.pairs if tensors is None or s.name in tensors]
        return FrozenPrefix.below(self._network, trained, self._all_above)

    def _all_above(self, stack: str, names: frozenset[str]) -> bool:
        if (stack, names) not in self._above:
            token = torch.zeros(1, 1, dtype=torch.int64, device=self._device)
            self._above[stack, names] = all_above(
                self._network, stack, names, lambda: self._network(token, torch.ones_like(token))
            )
        return self._above[stack, names]

    def _hidden(self, prefix: FrozenPrefix, tokens: Tensor, mask: Tensor) -> Tensor:
        def run(tokens: Tensor, mask: Tensor) -> object:
            return self._network(tokens.to(self._device), mask.to(self._device))

        return prefix.hidden(tokens, mask, run)
