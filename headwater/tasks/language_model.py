"""Tasks of causal models: :class:`RunningText`, :class:`Instruction`. A target for each token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from headwater.config.data import BaseLanguageData, CausalLMData, InstructionData
from headwater.errors import DataError, ModelError
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.classification import invert
from headwater.tasks.inputs import Report, Row, Tokenizer, at
from headwater.tasks.task import Array, Metrics, Task

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

L = TypeVar("L", bound=BaseLanguageData)


class NextToken(Task[L]):
    """Each token is predicted from those before it. Targets int64 [t], aligned with the tokens."""

    @property
    def outputs(self) -> None:
        """The vocabulary."""
        return None

    def token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of n positions: [n, vocabulary] and int64 [n] to [n].

        A model may ask position by position, so that it never holds the logits of all of them.
        """
        import torch.nn.functional as F

        return F.cross_entropy(logits, targets, reduction="none")

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [b] summed over each row's target tokens, and how many these are."""
        following = targets[:, 1:]
        kept = following != IGNORED
        each = self.token_losses(logits[:, :-1][kept], following[kept])
        rows = kept.nonzero()[:, 0]
        return logits.new_zeros(len(logits)).index_add(0, rows, each), kept.sum(1)

    def target_count(self, example: Example) -> int:
        """Its target tokens: the first one has nothing before it."""
        return int((example.targets[1:] != IGNORED).sum())

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Every token."""
        import torch

        return torch.where(mask.bool(), tokens, IGNORED)

    def draw(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Each next token given the true ones before it."""
        import torch

        drawn = torch.full_like(targets, IGNORED)
        kept = targets[:, 1:] != IGNORED  # the token at t + 1 is drawn from the logits at t
        drawn[:, 1:][kept] = invert(logits[:, :-1][kept], uniforms[:, 1:][kept].to(logits.device)).cpu()
        return drawn.to(logits.device)

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """The loss per target token (nats), and perplexity."""
        return {"loss": loss, "perplexity": perplexity(loss)}

    def merge(self, metrics: Mapping[str, Sequence[float]], counts: Sequence[int]) -> Metrics:
        """The loss of all tokens together, and perplexity of that: both exact."""
        return with_perplexity(super().merge(metrics, counts))


class RunningText(NextToken[CausalLMData]):
    """Running text: loss on every token; long texts are cut into windows."""

    settings_class = CausalLMData

    def check(self, row: Row) -> None:
        """Read the text."""
        row.texts()

    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """Windows of at most ``max_tokens`` tokens; a window never holds two documents.

        A window begins with the last token of the one before it, as context without loss. So every token
        of a document but its first is predicted exactly once, whatever ``max_tokens`` is. A document of
        one token has nothing to predict and gives no example; ``report`` is told.
        """
        text, _ = row.texts()
        with at(row.where):
            tokens = tokenizer.prompt(text)
            if report is not None:
                report.note(["control-text"] * tokenizer.has_control_text(text), row.where)
        if tokenizer.eos is not None:
            tokens = [*tokens, tokenizer.eos]
        if report is not None and len(tokens) < 2:
            report.note(["nothing"], row.where)
        found = []
        for start in range(0, len(tokens) - 1, self.settings.max_tokens - 1):
            window = tokens[start : start + self.settings.max_tokens]
            found.append(_example(window, [IGNORED, *window[1:]]))
        return found


class Instruction(NextToken[InstructionData]):
    """Conversations in the model's chat template: loss on the answers only."""

    settings_class = InstructionData

    def check(self, row: Row) -> None:
        """Read the conversation."""
        row.conversation()

    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """One example, or several (:meth:`Tokenizer.chat`).

        Raises:
            DataError: the template refuses the row, or nothing of its answers is left within ``max_tokens``.
        """
        said = row.conversation()
        with at(row.where):
            parts = tokenizer.chat(
                said.messages,
                self.settings.max_tokens,
                date=self.settings.date,
                thinking=self.settings.thinking,
                tools=said.tools,
            )
        found = []
        for part in parts:
            if len(part.tokens) != len(part.loss):
                raise ModelError(
                    "the tokenizer's chat template",
                    expected=f"{len(part.tokens)} loss flags",
                    got=str(len(part.loss)),
                )
            targets = [t if counts else IGNORED for t, counts in zip(part.tokens, part.loss, strict=True)]
            targets[:1] = [IGNORED]  # nothing comes before the first token to predict it from
            if report is not None:
                report.note(part.remarks, row.where)
                report.note(["cut"] * part.cut + ["cut-answer"] * part.cut_answer, row.where)
            if any(target != IGNORED for target in targets):
                found.append(_example(part.tokens, targets))
        if not found:
            raise _nothing_learnt(row.where, self.settings.max_tokens, cut=any(part.cut for part in parts))
        return found

    def asked(self, example: Example) -> tuple[list[int], list[int]]:
        """Everything before the last answer, and that answer with what ends it."""
        counts = np.flatnonzero(example.targets != IGNORED)
        gaps = np.flatnonzero(np.diff(counts) > 1)
        first = int(counts[gaps[-1] + 1] if len(gaps) else counts[0])
        last = int(counts[-1]) + 1
        return example.tokens[:first].tolist(), example.targets[first:last].tolist()


def _nothing_learnt(where: str, max_tokens: int, *, cut: bool) -> DataError:
    return DataError(
        where,
        expected=f"an answer that begins within data.max_tokens = {max_tokens}"
        if cut
        else "an answer with something to learn from",
        got="a prompt that fills them" if cut else "none, or weight 0 on each",
        hint="Raise data.max_tokens, or shorten the row or take it out." if cut else "Take the row out.",
    )


def _example(tokens: Sequence[int], targets: Sequence[int]) -> Example:
    return Example(np.array(tokens, dtype=np.int32), np.array(targets, dtype=np.int64), by_token=True)


def perplexity(loss: float) -> float:
    """E to the loss, nats a token."""
    return math.exp(min(loss, 700.0))  # e^710 overflows


def with_perplexity(merged: Metrics) -> Metrics:
    """Merged metrics with the perplexity of their loss, where they have both."""
    if "perplexity" in merged and "loss" in merged:
        merged["perplexity"] = perplexity(merged["loss"])
    return merged
