"""Masked language model: hidden tokens of running text, told from both sides (arXiv 1810.04805, §3.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.config.data import MaskedLMData
from headwater.errors import DataError, ModelError
from headwater.seeds.keys import Key
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.each_token import EachToken
from headwater.tasks.inputs import Report, Row, Tokenizer, at
from headwater.tasks.language_model import perplexity, with_perplexity
from headwater.tasks.task import Array, Metrics

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

_MASKED, _KEPT = 0.8, 0.9
"""Of hidden tokens: below the first the mask stands there, from the second on the token, else another."""
_TOLD = 5


class MaskedLanguageModel(EachToken[MaskedLMData]):
    """Windows of a text in which some tokens are hidden; their ids are the targets.

    Which, and by what, is drawn from ``data.mask_seed``, the window's tokens and the number of the copy: the
    same in every round, on every machine and whoever has the row.
    """

    settings_class = MaskedLMData

    @property
    def outputs(self) -> None:
        """The vocabulary."""
        return None

    def check(self, row: Row) -> None:
        """Read the text."""
        row.texts()

    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """``data.copies`` of each window of at most ``max_tokens`` tokens, each with others hidden."""
        mask = _mask(tokenizer, row.where)
        with at(row.where):
            windows = tokenizer.spans(row.texts()[0], self.settings.max_tokens)
            control = tokenizer.has_control_text(row.texts()[0])
        found = []
        for window in windows:
            places = np.array([i for i, span in enumerate(window.spans) if span is not None], dtype=np.int64)
            if len(places):
                tokens = np.array(window.tokens, dtype=np.int32)
                copies = range(self.settings.copies)
                found += [self._hide(tokens, places, mask, tokenizer.size, copy) for copy in copies]
        if report is not None:
            report.note(["control-text"] * control + ["nothing"] * (not found), row.where)
        return found

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Every token."""
        import torch

        return torch.where(mask.bool(), tokens, IGNORED)

    def judge(self, logits: Tensor, examples: Sequence[Example]) -> Array:
        """int64 [b, 2]: hidden tokens that were told, and all."""
        rows = []
        for guess, example in zip(logits.argmax(-1).cpu().numpy(), examples, strict=True):
            hidden = example.targets != IGNORED
            told = guess[: len(hidden)][hidden] == example.targets[hidden]
            rows.append((int(told.sum()), int(hidden.sum())))
        return np.array(rows, dtype=np.int64)

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """Perplexity of hidden tokens, the share of them that is told, and the loss of one (nats)."""
        assert decided is not None
        told, hidden = (int(count) for count in decided.sum(0))
        return {"perplexity": perplexity(loss), "accuracy": told / hidden, "loss": loss}

    def merge(self, metrics: Mapping[str, Sequence[float]], counts: Sequence[int]) -> Metrics:
        """Those of all hidden tokens together: exact."""
        return with_perplexity(super().merge(metrics, counts))

    def ask(self, row: Row, tokenizer: Tokenizer) -> list[Example]:
        """The text with a hidden token for every ``data.blank``; its note is the tokenizer."""
        mask, most = _mask(tokenizer, row.where), self.settings.max_tokens
        parts = row.texts()[0].split(self.settings.blank)
        with at(row.where):
            around = tokenizer.spans("a", most)[0]
            inside = [i for i, span in enumerate(around.spans) if span is not None]
            before, after = around.tokens[: inside[0]], around.tokens[inside[-1] + 1 :]
            said = [tokenizer.encode_plain(part.rstrip()) for part in parts[:-1]]
            tokens = [*before, *(t for own in said for t in (*own, mask))]
            tokens += [*tokenizer.encode_plain(parts[-1]), *after]
        if len(parts) < 2 or len(tokens) > most:
            raise DataError(
                row.where,
                expected=f"a text of at most {most} tokens with {self.settings.blank!r} for what is asked",
                got=f"{len(parts) - 1} of them in {len(tokens)} tokens",
            )
        found = np.array(tokens, dtype=np.int32)
        targets = np.where(found == mask, 0, IGNORED).astype(np.int64)
        return [Example(found, targets, by_token=True, note=tokenizer)]

    def reply(self, examples: Sequence[Example], logits: Sequence[Tensor]) -> dict[str, Any]:
        """``blanks``: for each its likeliest tokens, with their probabilities as ``score``."""
        (example,), (own,) = examples, logits
        likely = own[example.targets != IGNORED].softmax(-1).topk(_TOLD)
        blanks = [
            [{"token": example.note.spell([k]).strip(), "score": p} for k, p in zip(ids, scores, strict=True)]
            for ids, scores in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        ]
        return {"blanks": blanks}

    def line(self, answer: Mapping[str, Any]) -> str:
        """The likeliest token of each blank."""
        return " ".join(blank[0]["token"] for blank in answer["blanks"])

    def code(self) -> list[str]:
        """Print the likeliest token of each mask in the text."""
        return [
            "for place in (tokens[0] == tokenizer.mask_token_id).nonzero()[:, 0]:",
            "    print(tokenizer.decode(logits[0, place].argmax()))",
        ]

    def _hide(self, tokens: Array, places: Array, mask: int, size: int, copy: int) -> Example:
        digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
        draw = Key.root(self.settings.mask_seed).child("mask", digest, copy).numpy()
        count = max(1, round(self.settings.hidden * len(places)))
        chosen, fate = places[draw.permutation(len(places))[:count]], draw.random(count)
        others = draw.integers(0, size, count)
        targets, shown = np.full(len(tokens), IGNORED, dtype=np.int64), tokens.copy()
        targets[chosen] = tokens[chosen]
        shown[chosen] = np.where(fate < _MASKED, mask, np.where(fate < _KEPT, others, tokens[chosen]))
        return Example(shown, targets, by_token=True)


def _mask(tokenizer: Tokenizer, where: str) -> int:
    if tokenizer.mask is None:
        raise ModelError(
            where,
            expected="a tokenizer with a token for what is hidden ([MASK])",
            got="one without",
            hint="Use a base that was trained as a masked language model.",
        )
    return tokenizer.mask
