"""1bit-Merging: adapters as signs, with one magnitude for many, added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from headwater.merging.offline.low_rank import EXACT
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.sums import WeightedSum


class OneBit(WeightedSum):
    """Σ p_i·τ̂_i with τ̂ = mean|τ|·sgn(τ), BitDelta's form (arXiv 2402.10193).

    Of the updates of a round, and of weights trained as a whole, the mean is over one tensor. Of a LoRA
    adapter each singular vector, u·√s and v·√s, is signs with a magnitude of its own: one for all would make
    all directions equally strong. The paper routes each input to one task's τ̂ and merges the others into the
    base; here all are merged. It leaves the attention of chat models and the MLP of others as they are, which
    no rule here can tell.
    """

    name: ClassVar[str] = "one_bit"
    line: ClassVar[str] = "weighted mean of adapters of which signs and a mean magnitude are left"
    source: ClassVar[str] = (
        "Liu et al. 2025, arXiv 2502.10743, without its router; Liu et al. 2024, 2402.10193"
    )
    alone: ClassVar[bool] = True
    blockwise: ClassVar[bool] = True

    def prune(self, values: Floats, draw: Callable[[], np.random.Generator]) -> Floats:  # noqa: D102 - inherited
        return _signs(values.reshape(1, -1)).reshape(values.shape)

    def compressed(self, b: Floats, a: Floats) -> tuple[Floats, Floats]:  # noqa: D102 - inherited
        return _signs(_sure(b.T)).T, _signs(_sure(a))


def _sure(vectors: Floats) -> Floats:
    """Rows without values that are rounding, whose signs mean nothing."""
    magnitudes = np.abs(vectors)
    return np.where(magnitudes > EXACT * magnitudes.max(axis=1, keepdims=True), vectors, 0.0)


def _signs(vectors: Floats) -> Floats:
    """mean|x|·sgn(x) of each row x; 0 where x is."""
    found: Floats = np.abs(vectors).mean(axis=1, keepdims=True) * np.sign(vectors)
    return found
