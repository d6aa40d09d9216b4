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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from headwater.adapters.chat_template import ChatTemplate, Messages
from headwater.adapters.plain_text import PlainText
from headwater.errors import DataError, ModelError

_PLAIN: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
_THINKING: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True}, {"thinking": True})
_QUESTION, _ANSWER, _THOUGHT = "Qqqq", "Zzzz", "Rrrr"
_ASKED = {"role": "user", "content": _QUESTION}
_EPOCH = datetime.date(2024, 7, 26)
THINK, UNTHINK = "<think>", "</think>"


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


@dataclass(frozen=True)
class Known:
    """A text whose ids are known."""

    text: str
    tokens: list[int]


class Chat:
    """Conversations by a tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        template: its template.
        name: the base model, for messages.
        control: ids of its control tokens; those that the template itself writes are added.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, name: str, control: Sequence[int]
    ) -> None:
        self._tokenizer, self._template, self._name = tokenizer, template, name
        self._eos = None if tokenizer.eos_token_id is None else str(tokenizer.eos_token)
        self._turns: dict[bool, Turn] = {}
        self._split: dict[int, bool] = {}
        added = {str(token): i for token, i in tokenizer.get_added_vocab().items() if not token.isspace()}
        special = {str(tokenizer.convert_ids_to_tokens(i)) for i in control}
        self._added = {**added, **{token: tokenizer.convert_tokens_to_ids(token) for token in special}}
        longest = sorted(self._added, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest)) or "(?!)")
        turn = self.turn(thinking=False)
        asked = self._probe([_ASKED], prompt=False, arguments=turn.arguments)
        frame = {token for token in added if token in asked.replace(_QUESTION, "")}
        ends = {token for token in (turn.end,) if token}
        self.text = PlainText(tokenizer, name, {self._added[token] for token in special | frame | ends})

    def ends(self, *, thinking: bool) -> list[int]:
        """Ids of the tokens that training puts after an answer."""
        end = self.turn(thinking=thinking).end or self._eos
        return [] if end is None else [int(self._tokenizer.convert_tokens_to_ids(end))]

    def without_opening(self, said: list[int], *, thinking: bool) -> list[int]:
        """An answer without what opens a plain one, such as an empty thought; ``thinking`` keeps it all."""
        if thinking:
            return said
        opening = self.text.encode_template(self.turn(thinking=False).opening, {})
        if said[: len(opening)] == opening:
            return said[len(opening) :]
        closed = self._added.get(UNTHINK)  # a thought, though none was asked for
        return said[said.index(closed) + 1 :] if closed in said else said

    def prompt(
        self,
        messages: Messages,
        *,
        date: datetime.date,
        thinking: bool,
        tools: Sequence[Any] | None = None,
    ) -> list[int]:
        """A conversation up to where the assistant speaks next, as ids."""
        hidden, tools, placeholders = self._hidden(messages, tools)
        text = self._asked(hidden, date, self.turn(thinking=thinking), tools)
        return self.text.encode_template(text, placeholders)

    def sequences(
        self,
        messages: Messages,
        *,
        date: datetime.date,
        thinking: bool,
        tools: Sequence[Any] | None = None,
    ) -> list[ChatTokens]:
        """A conversation with its answers, as sequences of ids with loss on the answers.

        Raises:
            ModelError: the template cannot be used.
            DataError: it refuses these messages, or shows an answer otherwise than it asks for it.
        """
        turn = self.turn(thinking=thinking)
        remarks = self._unread(messages, date, turn, tools)
        shown, tools, placeholders = self._hidden(messages, tools)
        if placeholders:
            remarks.append("control-text")
        found: list[tuple[list[int], list[bool]]] = []
        known = Known("", [])
        loss: list[bool] = []
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            if i == 0:
                remarks.append("opening")
            try:
                before, answer, ended = self._answer(shown[: i + 1], date, turn, tools)
            except DataError:
                if i or len(messages) == 1:
                    raise
                continue  # a template that renders no answer before a question: it stays context
            if not ended:
                remarks.append("no-end")
            prompt = self._encode(before, known, placeholders)
            if prompt[: len(known.tokens)] != known.tokens:
                found.append((known.tokens, loss))
                known, loss = Known("", []), []
            loss += [False] * (len(prompt) - len(known.tokens))
            whole = self._encode(before + answer, known, placeholders)
            if whole[: len(prompt)] != prompt:
                whole = prompt + self._alone(answer, placeholders)
            loss += [message.get("weight") not in (0, 0.0, False)] * (len(whole) - len(prompt))
            known = Known(before + answer, whole)
        whole = self._encode(self._render(shown, date, turn, tools), known, placeholders)
        if whole[: len(known.tokens)] == known.tokens:
            loss += [False] * (len(whole) - len(known.tokens))
            known = Known("", whole)
        found.append((known.tokens, loss))
        kept = [ChatTokens(t, on, remarks=tuple(remarks)) for t, on in found if any(on)]
        return kept or [ChatTokens(known.tokens, loss, remarks=tuple(remarks))]

    def turn(self, *, thinking: bool) -> Turn:
        """How the assistant's turn is opened and ended: found once, by rendering an answer.

        Raises:
            ModelError: ``thinking`` with a template that shows no thought.
        """
        if thinking not in self._turns:
            self._turns[thinking] = self._find_turn(thinking)
        return self._turns[thinking]

    def _find_turn(self, thinking: bool) -> Turn:
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
            shown = _ANSWER in said[len(asked) :] and (not thinking or _THOUGHT in said[len(asked) :])
            if said.startswith(asked) and shown:
                opening = said[len(asked) :].partition(_ANSWER)[0].replace(_THOUGHT, "")
                return Turn(arguments, True, opening, "", *self._end(arguments, said))
        asked, said = self._probed({}, thinking)
        if _ANSWER not in said:
            raise self._unusable("one that shows the answer", said)
        shared = self._shared(asked, said)
        opened = asked[len(shared) :].strip()
        ending = self._end({}, said)
        if opened.endswith(THINK):  # the thought is closed, or told and closed, before the answer
            closing = f"\n{UNTHINK}\n\n" if asked.endswith("\n") else UNTHINK
            _, thought = self._probed({}, thinking=True)
            if thought.startswith(asked) and _THOUGHT in thought:
                closing = thought.partition(_THOUGHT)[2].partition(_ANSWER)[0]
            return Turn({}, False, closing, closing, *ending)
        if thinking:
            raise self._unusable("one that shows an answer's reasoning_content", said)
        _, thought = self._probed({}, thinking=True)
        if thought.startswith(asked) and _THOUGHT in thought and _ANSWER in thought:
            closing = thought.partition(_THOUGHT)[2].partition(_ANSWER)[0]
            return Turn({}, False, closing, closing, *ending)
        if any(opened.endswith(token) for token in self._added):  # a thought that is closed at once
            put = said[len(shared) :].partition(_ANSWER)[0]
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
        answer = {"role": "assistant", "content": _ANSWER, **thought}
        asked = self._probe([_ASKED], prompt=True, arguments=arguments)
        return asked, self._probe([_ASKED, answer], prompt=False, arguments=arguments)

    def _end(self, arguments: Mapping[str, Any], said: str) -> tuple[str | None, str]:
        """The control token that ends an answer, and all that stands after one.

        It is the last one of what stands there whether or not the conversation goes on; else the first.
        The model's own end of a text goes before others.
        """
        tail = said.rpartition(_ANSWER)[2]
        try:
            answer = {"role": "assistant", "content": _ANSWER}
            on = self._probe([_ASKED, answer, _ASKED], prompt=False, arguments=arguments)
            lasting = _common_prefix(tail, on.partition(_ANSWER)[2])
        except DataError:
            lasting = ""
        for text in (lasting, tail):
            if self._eos is not None and self._eos in text:
                return self._eos, tail
            if found := self._known.findall(text):
                return found[-1 if text is lasting else 0], tail
        return None, tail

    def _answer(
        self, messages: Messages, date: datetime.date, turn: Turn, tools: Sequence[Any] | None
    ) -> tuple[str, str, bool]:
        """The prompt before the last message, that message as it is said, and whether a token ends it."""
        said = self._render(messages, date, turn, tools)
        if len(messages) == 1:  # nobody asked: no prompt is wanted, and many templates have none
            before = self._before_content(messages, said, date, turn, tools)
            return before, *self._ended(said[len(before) :], turn)
        before = self._asked(messages[:-1], date, turn, tools)
        if said.startswith(before):
            return before, *self._ended(said[len(before) :], turn)
        opening = before.removeprefix(_common_prefix(before, self._render(messages[:-1], date, turn, tools)))
        header = self._before_content(messages, said, date, turn, tools)
        if header.endswith(opening):  # the history differs: with a system message, or without thoughts
            return before, *self._ended(said[len(header) :], turn)
        if not turn.opens:
            return before, *self._ended(self._inserted(before, header, said, messages[-1], turn), turn)
        shared = self._shared(before, said)
        raise DataError(
            f"chat template of {self._name}",
            expected=f"an answer that begins as the template opens it, with {before[len(shared) :][:40]!r}",
            got=f"{said[len(shared) :][:40]!r} in message {len(messages)}",
            hint="Give every answer its reasoning_content."
            if turn is self._turns.get(True)
            else "If the answers come with their reasoning, set data.thinking = true.",
        )

    def _before_content(
        self,
        messages: Messages,
        said: str,
        date: datetime.date,
        turn: Turn,
        tools: Sequence[Any] | None,
    ) -> str:
        """What stands before the text of the last message in ``said``: found by saying something else."""
        answer = messages[-1]
        content = str(answer.get("content") or "")
        other = self._render([*messages[:-1], {**answer, "content": _ANSWER}], date, turn, tools)
        before = _common_prefix(said, other)
        return before[: len(before) - _overlap(before, content, _ANSWER)]

    def _inserted(self, before: str, header: str, said: str, answer: Mapping[str, Any], turn: Turn) -> str:
        """An answer after the opening of ``before``, which the template does not show with it."""
        thought = answer.get("reasoning_content") or answer.get("reasoning") or answer.get("thinking")
        begun = str(answer.get("content") or "").lstrip()
        told = begun.startswith(THINK) and UNTHINK in begun  # the thought in the answer itself
        if answer.get("tool_calls") or (told and not turn.closing):
            raise DataError(
                f"chat template of {self._name}",
                expected="answers in words: it opens each with a thought, and does not show this one with it",
                got="tool_calls" if answer.get("tool_calls") else f"an answer that begins with {THINK}",
                hint="Take it out, or use another chat_template.jinja.",
            )
        spoken = said[len(header) :]
        if not turn.closing:
            shared = self._shared(before, said)
            put = header[len(shared) :]
            return spoken if before[len(shared) :].endswith(put) else put + spoken
        if thought:
            return str(thought).strip() + turn.closing + spoken
        if told and before.rstrip().endswith(THINK):
            inside = begun[len(THINK) :]
            return (inside.removeprefix("\n") if before.endswith("\n") else inside) + turn.tail
        return turn.closing + spoken

    def _ended(self, said: str, turn: Turn) -> tuple[str, bool]:
        """``said`` up to the token that ends the turn, and whether there is one."""
        if turn.end is not None:
            at = said.rfind(turn.end)
            through = at + len(turn.end) if at >= 0 else self.text.last(said)  # a call may end otherwise
            if through:
                return said[:through], True
        said = said.removesuffix(turn.tail) if turn.tail.isspace() else said
        return (said, False) if self._eos is None else (said + self._eos, True)

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

    def _unread(
        self, messages: Messages, date: datetime.date, turn: Turn, tools: Sequence[Any] | None
    ) -> list[str]:
        """Remarks on what the template's text does not depend on."""
        found: dict[str, None] = {}
        for i, message in enumerate(messages):
            extra = [key for key in message if key not in ("role", "content", "weight")]
            if not extra:
                continue
            said = self._render(messages[: i + 1], date, turn, tools)
            if turn.closing and message.get("role") == "assistant":
                extra = [key for key in extra if key not in ("reasoning_content", "reasoning", "thinking")]
            for key in extra:
                without = {k: v for k, v in message.items() if k != key}
                if said == self._render([*messages[:i], without], date, turn, tools):
                    found[f"unread-key:{key}"] = None
        if tools and self._render(messages, date, turn, tools) == self._render(messages, date, turn, None):
            found["unread-key:tools"] = None
        return list(found)

    def _shared(self, left: str, right: str) -> str:
        """What both begin with, without a part of a token at its end."""
        end = len(_common_prefix(left, right))
        for text in (left, right):
            inside = (m.start() for m in self._known.finditer(text) if m.start() < end < m.end())
            end = min(end, next(inside, end))
        return left[:end]

    def _render(
        self, messages: Messages, date: datetime.date, turn: Turn, tools: Sequence[Any] | None
    ) -> str:
        return self._template.render(messages, prompt=False, date=date, arguments=turn.arguments, tools=tools)

    def _asked(self, messages: Messages, date: datetime.date, turn: Turn, tools: Sequence[Any] | None) -> str:
        return self._template.render(messages, prompt=True, date=date, arguments=turn.arguments, tools=tools)

    def _probe(self, messages: Messages, *, prompt: bool, arguments: Mapping[str, Any] | None = None) -> str:
        return self._template.render(messages, prompt=prompt, date=_EPOCH, arguments=arguments)


def _common_prefix(left: str, right: str) -> str:
    end = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    return left[: min(len(left), len(right)) if end is None else end]


def _overlap(shared: str, content: str, other: str) -> int:
    """How many of the last characters of ``shared`` are the first that ``content`` and ``other`` share."""
    both = len(_common_prefix(content.lstrip(), other))
    return next((n for n in range(both, 0, -1) if shared.endswith(other[:n])), 0)


def _strings(value: Any) -> list[str]:  # noqa: ANN401 - whatever JSON holds
    """Every text in ``value``."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []


def _mapped(value: Any, change: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """``value`` with ``change`` made to every text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
