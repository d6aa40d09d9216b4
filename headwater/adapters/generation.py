"""Token ids in, token ids out: :func:`generate` what a causal model says, :func:`padded` rows of a batch.

:func:`room_of` says how many a row may have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.adapters.base import Base
from headwater.adapters.network import Network
from headwater.adapters.reports import listening


def generate(
    network: Network,
    base: Base,
    row: Sequence[int],
    ends: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """What the model says after ``row``, without the token that ends it.

    Args:
        network: base and adapter.
        base: the base model.
        row: token ids, at least one.
        ends: ids at which it stops.
        max_new_tokens: length of the answer at most.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        seed: of the draws; torch's global generator is left as it was.

    Raises:
        ModelError: transformers or PEFT warn of something that is not known to be harmless.
    """
    settings, pad = base.settings, base.tokenizer.pad
    tokens, mask = padded([row], pad, base.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        listening(f"base model {settings.path}", settings.accept_warnings),
    ):
        torch.manual_seed(seed)
        out = network.peft.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=list(ends) or None,
            use_cache=True,
            **sampling,
        )
    first = 1 if base.model.config.is_encoder_decoder else len(row)  # what its decoder begins with
    said = [int(token) for token in out[0, first:].tolist()]
    return said[: next((n for n, token in enumerate(said) if token in ends), len(said))]


def room_of(base: Base) -> int | None:
    """Tokens that the base takes; of a causal model that computes any number, as many as it was made for."""
    if base.positions is not None or not base.settings.writes:
        return base.positions
    most = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows as int64 tokens and mask [b, t], filled with ``pad`` on the right."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return tokens, mask
