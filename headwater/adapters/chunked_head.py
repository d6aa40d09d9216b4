"""ChunkedHead: a language model's losses without ever holding the logits of all its positions.

Logits [b, t, vocabulary] and what cross entropy makes of them are several times the size of everything
else in a forward pass that keeps no activations: 200 MB a copy for 1,024 tokens of a vocabulary of
49,152. Here the model's output layer is made to compute one position, what it was given is kept, and
only the rows that have a target go through it, some at a time. The losses are the same numbers up to
the rounding of a matrix product of fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from headwater.adapters.network import Network, widened
from headwater.tasks.batches import IGNORED

TokenLosses = Callable[[Tensor, Tensor], Tensor]
"""Logits [n, vocabulary] and targets int64 [n] to losses [n]."""

_VALUES = 2**21
"""Logits held at a time: 8 MiB of float32 (and as much again for each of a few temporaries)."""
_LOUD = 1000.0


class ChunkedHead:
    """The output layer of a causal model, taken apart from the model. Make it with :meth:`of`.

    Args:
        network: a causal model with its adapter.
        head: its output layer.
        rows: positions that go through the output layer at a time.
        token_losses: the task's.
    """

    def __init__(self, network: Network, head: nn.Module, rows: int, token_losses: TokenLosses) -> None:
        self._network, self._head, self._rows, self._token_losses = network, head, rows, token_losses

    @staticmethod
    def of(network: Network, token_losses: TokenLosses) -> ChunkedHead | None:
        """None where the logits are something else than what one module gives.

        The model itself is asked: two tokens, and an output layer that is given large values instead of
        what it should have had. A cap or a scale on the logits (Gemma, Granite, Cohere) shows; values of
        the adapter that diverged do not.
        """
        head = network.peft.get_base_model().get_output_embeddings() if network.model.language_model else None
        if not isinstance(head, nn.Module):
            return None
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=next(network.parameters()).device)
        with torch.no_grad():
            with _given(head, lambda hidden: torch.full_like(hidden, _LOUD)) as seen:
                logits = network(tokens, torch.ones_like(tokens))
            if len(seen) != 1 or not torch.equal(
                logits, widened(head(torch.full_like(seen[0], _LOUD))[:, -2:])
            ):
                return None
        return ChunkedHead(network, head, max(1, _VALUES // logits.shape[-1]), token_losses)

    def losses(self, tokens: Tensor, mask: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of each row, and its number of targets: both [b].

        Args:
            tokens: int64 [b, t].
            mask: int64 [b, t].
            targets: int64 [b, t], aligned with ``tokens``, -100 without loss.
        """
        with _given(self._head, lambda hidden: hidden[:, :1]) as seen:
            self._network(tokens, mask)
        following = targets[:, 1:]
        kept = following != IGNORED
        hidden = seen.pop()[:, -tokens.shape[1] :][:, :-1][kept]  # virtual tokens stand at the front
        parts = zip(torch.split(hidden, self._rows), torch.split(following[kept], self._rows), strict=True)
        each = torch.cat([self._token_losses(widened(self._head(h)), y) for h, y in parts])
        losses = each.new_zeros(len(tokens)).index_add(0, kept.nonzero()[:, 0], each)
        return losses, kept.sum(1)


@contextmanager
def _given(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Inside, ``head`` is given ``change`` of its input; the list has what it would have been given."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0])
        return (change(arguments[0]), *arguments[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
