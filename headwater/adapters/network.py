"""Network: base, adapter and head as one module from token ids to logits."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

Kind = Literal["encoder", "sequence-classification", "causal-lm"]


class Network(nn.Module):
    """Base, adapter and head.

    Args:
        peft: the PEFT model.
        kind: what the base is.
        head: the linear head of an encoder; None otherwise.
    """

    def __init__(self, peft: PeftModel, kind: Kind, head: nn.Linear | None) -> None:
        super().__init__()
        self.peft, self.kind, self.head = peft, kind, head

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits of right-padded ``tokens`` int64 [b, t] with ``mask`` int64 [b, t].

        Returns:
            [b, labels] for classification; [b, t, vocabulary] for a causal model.
        """
        out = self.peft(input_ids=tokens, attention_mask=mask, return_dict=True)
        width = tokens.shape[1]
        if self.kind == "causal-lm":
            return out.logits[:, -width:]  # type: ignore[no-any-return]  # transformers is untyped here
        if self.head is None:
            return out.logits  # type: ignore[no-any-return]  # likewise
        # prompt tuning lengthens the hidden states by its virtual tokens, at the front
        return self.head(mean_pool(out.last_hidden_state[:, -width:], mask))  # type: ignore[no-any-return]

    def features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The base's own mean-pooled last hidden states, as if there were no adapter: [b, d]."""
        # a prompt sits beside its base, and PEFT's disable_adapter fails for one on an encoder
        prompted = self.peft.active_peft_config.is_prompt_learning
        network = self.peft.get_base_model() if prompted else self.peft
        with contextlib.nullcontext() if prompted else self.peft.disable_adapter():
            out = network(input_ids=tokens, attention_mask=mask, output_hidden_states=True, return_dict=True)
        return mean_pool(out.hidden_states[-1][:, -tokens.shape[1] :], mask)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``hidden`` [b, t, d] over the positions where ``mask`` [b, t] is 1: [b, d]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def new_head(hidden: int, labels: int, device: torch.device) -> nn.Linear:
    """An encoder's head, of any values (drawn on no global generator)."""
    return nn.Linear(hidden, labels, device="meta").to_empty(device=device)
