"""Extractive question answering: where in a context the answer begins and ends, by two cross entropies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.config.data import ExtractiveQAData
from headwater.errors import DataError
from headwater.tasks import squad
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.classification import invert
from headwater.tasks.inputs import Report, Row, Tokenizer, Window, at
from headwater.tasks.task import Array, Metrics, Task

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

_BEGIN, _END = 1, 2
"""Bits of a token's target: the answer begins with it, ends with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A row that was asked: its windows have the same one.

    Args:
        context: the text in which the answer is.
        truths: the true answers; one empty text where there is none.
    """

    context: str
    truths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A window's best answer.

    Args:
        score: the sum of the logits of its first and of its last token.
        none: the same of the first token of all, which says that there is no answer.
        start: its first character in the context.
        end: the one after its last.
    """

    score: float
    none: float
    start: int
    end: int


class ExtractiveQA(Task[ExtractiveQAData]):
    """Question and context → two logits for each token. A context is cut into windows; each is an example.

    A target is int64 [t]: 0 for tokens of the context, plus 1 where the answer begins and 2 where it ends.
    In a window without the whole answer both are the first token of all (arXiv 1810.04805, §4.3).
    """

    settings_class = ExtractiveQAData

    @property
    def outputs(self) -> tuple[str, ...]:
        """The logits."""
        return ("start", "end")

    def check(self, row: Row) -> None:
        """Read question, context and answers."""
        row.texts()
        self._answers(row)

    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """A window each. Of several answers the first is learnt; all are true when answers are judged."""
        _, context = row.texts()
        answers, windows = self._answers(row), self._windows(row, tokenizer)
        asked = Asked(context or "", tuple(text for text, _ in answers) or ("",))
        first = self._read(row, answers[0], windows) if answers else None
        if report is not None:
            missed = first is not None and not any(_places(window, first) for window in windows)
            report.note(["no-window"] * missed, row.where)
        return [self._example(window, asked, first) for window in windows]

    def ask(self, row: Row, tokenizer: Tokenizer) -> list[Example]:
        """The windows, without an answer."""
        asked = Asked(row.texts()[1] or "", ())
        return [self._example(window, asked, None) for window in self._windows(row, tokenizer)]

    def shown(self, row: Row) -> str:
        """The first answer."""
        answers = self._answers(row)
        return answers[0][0] if answers else "(none)"

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of two cross entropies over a window's tokens of the context.

        Logits are [b, t, 2], targets int64 [b, t].
        """
        import torch

        outside = (targets == IGNORED).unsqueeze(-1)
        logs = logits.masked_fill(outside, float("-inf")).log_softmax(1).masked_fill(outside, 0.0)
        chosen = torch.stack([(targets & bit).bool() for bit in (_BEGIN, _END)], -1) & ~outside
        return -(logs * chosen).sum((1, 2)) / 2, torch.ones_like(targets[:, 0])

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """No answer."""
        import torch

        targets = torch.where(mask.bool(), 0, IGNORED)
        targets[:, 0] = _BEGIN | _END
        return targets

    def draw(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Beginning and end, each by itself: two of a row's numbers are used."""
        import torch

        outside = targets == IGNORED
        drawn = torch.where(outside, targets, 0)
        rows = torch.arange(len(targets), device=targets.device)
        for k, bit in enumerate((_BEGIN, _END)):
            inside = logits[..., k].masked_fill(outside, float("-inf"))
            drawn[rows, invert(inside, uniforms[:, k].contiguous().to(logits.device))] += bit
        return drawn

    def judge(self, logits: Tensor, examples: Sequence[Example]) -> Array:
        """Object [b]: a pair of what was asked and :class:`Found`."""
        found = np.empty(len(examples), dtype=object)
        for i, (own, example) in enumerate(zip(logits.float().cpu().numpy(), examples, strict=True)):
            found[i] = (example.note[0], self._best(own, example))
        return found

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """F1 and exact match as SQuAD counts them, means over rows; the mean loss of a window.

        Over clients F1 and exact match are weighted by windows, and so exact where each row is one.
        """
        assert decided is not None
        rows: dict[int, list[Found]] = {}
        asked: dict[int, Asked] = {}
        for what, found in decided:
            rows.setdefault(id(what), []).append(found)
            asked[id(what)] = what
        said = [(self._said(asked[key], found)["answer"], asked[key].truths) for key, found in rows.items()]
        return {
            "f1": float(np.mean([squad.f1(text, truths) for text, truths in said])),
            "exact_match": float(np.mean([squad.exact(text, truths) for text, truths in said])),
            "loss": loss,
        }

    def reply(self, examples: Sequence[Example], logits: Sequence[Tensor]) -> dict[str, Any]:
        """``answer``, its first character ``start``, and ``score``, by which answers of a model compare."""
        found = [self._best(own.cpu().numpy(), e) for e, own in zip(examples, logits, strict=True)]
        return self._said(examples[0].note[0], found)

    def line(self, answer: Mapping[str, Any]) -> str:
        """The answer."""
        return str(answer["answer"] or "(none)")

    def code(self) -> list[str]:
        """Print the likeliest answer of this window."""
        return [
            "inside = [k for k, part in enumerate(row.sequence_ids()) if part == 1]",
            "scores = logits[0, inside, 0][:, None] + logits[0, inside, 1][None, :]",
            f"allowed = torch.ones_like(scores).triu().tril({self.settings.max_answer_tokens - 1}).bool()",
            "start, end = divmod(int(scores.masked_fill(~allowed, -torch.inf).argmax()), len(inside))",
            "print(tokenizer.decode(ids[inside[start] : inside[end] + 1]))",
        ]

    def _windows(self, row: Row, tokenizer: Tokenizer) -> Sequence[Window]:
        question, context = row.texts()
        with at(row.where):
            return tokenizer.spans(question, self.settings.max_tokens, context, self.settings.stride)

    def _example(self, window: Window, asked: Asked, answer: tuple[int, int] | None) -> Example:
        inside = [i for i, span in enumerate(window.spans) if span is not None and span[0] < span[1]]
        targets = np.full(len(window.tokens), IGNORED, dtype=np.int64)
        targets[[0, *inside]] = 0
        begin, end = _places(window, answer) or (0, 0)
        targets[begin] |= _BEGIN
        targets[end] |= _END
        note = (asked, list(window.spans))
        return Example(np.array(window.tokens, np.int32), targets, by_token=True, note=note, whole=asked)

    def _best(self, logits: Array, example: Example) -> Found:
        """The best answer of a window of at most ``max_answer_tokens`` tokens."""
        inside = np.flatnonzero(example.targets != IGNORED)[1:]
        none = float(logits[0].sum())
        if not len(inside):
            return Found(-np.inf, none, 0, 0)
        pairs = logits[inside, 0][:, None] + logits[inside, 1][None, :]
        allowed = np.triu(np.tri(len(inside), k=self.settings.max_answer_tokens - 1, dtype=bool))
        first, last = np.unravel_index(np.where(allowed, pairs, -np.inf).argmax(), pairs.shape)
        spans = example.note[1]
        return Found(float(pairs[first, last]), none, spans[inside[first]][0], spans[inside[last]][1])

    def _said(self, asked: Asked, windows: Sequence[Found]) -> dict[str, Any]:
        """The answer of all windows of a row together."""
        best = max(windows, key=lambda found: found.score)
        none = min(found.none for found in windows)
        if self.settings.unanswerable and none > best.score:
            return {"answer": "", "start": None, "score": none}
        text = asked.context[best.start : best.end]
        if not text:  # no window has a token of the context
            return {"answer": "", "start": None, "score": none}
        before = len(text) - len(text.lstrip())  # some tokens begin with the space before a word
        return {"answer": text.strip(), "start": best.start + before, "score": best.score}

    def _read(self, row: Row, answer: tuple[str, int], windows: Sequence[Window]) -> tuple[int, int]:
        """The first character of an answer that is in a token, and the one after the last; spaces are not."""
        text, start = answer
        spans = {s for window in windows for s in window.spans if s is not None}
        own = [(max(a, start), min(b, start + len(text))) for a, b in spans]
        if not (own := [(a, b) for a, b in own if a < b]):
            raise self._wrong(row, "an answer with a token", f"{text!r:.40}, which the tokenizer drops")
        return min(a for a, _ in own), max(b for _, b in own)

    def _answers(self, row: Row) -> list[tuple[str, int]]:
        """Each answer's text and where it begins."""
        value, (_, context) = row.value(self.settings.answers), row.texts()
        if isinstance(value, list):
            value = {key: [v.get(key) if isinstance(v, dict) else None for v in value] for key in _KEYS}
        found = [value.get(key) for key in _KEYS] if isinstance(value, dict) else []
        texts, starts = ([v] if isinstance(v, str | int) else v for v in found) if found else (None, None)
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise self._wrong(row, "`text` and `answer_start`, lists of equal length", f"{value!r:.60}")
        if not (texts or self.settings.unanswerable):
            raise self._wrong(row, "an answer, or data.unanswerable = true", "none")
        for text, start in zip(texts, starts, strict=True):
            whole = isinstance(text, str) and text.strip() and type(start) is int and start >= 0
            if not whole or (context or "")[start : start + len(text)] != text:
                there = f"{(context or '')[start : start + 40]!r}" if whole else f"{start!r:.40}"
                raise self._wrong(row, f"the context to have {text!r:.40} at its answer_start", there)
        return list(zip(texts, starts, strict=True))

    def _wrong(self, row: Row, expected: str, got: str) -> DataError:
        where = f"{row.where}, column {self.settings.answers!r}"
        return DataError(where, expected=expected, got=got, hint="Correct the row or take it out.")


_KEYS = ("text", "answer_start")


def _places(window: Window, answer: tuple[int, int] | None) -> tuple[int, int] | None:
    """The tokens with which an answer begins and ends; None where the window does not have all of it."""
    if answer is None:
        return None
    spans = [(i, *span) for i, span in enumerate(window.spans) if span is not None]
    begins = [i for i, start, end in spans if start <= answer[0] < end]
    ends = [i for i, start, end in spans if start < answer[1] <= end]
    return (begins[0], ends[-1]) if begins and ends else None
