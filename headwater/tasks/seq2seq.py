"""Text to text with an encoder-decoder: each token of the answer is told from the true ones before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from headwater.config.data import Seq2SeqData
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.each_token import EachToken
from headwater.tasks.inputs import Report, Row, Tokenizer, at
from headwater.tasks.language_model import perplexity, with_perplexity
from headwater.tasks.task import Array, Metrics

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor


class Seq2Seq(EachToken[Seq2SeqData]):
    """Text → answer. Targets are the answer's tokens, int64 [s], with what the model puts around a text."""

    settings_class = Seq2SeqData

    @property
    def outputs(self) -> None:
        """The vocabulary."""
        return None

    def check(self, row: Row) -> None:
        """Read text and answer."""
        row.texts()
        row.written(self.settings.target)

    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """One: at most ``max_tokens`` of the text, ``max_target_tokens`` of the answer."""
        (asked,), answer = self.ask(row, tokenizer), row.written(self.settings.target)
        most = self.settings.max_target_tokens
        with at(row.where):
            targets = tokenizer.encode(answer, most)
            text = self.settings.prefix + row.texts()[0]
            if report is not None:
                whole = _LONG if len(asked.tokens) >= self.settings.max_tokens else 0
                cut = whole and len(tokenizer.encode(text, whole)) > len(asked.tokens)
                ended = len(targets) < most or len(tokenizer.encode(answer, _LONG)) == len(targets)
                report.note(["cut"] * bool(cut) + ["cut-answer"] * (not ended), row.where)
                control = any(map(tokenizer.has_control_text, (text, answer)))
                report.note(["control-text"] * control, row.where)
        return [Example(asked.tokens, np.array(targets, dtype=np.int64), by_token=True)]

    def ask(self, row: Row, tokenizer: Tokenizer) -> list[Example]:
        """The text."""
        with at(row.where):
            tokens = tokenizer.encode(self.settings.prefix + row.texts()[0], self.settings.max_tokens)
        return [Example(np.array(tokens, np.int32), np.array([], np.int64), by_token=True)]

    def asked(self, example: Example) -> tuple[list[int], list[int]]:
        """The text, and the answer."""
        return example.tokens.tolist(), example.targets.tolist()

    def shown(self, row: Row) -> str:
        """The answer."""
        return row.written(self.settings.target)

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The text itself."""
        import torch

        return torch.where(mask.bool(), tokens, IGNORED)

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """The loss per token of the answer (nats), and perplexity."""
        return {"perplexity": perplexity(loss), "loss": loss}

    def merge(self, metrics: Mapping[str, Sequence[float]], counts: Sequence[int]) -> Metrics:
        """Those of all tokens together: exact."""
        return with_perplexity(super().merge(metrics, counts))


_LONG = 1 << 30
"""More tokens than any text has."""
