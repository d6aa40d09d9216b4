"""Rows to token ids: one function per kind of data, and :class:`Tokenizer`, what they need of a tokenizer."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from headwater.config.data import CausalLMData, ClassificationData, InstructionData
from headwater.data.batches import IGNORED, Example
from headwater.data.conversations import conversation_of
from headwater.data.files.layouts import texts_of
from headwater.data.files.table import Table
from headwater.data.labels import label_of
from headwater.data.row_report import RowReport
from headwater.errors import DataError, ModelError

Message = Mapping[str, Any]
"""One message of a conversation: ``role`` and ``content``, and whatever else the model's template reads."""


_WHOLE = 1 << 30
"""More tokens than any text has."""

_AROUND = 8
"""Tokens that a model puts around a text, at most."""


class ChatTokens(Protocol):
    """One sequence of a conversation, as :meth:`Tokenizer.chat` gives it."""

    @property
    def tokens(self) -> Sequence[int]:
        """Ids, at most ``max_tokens``."""

    @property
    def loss(self) -> Sequence[bool]:
        """For each token whether it has loss: true in the assistant's answers only."""

    @property
    def cut(self) -> bool:
        """Whether tokens beyond ``max_tokens`` were cut off."""

    @property
    def cut_answer(self) -> bool:
        """Whether the cut took the end of an answer: what is left teaches no end."""

    @property
    def remarks(self) -> Sequence[str]:
        """What else was done to the messages: kinds of :mod:`headwater.data.row_report`."""


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

    def encode(self, text: str, max_tokens: int, pair: str | None = None) -> list[int]:
        """Ids of a text, or of a pair of texts, with the model's special tokens, cut to ``max_tokens``."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the whole text, no special tokens."""

    def prompt(self, text: str) -> list[int]:
        """Ids of a running text that goes on: what the model expects before it, and no end."""

    def has_control_text(self, text: str) -> bool:
        """Whether the characters of a control token are in ``text``; they are read as text."""

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        *,
        date: datetime.date,
        thinking: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> Sequence[ChatTokens]:
        """A conversation in the model's chat template.

        Args:
            messages: with every key that the row has. An answer with ``weight`` 0 has no loss.
            max_tokens: what is beyond is cut off.
            date: what the template takes for today.
            thinking: whether the model is asked to think before it answers.
            tools: JSON schemas of the functions that the model may call, for the template.

        Returns:
            One sequence; several where the template shows an earlier turn otherwise than it was said.
            Each answer has loss in one of them.
        """


def tokenise_classification(
    table: Table,
    rows: Iterable[int],
    settings: ClassificationData,
    tokenizer: Tokenizer,
    report: RowReport | None = None,
) -> list[Example]:
    """One example per row: at most ``max_tokens`` tokens of its text or pair, and the label's index."""
    examples = []
    for row in rows:
        tokens = encode_row(table, row, settings, tokenizer, report)
        examples.append(_example(tokens, [label_of(table, row, settings)]))
    return examples


def encode_row(
    table: Table,
    row: int,
    settings: ClassificationData,
    tokenizer: Tokenizer,
    report: RowReport | None = None,
) -> list[int]:
    """The ids that a classifier reads of a row, at most ``max_tokens``.

    Raises:
        DataError: no text, or none of it among the tokens: the tokenizer or ``max_tokens`` leaves nothing.
    """
    text, pair = texts_of(table, row, settings)
    with _at(table, row):
        tokens = tokenizer.encode(text, settings.max_tokens, pair)
        if report is not None:
            full = len(tokens) >= settings.max_tokens
            if full and len(tokenizer.encode(text, _WHOLE, pair)) > settings.max_tokens:
                report.note(["cut"], table.where(row))
            control = any(tokenizer.has_control_text(part) for part in (text, pair) if part)
            report.note(["control-text"] * control, table.where(row))
    _require_text(tokens, text, pair, settings.max_tokens, tokenizer, table.where(row))
    return tokens


def _require_text(
    tokens: Sequence[int], text: str, pair: str | None, most: int, tokenizer: Tokenizer, where: str
) -> None:
    """Refuse a row of which a text is not read at all, but only what the model puts around every text."""
    if len(tokens) > _AROUND and pair is None:
        return
    alone = [len(tokenizer.encode_plain(part)) for part in ([text] if pair is None else [text, pair])]
    if not tokens or not all(alone):
        raise DataError(
            where,
            expected="a text of at least one token" if pair is None else "texts of at least one token each",
            got="none: the model's tokenizer drops every character",
            hint="Take the row out.",
        )
    around = len(tokenizer.encode(text, _WHOLE, pair)) - sum(alone)
    which, those = ("the text", "a text") if pair is None else ("both texts", "two texts")
    if len(tokens) > most or len(tokens) < around + len(alone):
        raise DataError(
            where,
            expected=f"some of {which} within data.max_tokens = {most}",
            got=f"{around} tokens that the model puts around {those}",
            hint="Raise data.max_tokens.",
        )


def tokenise_causal(
    table: Table,
    rows: Iterable[int],
    settings: CausalLMData,
    tokenizer: Tokenizer,
    report: RowReport | None = None,
) -> list[Example]:
    """Windows of at most ``max_tokens`` tokens; a window never holds two documents.

    A window begins with the last token of the one before it, as context without loss. So every token
    of a document but its first is predicted exactly once, whatever ``max_tokens`` is. A document of
    one token has nothing to predict and gives no example; ``report`` is told.
    """
    examples = []
    for row in rows:
        text = table.text(settings.text, row)
        with _at(table, row):
            tokens = tokenizer.prompt(text)
            if report is not None:
                report.note(["control-text"] * tokenizer.has_control_text(text), table.where(row))
        if tokenizer.eos is not None:
            tokens = [*tokens, tokenizer.eos]
        if report is not None and len(tokens) < 2:
            report.note(["nothing"], table.where(row))
        for start in range(0, len(tokens) - 1, settings.max_tokens - 1):
            window = tokens[start : start + settings.max_tokens]
            examples.append(_example(window, [IGNORED, *window[1:]]))
    return examples


def tokenise_instruction(
    table: Table,
    rows: Iterable[int],
    settings: InstructionData,
    tokenizer: Tokenizer,
    report: RowReport | None = None,
) -> list[Example]:
    """A row's conversation, with loss on the answers only: one example, or several (:meth:`Tokenizer.chat`).

    Args:
        table: the rows.
        rows: which of them.
        settings: ``[data]``.
        tokenizer: the base model's.
        report: is told what was done to which row.

    Raises:
        DataError: the template refuses a row, or nothing of its answers is left within ``max_tokens``.
    """
    examples = []
    for row in rows:
        said = conversation_of(table, row, settings)
        with _at(table, row):
            parts = tokenizer.chat(
                said.messages,
                settings.max_tokens,
                date=settings.date,
                thinking=settings.thinking,
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
                report.note(part.remarks, table.where(row))
                report.note(["cut"] * part.cut + ["cut-answer"] * part.cut_answer, table.where(row))
            if any(target != IGNORED for target in targets):
                found.append(_example(part.tokens, targets))
        if not found:
            cut = any(part.cut for part in parts)
            raise DataError(
                table.where(row),
                expected=f"an answer that begins within data.max_tokens = {settings.max_tokens}"
                if cut
                else "an answer with something to learn from",
                got="a prompt that fills them" if cut else "none, or weight 0 on each",
                hint="Raise data.max_tokens, or shorten the row or take it out."
                if cut
                else "Take the row out.",
            )
        examples += found
    return examples


@contextlib.contextmanager
def _at(table: Table, row: int) -> Iterator[None]:
    """What the tokenizer says of a text, said of the row that has it."""
    try:
        yield
    except DataError as error:
        got = f"{error.got} ({error.who})"
        raise DataError(table.where(row), expected=error.expected, got=got, hint=error.hint) from error


def _example(tokens: Sequence[int], targets: Sequence[int]) -> Example:
    return Example(np.array(tokens, dtype=np.int32), np.array(targets, dtype=np.int64))
