"""Chat: conversations as token ids, each answer in the context in which it will be asked for.

An answer's loss begins where the prompt ends that :meth:`Chat.prompt` asks with, and ends with the token that
the template puts after an answer. Templates are asked, not trusted, for both:

* Most open the assistant's turn, for generation, with the text that also stands before a finished answer.
* Some open it with a thought (``<think>``) that a finished answer does not have. Where an argument of the
  template makes both the same (``enable_thinking = False``) it is given in training and in prediction. Where
  none does, the answer is put after the opening, with the thought closed first.
* Some show earlier answers otherwise than they were said, without their thoughts above all. Then a
  conversation is several sequences, one for each answer that the next turn shows otherwise.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from headwater.adapters.reading.chat_answer import THOUGHTS, Answers
from headwater.adapters.reading.chat_template import ChatTemplate, Messages
from headwater.adapters.reading.chat_turn import THINK, UNTHINK, Turn, Turns
from headwater.adapters.reading.plain_text import PlainText
from headwater.errors import DataError, ModelError

_ANY_DATE = datetime.date(2024, 7, 26)
_ASKED = {"role": "user", "content": "a"}
_FUNCTION: dict[str, Any] = {"name": "headwater", "arguments": {"a": 1}}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "abcdefghi", "function": _FUNCTION}],
}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "description": "a"}}, "required": ["a"]}
_TOOL = {
    "type": "function",
    "function": {"name": "headwater", "description": "a", "parameters": _SCHEMA},
}


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """One sequence of a conversation.

    Args:
        tokens: ids.
        loss: for each whether it has loss.
        cut: whether tokens beyond the limit were cut off.
        cut_answer: whether the cut took the end of an answer.
        remarks: what else was done to the messages: kinds of ``headwater.data.row_report``.
    """

    tokens: list[int]
    loss: list[bool]
    cut: bool = False
    cut_answer: bool = False
    remarks: tuple[str, ...] = ()

    def within(self, max_tokens: int) -> ChatTokens:
        """These tokens, cut to ``max_tokens``."""
        if len(self.tokens) <= max_tokens:
            return self
        tokens, loss = self.tokens[:max_tokens], self.loss[:max_tokens]
        return ChatTokens(tokens, loss, True, self.loss[max_tokens], self.remarks)


@dataclass(frozen=True)
class Known:
    """A text whose ids are known."""

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Said:
    """An answer: the ids of what stands before it, and whether a token ends it."""

    prompt: list[int]
    ended: bool


class Chat:
    """Conversations by a tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        template: its template.
        name: the base model, for messages.
        control: ids of its control tokens; those that the template itself writes are added.

    Attributes:
        text: how user text is read.

    Raises:
        ModelError: the template cannot be used.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, name: str, control: Sequence[int]
    ) -> None:
        self._tokenizer, self._template, self._name = tokenizer, template, name
        self._turns = Turns(tokenizer, template, name, control)
        self._split: dict[int, bool] = {}
        self._control = self._turns.control() | set(self._turns.added.values())
        self.text = PlainText(tokenizer, name, self._turns.control())

    def turn(self, *, thinking: bool) -> Turn:
        """How the assistant's turn is opened and ended.

        Raises:
            ModelError: ``thinking`` with a template that shows no thought.
        """
        return self._turns.of(thinking=thinking)

    def ends(self, *, thinking: bool) -> list[int]:
        """Ids of the tokens that training puts after an answer, and after a call of a tool."""
        end = self.turn(thinking=thinking).end or self._turns.eos
        found = [] if end is None else [int(self._tokenizer.convert_tokens_to_ids(end))]
        for tools in ((), (_TOOL,)):
            try:
                _, call, ended = self._answers(_ANY_DATE, thinking, tools).last([_ASKED, _CALL])
            except (DataError, ModelError):  # a template without calls
                continue
            tokens = self.text.encode_template(call, {})
            if ended and "headwater" in call and tokens[-1] not in found and tokens[-1] in self._control:
                found.append(tokens[-1])
        return found

    def without_opening(self, said: list[int], *, thinking: bool) -> list[int]:
        """An answer without what opens a plain one, such as an empty thought; ``thinking`` keeps it all."""
        if thinking:
            return said
        opening = self.text.encode_template(self.turn(thinking=False).opening, {})
        if said[: len(opening)] == opening:
            return said[len(opening) :]
        closed = self._turns.added.get(UNTHINK)  # a thought, though none was asked for
        return said[said.index(closed) + 1 :] if closed in said else said

    def prompt(
        self,
        messages: Messages,
        *,
        date: datetime.date,
        thinking: bool,
        tools: Sequence[Any] | None = None,
    ) -> list[int]:
        """A conversation up to where the assistant speaks next, as ids.

        Earlier answers are read in the same steps as in training: letters that training keeps apart at
        the border of a prompt and an answer are apart here.
        """
        hidden, tools, placeholders = self._hidden(messages, tools)
        answers = self._answers(date, thinking, tools)
        known = Known("", [])
        for i, message in enumerate(messages):
            if message.get("role") == "assistant":
                try:
                    _, known = self._said(answers, hidden[: i + 1], known, placeholders)
                except DataError:  # no training showed it; what was said is context all the same
                    known = Known("", [])
        return self._encode(answers.asked(hidden), known, placeholders)

    def sequences(
        self,
        messages: Messages,
        max_tokens: int,
        *,
        date: datetime.date,
        thinking: bool,
        tools: Sequence[Any] | None = None,
    ) -> list[ChatTokens]:
        """A conversation as sequences of ids with loss on the answers, each cut to ``max_tokens``.

        What comes after an answer whose prompt is beyond them is not read.

        Raises:
            ModelError: the template cannot be used.
            DataError: it refuses these messages, or shows an answer otherwise than it asks for it.
        """
        remarks = self._answers(date, thinking, tools).unread(messages)
        shown, tools, placeholders = self._hidden(messages, tools)
        remarks += [f"frame-text:{mark}" for mark in self._turns.spelled]
        if placeholders:
            remarks.append("control-text")
        answers = self._answers(date, thinking, tools)
        found: list[tuple[list[int], list[bool]]] = []
        known = Known("", [])
        loss: list[bool] = []
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            if i == 0:
                remarks.append("opening")
            try:
                said, after = self._said(answers, shown[: i + 1], known, placeholders)
            except DataError:
                if i or len(messages) == 1:
                    raise
                continue  # a template that renders no answer before a question: it stays context
            extends = said.prompt[: len(known.tokens)] == known.tokens
            if len(said.prompt) > max_tokens and (extends or not _thinks(messages)):
                remarks.append("cut")
                if not extends:
                    found.append((known.tokens, loss))
                    loss = []
                loss += [False] * (len(said.prompt) - len(loss))
                known = Known("", said.prompt)
                answers.render(shown)  # the template must accept what is cut off too
                break
            if not said.ended:
                remarks.append("no-end")
            if not extends:
                found.append((known.tokens, loss))
                known, loss = Known("", []), []
            loss += [False] * (len(said.prompt) - len(known.tokens))
            known = after
            loss += [message.get("weight") not in (0, 0.0, False)] * (len(known.tokens) - len(said.prompt))
        else:
            whole = self._encode(answers.render(shown), known, placeholders)
            if whole[: len(known.tokens)] == known.tokens:
                loss += [False] * (len(whole) - len(known.tokens))
                known = Known("", whole)
        found.append((known.tokens, loss))
        kept = [(tokens, on) for tokens, on in found if any(on)] or [(known.tokens, loss)]
        return [ChatTokens(tokens, on, remarks=tuple(remarks)).within(max_tokens) for tokens, on in kept]

    def _answers(self, date: datetime.date, thinking: bool, tools: Sequence[Any] | None) -> Answers:
        return Answers(
            self._template, self._turns, self.text, self._name, date=date, thinking=thinking, tools=tools
        )

    def _said(
        self, answers: Answers, messages: Messages, known: Known, placeholders: dict[str, str]
    ) -> tuple[Said, Known]:
        """The last of ``messages``, an answer, and all up to its end; ``known`` ends with the answer before.

        Raises:
            DataError: the template refuses it, or shows it otherwise than it asks for it.
        """
        before, answer, ended = answers.last(messages)
        prompt = self._encode(before, known, placeholders)
        if prompt[: len(known.tokens)] != known.tokens:
            known = Known("", [])
        whole = self._encode(before + answer, known, placeholders)
        if whole[: len(prompt)] != prompt:
            whole = prompt + self._alone(answer, placeholders)
        return Said(prompt, ended), Known(before + answer, whole)

    def _encode(self, text: str, known: Known, hidden: dict[str, str]) -> list[int]:
        """The ids of ``text``, which may begin with one whose ids are known."""
        if known.text and text.startswith(known.text) and self._splits(known.tokens[-1]):
            return known.tokens + self.text.encode_template(text[len(known.text) :], hidden)
        return self.text.encode_template(text, hidden)

    def _splits(self, end: int) -> bool:
        """Whether what follows the token ``end`` is read as if it stood alone."""
        if end not in self._split:
            name = str(self._tokenizer.convert_ids_to_tokens(end))
            alone = self.text.encode_template(name, {}) == [end]
            self._split[end] = alone and all(
                self.text.encode_template(name + text, {}) == [end, *self.text.encode_template(text, {})]
                for text in ("\nuser", "the end", " the end", "\n\n the", "<|x|>")
            )
        return self._split[end]

    def _alone(self, answer: str, hidden: dict[str, str]) -> list[int]:
        """The ids of an answer whose first letters would join the prompt's last ones.

        Read after a line end, so that no space is put before it as before the first word of a text.
        """
        line = self.text.encode_template("\n", {})
        after = self.text.encode_template("\n" + answer, hidden)
        return after[len(line) :] if after[: len(line)] == line else self.text.encode_template(answer, hidden)

    def _hidden(
        self, messages: Messages, tools: Sequence[Any] | None
    ) -> tuple[list[dict[str, Any]], Sequence[Any] | None, dict[str, str]]:
        """The messages with placeholders for the control tokens in their texts, and the placeholders."""
        taken = "\n".join(_strings([*messages, *(tools or ())]))
        if not self.text.within(taken):
            return [dict(m) for m in messages], tools, {}
        placeholders = self.text.placeholders(taken)
        thoughts = {p: name for name, p in placeholders.items() if name in (THINK, UNTHINK)}

        def hide(text: str) -> str:
            return self.text.hide(text, placeholders)

        def hide_said(text: str) -> str:  # the assistant may think, and nobody else
            return "".join(thoughts.get(character, character) for character in hide(text))

        said = [_mapped(m, hide_said if m.get("role") == "assistant" else hide) for m in messages]
        return said, _mapped(tools, hide), placeholders


def _thinks(messages: Messages) -> bool:
    """Whether an answer has a thought: without it, as some templates show it later, a prompt is shorter."""
    return any(
        m.get("role") == "assistant" and (any(m.get(t) for t in THOUGHTS) or UNTHINK in str(m.get("content")))
        for m in messages
    )


def _strings(value: Any) -> list[str]:  # noqa: ANN401 - whatever JSON holds
    """Every text in ``value``, names of keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []


def _mapped(value: Any, change: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """``value`` with ``change`` made to every text in it, names of keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
