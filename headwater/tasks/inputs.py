"""What a task is given: a :class:`Row` and the base model's :class:`Tokenizer`; :func:`encode_texts`."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from headwater.errors import DataError

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


class Window(Protocol):
    """One sequence of tokens, as :meth:`Tokenizer.spans` gives it."""

    @property
    def tokens(self) -> Sequence[int]:
        """Ids, at most ``max_tokens``."""

    @property
    def spans(self) -> Sequence[tuple[int, int] | None]:
        """For each token its first character in the last text and the one after its last; None elsewhere."""


class Tokenizer(Protocol):
    """A base model's tokenizer, as the data room sees it. ``headwater.adapters`` has the real one.

    Attributes:
        pad: the id that fills up a batch.
        bos: the id that the model expects before a running text; None if it expects none.
        eos: the id that ends a running text; None if there is none.
        mask: the id that stands for a hidden token; None if there is none.
    """

    pad: int
    bos: int | None
    eos: int | None
    mask: int | None

    @property
    def size(self) -> int:
        """Ids below it are those of a token."""

    def encode(self, text: str, max_tokens: int, pair: str | None = None) -> list[int]:
        """Ids of a text, or of a pair of texts, with the model's special tokens, cut to ``max_tokens``."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the whole text, no special tokens."""

    def spell(self, tokens: Sequence[int]) -> str:
        """The text of ids, special tokens and all."""

    def prompt(self, text: str) -> list[int]:
        """Ids of a running text that goes on: what the model expects before it, and no end."""

    def has_control_text(self, text: str) -> bool:
        """Whether the characters of a control token are in ``text``; they are read as text."""

    def spans(self, text: str, max_tokens: int, pair: str | None = None, stride: int = 0) -> Sequence[Window]:
        """:meth:`encode` with where each token stands, in as many windows as the last text needs.

        Args:
            text: the text.
            max_tokens: of a window.
            pair: a second text; then it alone is divided, and ``text`` stands in every window.
            stride: tokens that two windows share.

        Raises:
            DataError: what is not divided leaves no room for more than ``stride`` tokens.
        """

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


class Said(Protocol):
    """A row's conversation."""

    @property
    def messages(self) -> Sequence[Message]:
        """``role`` and ``content`` each, and whatever else the row says of them."""

    @property
    def tools(self) -> Sequence[Any] | None:
        """JSON schemas of the functions that the model may call; None without."""


class Row(Protocol):
    """One row of the data, as files hold it. What is asked for and is not there is a DataError by line."""

    @property
    def where(self) -> str:
        """File and line, for errors."""

    def texts(self) -> tuple[str, str | None]:
        """The text, and the text that it is paired with: by ``[data]``'s columns, or recognised."""

    def conversation(self) -> Said:
        """The conversation of a row of instructions."""

    def value(self, column: str) -> object:
        """What the column holds: text, int, float, bool, list or dict; never None."""

    def optional(self, column: str) -> object | None:
        """What the column holds; None where this row has nothing there."""

    def written(self, column: str) -> str:
        """A text, which holds something other than white space."""

    def words(self, column: str) -> Sequence[str]:
        """At least one word: a list, or what spaces divide."""

    def name(self, column: str) -> str:
        """A text, or a number as ``str()`` writes it."""


class Report(Protocol):
    """Is told what was done to rows."""

    def note(self, kinds: Iterable[str], where: str) -> None:
        """Count ``kinds`` (of :mod:`headwater.data.row_report`) for the row at ``where``."""


def encode_texts(row: Row, max_tokens: int, tokenizer: Tokenizer, report: Report | None = None) -> list[int]:
    """The ids that a model reads of a row's text or pair, at most ``max_tokens``.

    Raises:
        DataError: no text, or none of it among the tokens: the tokenizer or ``max_tokens`` leaves nothing.
    """
    text, pair = row.texts()
    with at(row.where):
        tokens = tokenizer.encode(text, max_tokens, pair)
        if report is not None:
            full = len(tokens) >= max_tokens
            if full and len(tokenizer.encode(text, _WHOLE, pair)) > max_tokens:
                report.note(["cut"], row.where)
            control = any(tokenizer.has_control_text(part) for part in (text, pair) if part)
            report.note(["control-text"] * control, row.where)
    _require_text(tokens, text, pair, max_tokens, tokenizer, row.where)
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


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """What the tokenizer says of a text, said of the row that has it."""
    try:
        yield
    except DataError as error:
        got = f"{error.got} ({error.who})"
        raise DataError(where, expected=error.expected, got=got, hint=error.hint) from error
