"""Turns: how a chat template opens and ends the assistant's turn, found by rendering one."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from headwater.adapters.reading.chat_template import ChatTemplate, Messages
from headwater.adapters.reading.plain_text import one_of
from headwater.errors import DataError, ModelError

_PLAIN: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
_THINKING: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True}, {"thinking": True})
_QUESTION, ANSWER, _THOUGHT = "Qqqq", "Zzzz", "Rrrr"
_ASKED = {"role": "user", "content": _QUESTION}
_ANY_DATE = datetime.date(2024, 7, 26)
_MARK = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>")
THINK, UNTHINK = "<think>", "</think>"


@dataclass(frozen=True)
class Turn:
    """How a template opens and ends the assistant's turn.

    Args:
        arguments: of the template, in training and prediction alike.
        opens: whether a finished answer begins with what the template opens a turn with.
        opening: what a plain answer begins with after the prompt, such as an empty thought.
        closing: where ``opens`` is false, what ends the thought that the prompt opens; empty if the
            prompt ends it itself.
        end: the control token that ends an answer; None where there is none.
        tail: what the template puts after an answer.
    """

    arguments: Mapping[str, Any]
    opens: bool
    opening: str
    closing: str
    end: str | None
    tail: str


class Turns:
    """The turns of a template.

    Args:
        tokenizer: a transformers tokenizer.
        template: its template.
        name: the base model, for messages.
        control: ids of its control tokens.

    Attributes:
        added: ids by name of all tokens that stand apart from text; white space is none.
        eos: name of the token that ends a text; None without.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, name: str, control: Sequence[int]
    ) -> None:
        self._template, self._name = template, name
        self._found: dict[bool, Turn] = {}
        self._special = {str(tokenizer.convert_ids_to_tokens(i)): int(i) for i in control}
        added = {str(token): int(i) for token, i in tokenizer.get_added_vocab().items()}
        self.added = {token: i for token, i in added.items() if not token.isspace()} | self._special
        self.eos = None if tokenizer.eos_token_id is None else str(tokenizer.eos_token)
        self._known = one_of(self.added)

    def control(self) -> set[int]:
        """Ids of the control tokens, with those that the template writes around turns."""
        turn = self.of(thinking=False)
        frame = self._probe([_ASKED], prompt=False, arguments=turn.arguments).replace(_QUESTION, "")
        written = {token for token in self.added if token in frame or token == turn.end}
        return {self.added[token] for token in written} | set(self._special.values())

    @cached_property
    def spelled(self) -> list[str]:
        """Marks like ``<|im_end|>`` that the template writes and that are no token of the tokenizer."""
        _, said = self._probed(self.of(thinking=False).arguments, thinking=False)
        return sorted({mark for mark in _MARK.findall(said) if mark not in self.added})

    def of(self, *, thinking: bool) -> Turn:
        """How the assistant's turn is opened and ended: found once, by rendering an answer.

        Raises:
            ModelError: ``thinking`` with a template that shows no thought.
        """
        if thinking not in self._found:
            self._found[thinking] = self._find(thinking)
        return self._found[thinking]

    def _find(self, thinking: bool) -> Turn:
        for arguments in _THINKING if thinking else _PLAIN:
            try:
                asked, said = self._probed(arguments, thinking)
            except DataError as error:
                if arguments:
                    continue
                raise ModelError(
                    error.who,
                    expected="one that renders a question and an answer",
                    got=error.got,
                    hint="Use a model with a template for plain chats, or another chat_template.jinja.",
                ) from error
            shown = ANSWER in said[len(asked) :] and (not thinking or _THOUGHT in said[len(asked) :])
            if said.startswith(asked) and shown:
                opening = said[len(asked) :].partition(ANSWER)[0].replace(_THOUGHT, "")
                return Turn(arguments, True, opening, "", *self._end(arguments, said))
        asked, said = self._probed({}, thinking)
        if ANSWER not in said:
            raise self._unusable("one that shows the answer", said)
        shared = self.shared(asked, said)
        opened = asked[len(shared) :].strip()
        ending = self._end({}, said)
        if opened.endswith(THINK):  # the thought is closed, or told and closed, before the answer
            closing = f"\n{UNTHINK}\n\n" if asked.endswith("\n") else UNTHINK
            _, thought = self._probed({}, thinking=True)
            if thought.startswith(asked) and _THOUGHT in thought:
                closing = thought.partition(_THOUGHT)[2].partition(ANSWER)[0]
            return Turn({}, False, closing, closing, *ending)
        if thinking:
            raise self._unusable("one that shows an answer's reasoning_content", said)
        _, thought = self._probed({}, thinking=True)
        if thought.startswith(asked) and _THOUGHT in thought and ANSWER in thought:
            closing = thought.partition(_THOUGHT)[2].partition(ANSWER)[0]
            return Turn({}, False, closing, closing, *ending)
        if any(opened.endswith(token) for token in self.added):  # a thought that is closed at once
            put = said[len(shared) :].partition(ANSWER)[0]
            return Turn({}, False, "" if opened.endswith(put) else put, "", *ending)
        raise self._unusable(
            f"one that opens an answer, for generation, with what a finished one begins with: {opened!r}",
            said,
        )

    def _unusable(self, expected: str, said: str) -> ModelError:
        return ModelError(
            f"chat template of {self._name}",
            expected=expected,
            got=f"one that ends a conversation with {said[-60:]!r}",
            hint="Use another chat_template.jinja, or set data.thinking = false if it is true.",
        )

    def _probed(self, arguments: Mapping[str, Any], thinking: bool) -> tuple[str, str]:
        """A question's prompt, and the question with its answer."""
        thought = {"reasoning_content": _THOUGHT} if thinking else {}
        answer = {"role": "assistant", "content": ANSWER, **thought}
        asked = self._probe([_ASKED], prompt=True, arguments=arguments)
        return asked, self._probe([_ASKED, answer], prompt=False, arguments=arguments)

    def _end(self, arguments: Mapping[str, Any], said: str) -> tuple[str | None, str]:
        """The control token that ends an answer, and all that stands after one.

        It is the last one of what stands there whether or not the conversation goes on; else the first.
        The model's own end of a text goes before others.
        """
        tail = said.rpartition(ANSWER)[2]
        try:
            answer = {"role": "assistant", "content": ANSWER}
            on = self._probe([_ASKED, answer, _ASKED], prompt=False, arguments=arguments)
            lasting = common_prefix(tail, on.partition(ANSWER)[2])
        except DataError:
            lasting = ""
        for text in (lasting, tail):
            if self.eos is not None and self.eos in text:
                return self.eos, tail
            if found := self._known.findall(text):
                return found[-1 if text is lasting else 0], tail
        return None, tail

    def shared(self, left: str, right: str) -> str:
        """What both begin with, without a part of a token at its end."""
        end = len(common_prefix(left, right))
        for text in (left, right):
            inside = (m.start() for m in self._known.finditer(text) if m.start() < end < m.end())
            end = min(end, next(inside, end))
        return left[:end]

    def _probe(self, messages: Messages, *, prompt: bool, arguments: Mapping[str, Any] | None = None) -> str:
        return self._template.render(messages, prompt=prompt, date=_ANY_DATE, arguments=arguments)


def common_prefix(left: str, right: str) -> str:
    """What both begin with."""
    end = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    return left[: min(len(left), len(right)) if end is None else end]
