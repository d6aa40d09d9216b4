"""Answers: where in a rendered conversation an answer begins and ends."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.adapters.reading.chat_template import ChatTemplate, Messages
from headwater.adapters.reading.chat_turn import ANSWER, THINK, UNTHINK, Turns, common_prefix
from headwater.adapters.reading.plain_text import PlainText
from headwater.errors import DataError

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names that a message's thought goes by."""


class Answers:
    """The answers of conversations on one date, with one set of tools.

    Args:
        template: the chat template.
        turns: how it opens and ends a turn.
        text: what its control tokens are.
        name: the base model, for messages.
        date: what the template takes for today.
        thinking: whether the model is asked to think.
        tools: JSON schemas of functions.

    Attributes:
        turn: how a turn is opened and ended here.
    """

    def __init__(
        self,
        template: ChatTemplate,
        turns: Turns,
        text: PlainText,
        name: str,
        *,
        date: datetime.date,
        thinking: bool,
        tools: Sequence[Any] | None,
    ) -> None:
        self._template, self._turns, self._text, self._name = template, turns, text, name
        self._date, self._thinking, self._tools = date, thinking, tools
        self.turn = turns.of(thinking=thinking)

    def render(self, messages: Messages) -> str:
        """``messages`` as text."""
        return self._rendered(messages, self._tools, prompt=False)

    def asked(self, messages: Messages) -> str:
        """``messages`` up to where the assistant speaks next."""
        return self._rendered(messages, self._tools, prompt=True)

    def last(self, messages: Messages) -> tuple[str, str, bool]:
        """The prompt before the last message, that message as it is said, and whether a token ends it."""
        said = self.render(messages)
        if len(messages) == 1:  # nobody asked: no prompt is wanted, and many templates have none
            before = self._before_content(messages, said)
            return before, *self._ended(said[len(before) :])
        before = self.asked(messages[:-1])
        if said.startswith(before):
            return before, *self._ended(said[len(before) :])
        opening = before.removeprefix(common_prefix(before, self.render(messages[:-1])))
        header = self._before_content(messages, said)
        if header.endswith(opening):  # the history differs: with a system message, or without thoughts
            return before, *self._ended(said[len(header) :])
        if not self.turn.opens:
            return before, *self._ended(self._inserted(before, header, said, messages[-1]))
        shared = self._turns.shared(before, said)
        raise DataError(
            f"chat template of {self._name}",
            expected=f"an answer that begins as the template opens it, with {before[len(shared) :][:40]!r}",
            got=f"{said[len(shared) :][:40]!r} in message {len(messages)}",
            hint=self._advice(messages),
        )

    def _advice(self, messages: Messages) -> str:
        """What helps where the last message does not begin as the template opens it."""
        if (
            messages[-2].get("role") == "assistant"
        ):  # no setting lets a template show both as it asks for them
            return "Two answers follow each other: join them into one, or take one of them out."
        if self._thinking:
            return "Give every answer its reasoning_content."
        return "If the answers come with their reasoning, set data.thinking = true."

    def _before_content(self, messages: Messages, said: str) -> str:
        """What stands before the text of the last message in ``said``: found by saying something else."""
        answer = messages[-1]
        content = str(answer.get("content") or "")
        other = self.render([*messages[:-1], {**answer, "content": ANSWER}])
        before = common_prefix(said, other)
        return before[: len(before) - _overlap(before, content, ANSWER)]

    def _inserted(self, before: str, header: str, said: str, answer: Mapping[str, Any]) -> str:
        """An answer after the opening of ``before``, which the template does not show with it."""
        thought = next((answer[name] for name in THOUGHTS if answer.get(name)), None)
        begun = str(answer.get("content") or "").lstrip()
        told = begun.startswith(THINK) and UNTHINK in begun  # the thought in the answer itself
        if answer.get("tool_calls") or (told and not self.turn.closing):
            raise DataError(
                f"chat template of {self._name}",
                expected="answers in words: it opens each with a thought, and does not show this one with it",
                got="tool_calls" if answer.get("tool_calls") else f"an answer that begins with {THINK}",
                hint="Take it out, or use another chat_template.jinja.",
            )
        spoken = said[len(header) :]
        if not self.turn.closing:
            shared = self._turns.shared(before, said)
            put = header[len(shared) :]
            return spoken if before[len(shared) :].endswith(put) else put + spoken
        if thought:
            return str(thought).strip() + self.turn.closing + spoken
        if told and before.rstrip().endswith(THINK):
            inside = begun[len(THINK) :]
            return (inside.removeprefix("\n") if before.endswith("\n") else inside) + self.turn.tail
        return self.turn.closing + spoken

    def _ended(self, said: str) -> tuple[str, bool]:
        """``said`` up to the token that ends the turn, and whether there is one."""
        if self.turn.end is not None:
            at = said.rfind(self.turn.end)
            # a call may end otherwise than an answer
            through = at + len(self.turn.end) if at >= 0 else self._text.last(said)
            if through:
                return said[:through], True
        said = said.removesuffix(self.turn.tail) if self.turn.tail.isspace() else said
        return (said, False) if self._turns.eos is None else (said + self._turns.eos, True)

    def unread(self, messages: Messages) -> list[str]:
        """Remarks on what the template's text does not depend on."""
        found: dict[str, None] = {}
        for i, message in enumerate(messages):
            named = ("role", "content", "weight", *(kind.partition(":")[2] for kind in found))
            extra = [key for key in message if key not in named]
            if not extra:
                continue
            if self.turn.closing and message.get("role") == "assistant":
                extra = [key for key in extra if key not in THOUGHTS]
            for key in extra:
                without = {k: v for k, v in message.items() if k != key}
                if self._alike(messages[: i + 1], [*messages[:i], without], messages[i + 1 :]):
                    found[f"unread-key:{key}"] = None
        if self._tools and self.render(messages) == self._rendered(messages, None, prompt=False):
            found["unread-key:tools"] = None
        return list(found)

    def _alike(self, left: Messages, right: Messages, rest: Messages) -> bool:
        """Whether both render to the same text; with ``rest`` after them, where alone they are refused."""
        try:
            return self.render(left) == self.render(right)
        except DataError:
            return self.render([*left, *rest]) == self.render([*right, *rest])

    def _rendered(self, messages: Messages, tools: Sequence[Any] | None, *, prompt: bool) -> str:
        return self._template.render(
            messages, prompt=prompt, date=self._date, arguments=self.turn.arguments, tools=tools
        )


def _overlap(shared: str, content: str, other: str) -> int:
    """How many of the last characters of ``shared`` are the first that ``content`` and ``other`` share."""
    both = len(common_prefix(content.lstrip(), other))
    return next((n for n in range(both, 0, -1) if shared.endswith(other[:n])), 0)
