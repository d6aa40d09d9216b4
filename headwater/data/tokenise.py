"""Rows to token ids: one function per kind of data, and :class:`Tokenizer`, what they need of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from headwater.config.federation import CausalLMData, ClassificationData, InstructionData
from headwater.data.batches import IGNORED, Example
from headwater.data.table import Table
from headwater.errors import DataError, ModelError

_ROLES = ("system", "user", "assistant", "tool")


class Tokenizer(Protocol):
    """A base model's tokenizer, as the data room sees it. ``headwater.adapters`` has the real one.

    Attributes:
        pad: the id that fills up a batch.
        bos: the id that the model expects before a running text; None if it expects none.
        eos: the id that ends a running text; None if there is none.
    """

    pad: int
    bos: int | None
    eos: int | None

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids with the model's special tokens, cut to ``max_tokens``."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the whole text, no special tokens."""

    def chat(self, messages: list[dict[str, str]], max_tokens: int) -> tuple[list[int], list[bool]]:
        """Ids of a conversation in the model's chat template, cut to ``max_tokens``.

        Returns:
            The ids, and for each whether it has loss: true for the assistant's answers only.
        """


def label_of(table: Table, row: int, settings: ClassificationData) -> int:
    """The index of the row's label in ``settings.labels``.

    Raises:
        DataError: another label; names file, line, the label and those that are known.
    """
    label = table.name(settings.label, row)
    try:
        return settings.labels.index(label)
    except ValueError:
        known = ", ".join(map(repr, settings.labels))
        raise DataError(
            table.where(row),
            expected=f"one of the labels {known} in column {settings.label!r}",
            got=repr(label),
            hint="Correct the row, or add the label to data.labels.",
        ) from None


def messages_of(table: Table, row: int, settings: InstructionData) -> list[dict[str, str]]:
    """The row as a conversation, with ``settings.system`` in front unless it has a system message."""
    if settings.messages is None:
        messages = [
            {"role": "user", "content": table.text(settings.prompt, row)},
            {"role": "assistant", "content": table.text(settings.answer, row)},
        ]
    else:
        messages = _checked(table.value(settings.messages, row), table, row, settings.messages)
    if settings.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": settings.system})
    return messages


def tokenise_classification(
    table: Table, rows: Iterable[int], settings: ClassificationData, tokenizer: Tokenizer
) -> list[Example]:
    """One example per row: at most ``max_tokens`` tokens, and the label's index."""
    return [
        _example(
            tokenizer.encode(table.text(settings.text, row), settings.max_tokens),
            [label_of(table, row, settings)],
            table,
            row,
        )
        for row in rows
    ]


def tokenise_causal(
    table: Table, rows: Iterable[int], settings: CausalLMData, tokenizer: Tokenizer
) -> list[Example]:
    """Windows of at most ``max_tokens`` tokens; a window never holds two documents.

    A window begins with the last token of the one before it, as context without loss. So every token
    of a document but its first is predicted exactly once, whatever ``max_tokens`` is. A document of
    one token has nothing to predict and gives no example.
    """
    examples = []
    for row in rows:
        tokens = tokenizer.encode_plain(table.text(settings.text, row))
        if tokenizer.bos is not None:
            tokens = [tokenizer.bos, *tokens]
        if tokenizer.eos is not None:
            tokens = [*tokens, tokenizer.eos]
        for start in range(0, len(tokens) - 1, settings.max_tokens - 1):
            window = tokens[start : start + settings.max_tokens]
            examples.append(_example(window, [IGNORED, *window[1:]], table, row))
    return examples


def tokenise_instruction(
    table: Table, rows: Iterable[int], settings: InstructionData, tokenizer: Tokenizer
) -> list[Example]:
    """One example per row, with loss on the answers only.

    Raises:
        DataError: nothing of the answer is left within ``max_tokens``.
    """
    examples = []
    for row in rows:
        tokens, loss = tokenizer.chat(messages_of(table, row, settings), settings.max_tokens)
        if len(tokens) != len(loss):
            raise ModelError(
                "the tokenizer's chat template", expected=f"{len(tokens)} loss flags", got=str(len(loss))
            )
        targets = [token if counts else IGNORED for token, counts in zip(tokens, loss, strict=True)]
        targets[:1] = [IGNORED]  # nothing comes before the first token to predict it from
        if all(target == IGNORED for target in targets):
            raise DataError(
                table.where(row),
                expected=f"an answer that begins within data.max_tokens = {settings.max_tokens}",
                got="a prompt that fills them, or an empty answer",
                hint="Raise data.max_tokens, or shorten the row or take it out.",
            )
        examples.append(_example(tokens, targets, table, row))
    return examples


def _example(tokens: Sequence[int], targets: Sequence[int], table: Table, row: int) -> Example:
    if not tokens:
        raise DataError(table.where(row), expected="a text of at least one token", got="none")
    return Example(np.array(tokens, dtype=np.int32), np.array(targets, dtype=np.int64))


def _checked(value: object, table: Table, row: int, column: str) -> list[dict[str, str]]:
    """``value`` as a list of messages with known roles and at least one answer."""
    expected = f'a list of {{"role", "content"}} in column {column!r}'
    if not isinstance(value, list) or not value:
        raise DataError(
            table.where(row),
            expected=expected,
            got=f"{type(value).__name__} {value!r:.40}",
            hint="CSV cannot hold lists: use JSONL or Parquet.",
        )
    messages = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(content, str) or not content.strip():
            raise DataError(
                table.where(row),
                expected=f"{expected}, role one of {', '.join(_ROLES)}",
                got=f"{message!r:.60}",
            )
        messages.append({"role": role, "content": content})
    if all(message["role"] != "assistant" for message in messages):
        raise DataError(table.where(row), expected=f"an answer of the assistant in {column!r}", got="none")
    return messages
