"""Token classification: a label for each word, by cross entropy; entities are what counts."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.config.data import UNKNOWN_LABELS, TokenClassificationData
from headwater.errors import DataError
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.each_token import EachToken
from headwater.tasks.entities import Chunks
from headwater.tasks.inputs import Report, Row, Tokenizer, at
from headwater.tasks.labels import index_of, unknown_label, weights_of
from headwater.tasks.task import Array, Metrics

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor


class TokenClassification(EachToken[TokenClassificationData]):
    """Words → a label each. The first token of a word has its label; the others have no loss.

    Words are joined by spaces and read as a text, which says where its tokens stand. Words that are cut off,
    or of which the tokenizer leaves nothing, count nowhere.
    """

    settings_class = TokenClassificationData

    def __init__(self, settings: TokenClassificationData) -> None:
        super().__init__(settings)
        self._chunks = Chunks(settings.labels)
        self._numbers = any(label.lstrip("-").isdigit() for label in settings.labels)  # they are names there

    @property
    def outputs(self) -> tuple[str, ...]:
        """The labels."""
        return self.settings.labels

    def check(self, row: Row) -> None:
        """Read words and labels, equally many."""
        self._labels(row)

    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """One example: at most ``max_tokens`` tokens; a target at the first token of each word."""
        labels, (example,) = self._labels(row), self.ask(row, tokenizer)
        if report is not None and example.note[-1] < len(labels) - 1:
            report.note(["cut"], row.where)
        targets = example.targets.copy()
        targets[targets != IGNORED] = [labels[word] for word in example.note]
        return [Example(example.tokens, targets, by_token=True)]

    def ask(self, row: Row, tokenizer: Tokenizer) -> list[Example]:
        """One example, with target 0 for each word that is read; its note says which these are."""
        words = row.words(self.settings.words)
        with at(row.where):
            window = tokenizer.spans(" ".join(words), self.settings.max_tokens)[0]
        starts = list(accumulate((len(word) + 1 for word in words), initial=0))
        targets, read = np.full(len(window.tokens), IGNORED, dtype=np.int64), list[int]()
        for position, span in enumerate(window.spans):
            if span is None or span[0] == span[1]:
                continue
            word = bisect_right(starts, span[1] - 1) - 1  # by its last character: some begin with a space
            if span[1] - 1 - starts[word] < len(words[word]) and word not in read[-1:]:
                targets[position] = 0
                read.append(word)
        if not read:
            raise DataError(
                row.where,
                expected=f"a word of at least one token within data.max_tokens = {self.settings.max_tokens}",
                got="none",
                hint="Take the row out.",
            )
        return [Example(np.array(window.tokens, np.int32), targets, by_token=True, note=read)]

    def labels_of(self, row: Row) -> tuple[str, ...]:
        """Every label that one of its words has; as the row writes them where none are known yet."""
        if self.settings.labels == UNKNOWN_LABELS:
            return tuple(dict.fromkeys(map(str, self._named(row))))
        return tuple(self.outputs[k] for k in sorted(set(self._labels(row))))

    def shown(self, row: Row) -> str:
        """The labels."""
        return " ".join(map(str, self._named(row)))

    def weights(self, like: Tensor) -> Tensor | None:
        """Those of the labels."""
        return weights_of(self.settings, like)

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The first label for every token."""
        import torch

        return torch.where(mask.bool(), 0, IGNORED)

    def judge(self, logits: Tensor, examples: Sequence[Example]) -> Array:
        """int64 [b, 5]: entities that are right, found and true; words that are right, and all."""
        guesses = logits.argmax(-1).cpu().numpy()
        rows = [self._counts(e.targets, guess) for e, guess in zip(examples, guesses, strict=True)]
        return np.array(rows, dtype=np.int64)

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """F1, precision and recall of entities; accuracy of words; the mean loss of a word.

        Over clients accuracy and loss are exact; the others are the weighted means of the clients' own.
        """
        assert decided is not None
        right, found, true, hits, words = (int(count) for count in decided.sum(0))
        return {
            "entity_f1": 2 * right / (found + true) if found + true else 0.0,
            "entity_precision": right / found if found else 0.0,
            "entity_recall": right / true if true else 0.0,
            "accuracy": hits / words,
            "loss": loss,
        }

    def constant(self, train: Sequence[Array], held_out: Sequence[Array]) -> Metrics:
        """What the most frequent label (of two alike the first) for every word reaches."""
        counts = Counter(int(k) for targets in train for k in targets if k != IGNORED)
        label = min(counts, key=lambda value: (-counts[value], value))
        rows = [self._counts(targets, np.full(len(targets), label)) for targets in held_out]
        metrics = self.score(0.0, None, np.array(rows, dtype=np.int64))
        return {name: metrics[name] for name in self.settings.constant_metrics}

    def reply(self, examples: Sequence[Example], logits: Sequence[Tensor]) -> dict[str, Any]:
        """``labels`` of the words that were read, by their places ``words``, and ``entities``."""
        (example,), (own,) = examples, logits
        chosen = own[example.targets != IGNORED].argmax(-1).tolist()
        entities = [
            {"type": kind, "words": [example.note[first], example.note[last]]}
            for kind, first, last in self._chunks.of(chosen)
        ]
        return {"words": example.note, "labels": [self.outputs[k] for k in chosen], "entities": entities}

    def line(self, answer: Mapping[str, Any]) -> str:
        """The labels."""
        return " ".join(answer["labels"])

    def code(self) -> list[str]:
        """Print the label of each token: that of a word's first token is the word's."""
        return [f"print([{list(self.outputs)!r}[k] for k in logits[0].argmax(-1)])"]

    def _counts(self, targets: Array, guess: Array) -> tuple[int, int, int, int, int]:
        kept = np.flatnonzero(targets != IGNORED)
        truth, found = targets[kept].tolist(), guess[kept].tolist()
        true, said = self._chunks.of(truth), self._chunks.of(found)
        hits = sum(a == b for a, b in zip(truth, found, strict=True))
        return len(set(true) & set(said)), len(said), len(true), hits, len(truth)

    def _named(self, row: Row) -> list[object]:
        value = row.value(self.settings.label)
        named = value.split() if isinstance(value, str) else value
        if not isinstance(named, list) or not all(isinstance(v, str | int) for v in named):
            raise DataError(
                row.where,
                expected=f"a list of labels in column {self.settings.label!r}",
                got=f"{type(value).__name__} {value!r:.40}",
            )
        words = row.words(self.settings.words)
        if len(named) != len(words):
            raise DataError(
                row.where,
                expected=f"a label for each of the {len(words)} words",
                got=f"{len(named)} labels",
                hint="Correct the row or take it out.",
            )
        return named

    def _labels(self, row: Row) -> list[int]:
        """The index of each word's label."""
        found = []
        for value in self._named(row):
            index = index_of(value, self.outputs)
            if index is None and type(value) is int and not self._numbers:
                index = value if 0 <= value < len(self.outputs) else None
            if index is None:
                raise unknown_label(row.where, self.settings.label, str(value), self.outputs)
            found.append(index)
        return found
