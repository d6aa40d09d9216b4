"""Network: base, adapter and head as one module from token ids to logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import Parameter

from headwater.adapters.reading.segments import segments
from headwater.config.traits import ModelTraits
from headwater.tasks.batches import IGNORED


class Network(nn.Module):
    """Base, adapter and head.

    Args:
        peft: the PEFT model.
        model: what the base is.
        head: the linear head of an encoder; None otherwise.
        separator: the id by which the base's token types are known; None if it takes none.
        each_token: the head reads each token, not their mean.
    """

    def __init__(
        self,
        peft: PeftModel,
        model: ModelTraits,
        head: nn.Linear | None,
        separator: int | None = None,
        *,
        each_token: bool = False,
    ) -> None:
        super().__init__()
        self.separator, self.each_token = separator, each_token
        self.peft, self.model, self.head = peft, model, head
        self._own: list[tuple[Parameter, Tensor]] = []
        self._scores = model.own_head and hasattr(peft.get_base_model(), "score")

    def forward(self, tokens: Tensor, mask: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits of right-padded ``tokens`` int64 [b, t] with ``mask`` int64 [b, t].

        Args:
            tokens: the rows.
            mask: 1 where there is a token.
            targets: of an encoder-decoder the answers int64 [b, s], each token of which is told from the true
                ones before it; without them its first token alone.

        Returns:
            At least float32, whatever the base computes in: [b, labels] for classification;
            [b, t, labels] with a head on each token; [b, t, vocabulary] for a causal or a masked language
            model; [b, s, vocabulary] for an encoder-decoder.
        """
        if self._scores:
            return self._at_last_token(tokens, mask)
        answer = self.answering(tokens, targets)
        out = self.peft(**self._read(tokens, mask), **answer, return_dict=True)
        width = tokens.shape[1]
        if answer:
            return widened(out.logits)
        if not (self.model.pooled or self.model.own_head):
            return widened(out.logits[:, -width:])
        if self.head is None:
            return out.logits  # type: ignore[no-any-return]  # likewise
        # prompt tuning lengthens the hidden states by its virtual tokens, at the front
        hidden = widened(out.last_hidden_state[:, -width:])
        return self.head(hidden if self.each_token else mean_pool(hidden, mask))  # type: ignore[no-any-return]

    def answering(self, tokens: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """What an encoder-decoder's decoder is given: each answer without its end. Nothing for others."""
        if "answer" not in self.model.gives:
            return {}
        config = self.peft.get_base_model().config
        first = tokens.new_full((len(tokens), 1), config.decoder_start_token_id)
        if targets is None:
            return {"decoder_input_ids": first}
        before = targets[:, :-1].to(tokens.device)
        before = before.masked_fill(before == IGNORED, config.pad_token_id or 0)
        return {"decoder_input_ids": torch.cat([first, before], 1)}

    def _read(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the base is given of a batch."""
        given = {"input_ids": tokens, "attention_mask": mask}
        if self.separator is not None:
            given["token_type_ids"] = segments(tokens, mask, self.separator)
        return given

    def _at_last_token(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """A decoder's scores at each row's last token, as ``mask`` says.

        transformers looks for the last id that is not the pad's, and so reads elsewhere where padding is
        another id, or where a text ends with that id; after a prompt it reads at the last position.
        """
        seen: list[Tensor] = []
        head = self.peft.get_base_model().score
        handle = head.register_forward_hook(lambda module, given, scores: seen.append(scores))
        try:
            out = self.peft(input_ids=tokens, attention_mask=mask, return_dict=True)
        finally:
            handle.remove()
        if not seen or seen[-1].dim() != 3:  # it pools before it scores
            return out.logits  # type: ignore[no-any-return]  # transformers is untyped here
        scores = seen[-1][:, -tokens.shape[1] :]  # virtual tokens stand at the front
        return scores[torch.arange(len(scores), device=scores.device), mask.sum(1) - 1]

    def features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The base's own mean-pooled last hidden states, as if there were no adapter: [b, d]."""
        with self.without_adapter() as base:
            out = base(**self._read(tokens, mask), output_hidden_states=True, return_dict=True)
        found = getattr(out, "hidden_states", None) or out.decoder_hidden_states
        return mean_pool(widened(found[-1][:, -tokens.shape[1] :]), mask)

    def keep(self, names: Iterable[str]) -> None:
        """Remember the base's own values of parameters that are trained where they stand.

        Args:
            names: of parameters of the PEFT model.
        """
        self._own = [(p, p.detach().clone()) for p in map(self.peft.get_parameter, names)]

    def restore(self) -> None:
        """Give the parameters of :meth:`keep` the base's values."""
        _put(self._own)

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[nn.Module]:
        """Gives the base, which inside computes as if there were no adapter."""
        # a prompt sits beside its base, and PEFT's disable_adapter fails for one on an encoder
        if self.peft.active_peft_config.is_prompt_learning:
            yield self.peft.get_base_model()
            return
        trained = {id(p) for p in self.parameters() if p.requires_grad}
        now = [(parameter, parameter.detach().clone()) for parameter, _ in self._own]
        self.restore()
        try:
            with self.peft.disable_adapter():
                yield self.peft.get_base_model()
        finally:
            _put(now)
        for parameter in self.parameters():  # PEFT lets everything be trained again, a frozen A too
            parameter.requires_grad_(id(parameter) in trained)


def _put(values: Sequence[tuple[Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, value in values:
            parameter.copy_(value)


def widened(values: Tensor) -> Tensor:
    """In float32; wider ones as they are."""
    return values if values.dtype == torch.float64 else values.float()


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``hidden`` [b, t, d] over the positions where ``mask`` [b, t] is 1: [b, d]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def new_head(hidden: int, labels: int, device: torch.device) -> nn.Linear:
    """An encoder's head, of any values (drawn on no global generator)."""
    return nn.Linear(hidden, labels, device="meta").to_empty(device=device)
