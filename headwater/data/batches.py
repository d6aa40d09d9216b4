"""Examples as token ids, and batches of them: :func:`batches`, :func:`collate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORED = -100
"""Target of a token that has no loss."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised example.

    Args:
        tokens: int32 [length], length ≥ 1.
        targets: int64 [1], the label's index, for classification; int64 [length] for language
            modelling, aligned with ``tokens`` (the model shifts), ``IGNORED`` where there is no loss.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded examples: int64 ``tokens`` and ``mask`` [b, t]; ``targets`` int64 [b] or [b, t]."""

    tokens: Tensor
    mask: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


def collate(examples: Sequence[Example], pad: int, *, language_model: bool) -> Batch:
    """Right-pad ``examples`` to their longest."""
    width = max(len(e.tokens) for e in examples)
    tokens = np.full((len(examples), width), pad, dtype=np.int64)
    mask = np.zeros((len(examples), width), dtype=np.int64)
    shape = (len(examples), width) if language_model else (len(examples),)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    for i, e in enumerate(examples):
        tokens[i, : len(e.tokens)] = e.tokens
        mask[i, : len(e.tokens)] = 1
        if language_model:
            targets[i, : len(e.tokens)] = e.targets
        else:
            targets[i] = e.targets[0]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(targets))


def batches(
    examples: Sequence[Example],
    batch_size: int,
    pad: int,
    *,
    language_model: bool,
    generator: np.random.Generator | None,
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
        yield collate([examples[i] for i in group], pad, language_model=language_model)
