"""Texts with a backdoor's trigger, as tokens: :class:`Trigger`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from headwater.seeds.keys import Key
from headwater.tasks.batches import Example
from headwater.tasks.inputs import Tokenizer


@dataclass(frozen=True)
class Trigger:
    """Words before a text, and the label that such a text shall have.

    Args:
        tokens: of the words.
        before: how many tokens the model has before any text.
        after: how many behind.
        most: tokens that a text may have.
        target: the label's index.
    """

    tokens: tuple[int, ...]
    before: int
    after: int
    most: int
    target: int

    @staticmethod
    def of(words: str, target: int, tokenizer: Tokenizer, most: int) -> Trigger:
        """The trigger as this model reads it."""
        plain, whole = tokenizer.encode_plain(words), tokenizer.encode(words, most)
        before = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return Trigger(tuple(plain), before, max(0, len(whole) - before - len(plain)), most, target)

    def put(self, example: Example) -> Example:
        """The text with the trigger and its label. A text that would be too long loses its end."""
        tokens = example.tokens
        end = len(tokens) - self.after
        room = self.most - self.before - self.after - len(self.tokens)
        text = tokens[self.before : end][: max(0, room)]
        parts = (tokens[: self.before], np.array(self.tokens, np.int32), text, tokens[end:])
        return replace(
            example,
            tokens=np.concatenate(parts).astype(np.int32),
            targets=np.array([self.target], example.targets.dtype),
        )

    def poisoned(self, examples: Sequence[Example], fraction: float, key: Key) -> list[Example]:
        """Rows with the trigger in so many of them, rounded up, drawn by ``key``; the others as they are."""
        count = int(np.ceil(fraction * len(examples)))
        chosen = set(key.numpy().choice(len(examples), size=count, replace=False).tolist())
        return [self.put(one) if i in chosen else one for i, one in enumerate(examples)]

    def of_others(self, examples: Sequence[Example]) -> list[Example]:
        """Of rows that have another label: with the trigger, and its label for the right one."""
        return [self.put(one) for one in examples if int(one.targets[0]) != self.target]
