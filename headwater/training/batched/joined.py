"""One batch of several clients' batches: :func:`joined`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.tasks.batches import IGNORED, Batch


@dataclass(frozen=True, slots=True)
class JoinedBatch:
    """Equally many rows of each client, one client's after the other's.

    Args:
        batch: the rows [K·b, t].
        own: bool [K, b], which of them are a client's; the others repeat one and have no part in its loss.
    """

    batch: Batch
    own: Tensor

    def losses(self, losses: Tensor, counts: Tensor) -> Tensor:
        """Each client's mean loss over its targets [K], as it has it alone.

        Args:
            losses: [K·b], of each row.
            counts: [K·b], its targets.
        """
        shape = self.own.shape
        own = self.own.to(losses.device)
        sums = torch.where(own, losses.view(shape), 0.0).sum(1)
        targets = torch.where(own, counts.view(shape), 0).sum(1)
        return sums / targets.clamp(min=1)


def joined(batches: Sequence[Batch], pad: int, *, by_token: bool) -> JoinedBatch:
    """Join one batch of each client; shorter rows are padded, and missing ones repeat the client's first.

    Args:
        batches: one for each client, of one task.
        pad: token id that fills a row.
        by_token: whether targets are those of tokens.
    """
    most = max(map(len, batches))
    width = max(batch.tokens.shape[1] for batch in batches)
    longest = max(batch.targets.shape[-1] for batch in batches)
    tokens, masks, targets, own = [], [], [], []
    for batch in batches:
        rows = torch.arange(most).where(torch.arange(most) < len(batch), 0)
        tokens.append(_wider(batch.tokens[rows], width, pad))
        masks.append(_wider(batch.mask[rows], width, 0))
        found = batch.targets[rows]
        targets.append(_wider(found, longest, IGNORED) if by_token else found)
        own.append(torch.arange(most) < len(batch))
    return JoinedBatch(Batch(torch.cat(tokens), torch.cat(masks), torch.cat(targets)), torch.stack(own))


def _wider(values: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill)
