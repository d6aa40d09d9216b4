"""Examples as token ids, and batches of them: :func:`batches`, :func:`collate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

IGNORED = -100
"""Target of a token that has no loss."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised example.

    Args:
        tokens: int32 [length], length ≥ 1.
        targets: [k], the row's target as its task encodes it (a label's index: int64 [1]). With
            ``by_token`` int64 [length], aligned with ``tokens`` (the model shifts), ``IGNORED`` where there
            is no loss; or of any length, where the answer is another sequence.
        by_token: whether each token has a target of its own.
        note: what its task needs to judge an answer; no model sees it.
        group: whose metrics are told apart: of a test row its value in ``evaluation.by``; empty without.
        whole: of what it is a part, where an answer needs all parts: those are drawn together. One object
            for all parts; None for what is whole.
        row: of what it is one of several, such as the windows of a text. One object for all of a row, which
            are one owner's secret together; None for the only one.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[Any]
    by_token: bool = False
    note: Any = None
    group: str = ""
    whole: object = None
    row: object = None


def by_row(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples, with all that come of one row together, in the order of their first ones."""
    found: dict[int, list[Example]] = {}
    for example in examples:
        origin = example if example.row is None else example.row
        found.setdefault(id(origin), []).append(example)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded examples: int64 ``tokens`` and ``mask`` [b, t]; ``targets`` [b], [b, k], or by token [b, t]."""

    tokens: Tensor
    mask: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def parts(self, rows: int) -> Iterator[Batch]:
        """Its rows, so many at a time, in order; each part as wide as its longest row."""
        for start in range(0, len(self), rows):
            own = slice(start, start + rows)
            mask, targets = self.mask[own], self.targets[own]
            width = int(mask.sum(1).max())
            aligned = targets.dim() > 1 and targets.shape[1] == mask.shape[1]
            if aligned and bool((targets[:, width:] == IGNORED).all()):
                targets = targets[:, :width]
            yield Batch(self.tokens[own, :width], mask[:, :width], targets)


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Right-pad ``examples``, all of one task, to their longest."""
    import torch

    width = max(len(e.tokens) for e in examples)
    tokens = np.full((len(examples), width), pad, dtype=np.int64)
    mask = np.zeros((len(examples), width), dtype=np.int64)
    for i, e in enumerate(examples):
        tokens[i, : len(e.tokens)] = e.tokens
        mask[i, : len(e.tokens)] = 1
    if examples[0].by_token:
        longest = max(len(e.targets) for e in examples)  # an answer may be longer than its row
        targets = np.full((len(examples), longest), IGNORED, dtype=np.int64)
        for i, e in enumerate(examples):
            targets[i, : len(e.targets)] = e.targets
    else:
        targets = np.stack([e.targets for e in examples])
        targets = targets[:, 0] if targets.shape[1] == 1 else targets
    return Batch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(targets))


def batches(
    examples: Sequence[Example], batch_size: int, pad: int, *, generator: np.random.Generator | None
) -> Iterator[Batch]:
    """One pass over ``examples``.

    With a generator: a random order, sorted by length within windows of 16 batches so that little
    is padded, the batches then shuffled. Without: sorted by length, for evaluation.
    """
    lengths = np.array([len(e.tokens) for e in examples])
    if generator is None:
        order = np.argsort(lengths, kind="stable")
    else:
        order = generator.permutation(len(examples))
        window = 16 * batch_size
        parts = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in parts])
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if generator is not None:
        groups = [groups[i] for i in generator.permutation(len(groups))]
    for group in groups:
        yield collate([examples[i] for i in group], pad)
