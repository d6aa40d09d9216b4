"""A client's own train and validation rows: :func:`split`, and its cap on examples: :func:`sample`.

:func:`sample_examples` is that of a test file. They look at nothing but the client's own rows, in their
order, and its name (in the key): a device that holds one file makes the same choice as the box that simulates
the whole federation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwater.seeds.keys import Key
from headwater.tasks.batches import Example


def split(
    indices: Sequence[int], fraction: float, key: Key, labels: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Split into (train, validation), each in the order of ``indices``.

    Validation gets ``fraction`` of the rows, rounded half up, but never all of them. With labels it is
    stratified: each label's share is off by less than one row, and within that a label's last row stays in
    train while another label's can go.

    Args:
        indices: the client's rows.
        fraction: in [0, 1).
        key: ``root.child("split", client)``.
        labels: the rows' labels, aligned with ``indices``.
    """
    count = len(indices)
    wanted = min(count - 1, int(fraction * count + 0.5)) if count else 0
    if wanted <= 0:
        return list(indices), []
    order = key.numpy().permutation(count).tolist()
    groups: dict[str, list[int]] = {}
    for position in order:
        groups.setdefault(labels[position] if labels is not None else "", []).append(position)
    quota = {label: len(group) * wanted // count for label, group in groups.items()}

    def claim(label: str) -> tuple[bool, bool, int]:
        size = len(groups[label])
        remainder = size * wanted % count
        return remainder == 0, size - quota[label] <= 1, -remainder

    # who has a remainder, the largest first; `groups` is in random order, so ties favour no label
    for label in sorted(groups, key=claim)[: wanted - sum(quota.values())]:
        quota[label] += 1
    chosen = {position for label, group in groups.items() for position in group[: quota[label]]}
    train = [index for position, index in enumerate(indices) if position not in chosen]
    return train, [indices[position] for position in sorted(chosen)]


def sample(indices: Sequence[int], limit: int | None, key: Key) -> list[int]:
    """At most ``limit`` rows, drawn without replacement, in the order of ``indices``."""
    if limit is None or len(indices) <= limit:
        return list(indices)
    chosen = np.sort(key.numpy().permutation(len(indices))[:limit])
    return [indices[position] for position in chosen]


def sample_examples(examples: Sequence[Example], limit: int | None, key: Key) -> list[int]:
    """Places of at most ``limit`` examples, as :func:`sample` draws them; parts of one come together."""
    first: dict[int, int] = {}
    whole = [i if e.whole is None else first.setdefault(id(e.whole), i) for i, e in enumerate(examples)]
    chosen = set(sample(sorted(set(whole)), limit, key))
    return [i for i, begin in enumerate(whole) if begin in chosen]
