"""EachToken: tasks whose targets stand where the model's outputs for them are."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from headwater.config.data import BaseData
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.classification import invert
from headwater.tasks.task import Task

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

S = TypeVar("S", bound=BaseData)


class EachToken(Task[S]):
    """Cross entropy at every token with a target. Logits are [b, t, outputs], targets int64 [b, t]."""

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [b] summed over each row's targets, and how many these are."""
        import torch.nn.functional as F

        kept = targets != IGNORED
        each = F.cross_entropy(logits[kept], targets[kept], self.weights(logits), reduction="none")
        return logits.new_zeros(len(logits)).index_add(0, kept.nonzero()[:, 0], each), kept.sum(1)

    def target_count(self, example: Example) -> int:
        """Its tokens with a target."""
        return int((example.targets != IGNORED).sum())

    def weights(self, like: Tensor) -> Tensor | None:
        """Each output's weight [outputs], beside logits ``like``; None if all count alike."""
        return None

    def draw(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Each target by itself."""
        drawn, kept = targets.clone(), targets != IGNORED
        drawn[kept] = invert(logits[kept], uniforms.to(logits.device)[kept])
        return drawn
