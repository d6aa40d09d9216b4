"""compare(): how several adapters lie to each other, before they are merged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.errors import ConfigError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.low_rank import Basis, inner_products
from headwater.merging.offline.rule import Floats

MOST = 64
"""Adapters that are compared pair by pair."""


@dataclass(frozen=True)
class Comparison:
    """Pairs of adapters, in the order in which they were named.

    Args:
        names: the folders.
        ranks: the largest LoRA rank of each; 0 without.
        norms: ‖τ_i‖ [T], Frobenius, over all that has a place where nothing is changed.
        cosines: of τ_i and τ_j [T, T]; NaN beside an adapter that changes nothing.
        conflicts: the fraction of the values that both change in which the two differ in sign [T, T]; of LoRA
            weights in the coordinates of ``--space core``.
    """

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    norms: Floats
    cosines: Floats
    conflicts: Floats


def compare(adapters: Adapters) -> Comparison:
    """Compare each pair.

    Raises:
        ConfigError: more than :data:`MOST` adapters.
    """
    count = len(adapters)
    if count > MOST:
        raise ConfigError(
            "--dry-run",
            expected=f"at most {MOST} adapters, whose pairs can be read",
            got=f"{count}",
            hint="Compare some of them.",
        )
    products = inner_products(adapters)
    norms = np.sqrt(np.maximum(np.diag(products), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products / np.outer(norms, norms)
    conflicts = _conflicts(adapters)
    order = [adapters.folders.index(folder) for folder in adapters.named]
    pick = np.ix_(order, order)
    return Comparison(
        tuple(str(folder.path) for folder in adapters.named),
        tuple(max((p.rank for p in f.modules.values()), default=0) for f in adapters.named),
        norms[order],
        np.clip(cosines[pick], -1, 1),
        conflicts[pick],
    )


def _conflicts(adapters: Adapters) -> Floats:
    count = len(adapters)
    both, differ = np.zeros((count, count)), np.zeros((count, count))

    def add(changes: list[Floats]) -> None:
        signs = np.sign(np.stack([change.reshape(-1) for change in changes])).astype(np.float32)
        agree, used = signs @ signs.T, np.abs(signs) @ np.abs(signs).T
        both[:] += used
        differ[:] += (used - agree) / 2

    for module in adapters.modules:
        basis = Basis.of_changes(adapters, module)
        add([basis.core(*folder.factors(module)) for folder in adapters.folders])
    for name in adapters.plain:
        if (origin := adapters.origin(name)) is not None:
            add([adapters.value(i, name) - origin for i in range(count)])
    return np.divide(differ, both, out=np.zeros_like(both), where=both > 0)
