"""ChatTemplate: conversations as the text that a model's chat template makes of them, on no clock.

What a template may see is the conversation and a date that the federation file names. ``strftime_now``, by
which templates ask for today, gives that date in English whatever the locale; a template that draws at random
is refused. Two members render the same conversation to the same text on any day.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from headwater.errors import DataError, ModelError

Messages = Sequence[Mapping[str, Any]]

_OURS = ("weight",)
"""Keys of a message that are for training and not for the template."""

_ADDRESS = re.compile(r"<[^<>]{1,200} at 0x[0-9a-f]{6,16}>")
"""How Python writes an object that has no text of its own."""

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        name: the base model, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._printing: dict[str, bool] = {}

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """The template's own text.

        Raises:
            ModelError: the tokenizer has none, or one whose result is another each time.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise ModelError(
                f"tokenizer of {self._name}",
                expected="a chat template, which data.kind 'instruction' needs",
                got="none",
                hint='Use an instruction-tuned model, or data.kind = "causal-lm".',
            )
        try:
            source = str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several templates and none of them the default
            raise ModelError(
                f"chat template of {self._name}", expected="a default one", got=str(error)[:200]
            ) from None
        if drawn := _drawn(source):
            raise ModelError(
                f"chat template of {self._name}",
                expected="one that makes the same text of a conversation each time",
                got=f"{drawn!r} in it, which draws at random",
                hint="Take it out of the model's chat_template.jinja.",
            )
        return source

    def sha256(self, tools: Sequence[Any] | None = None) -> str:
        """SHA-256 (hex) of the template's text."""
        return hashlib.sha256(self.source(tools).encode()).hexdigest()

    def render(
        self,
        messages: Messages,
        *,
        prompt: bool,
        date: datetime.date,
        arguments: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
    ) -> str:
        """``messages`` as text.

        Args:
            messages: with the keys that the template reads.
            prompt: whether the opening of the assistant's next turn comes after them.
            date: what the template takes for today.
            arguments: of the template, such as ``enable_thinking``.
            tools: JSON schemas of functions.

        Raises:
            ModelError: no template, or one that is no valid Jinja.
            DataError: the template refuses these messages, for example by the order of their roles.
        """
        source = self.source(tools)
        if "strftime_now" in source:
            source = clock(date) + source
        said = [{key: value for key, value in m.items() if key not in _OURS} for m in messages]
        options = {
            "tools": list(tools) if tools else None,
            "add_generation_prompt": prompt,
            **(arguments or {}),
        }
        if any(m.get("tool_calls") for m in said) and self._prints_arguments(source):
            said = [_with_printed_arguments(m) for m in said]
        try:
            text = self._apply(source, said, options)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"chat template of {self._name}", expected="valid Jinja", got=str(error)
            ) from error
        except Exception as error:  # what the template's author chose to raise, or a key that it misses
            roles = ", ".join(str(m.get("role")) for m in messages[:8]) or "no message"
            raise DataError(
                f"chat template of {self._name}",
                expected="messages that it accepts",
                got=f"the roles {roles}: {error}",
                hint=self._advice(source, said, options),
            ) from error
        if (place := _ADDRESS.search(text)) and place[0] not in str(said):
            raise ModelError(
                f"chat template of {self._name}",
                expected="one that makes the same text of a conversation each time",
                got=f"{place[0]!r}, a place in this process's memory",
                hint="Mend chat_template.jinja: it writes an object where it should write its content.",
            )
        return text

    def _advice(self, source: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """What helps where the template refuses ``messages``: found by leaving the system message out."""
        rest = [m for m in messages if m.get("role") not in ("system", "developer")]
        if rest and len(rest) < len(messages):
            try:
                self._apply(source, rest, options)
            except Exception:  # then something else is wrong too; templates raise what they like
                return "Change the rows to what the template accepts."
            return "It takes no system message: take data.system out, or the system messages out of the rows."
        return "Change the rows to what the template accepts."

    def _apply(self, source: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            list(messages), chat_template=source, tokenize=False, **options
        )
        return str(rendered)

    def _prints_arguments(self, source: str) -> bool:
        """Whether the template prints a tool call's arguments: it wants them as JSON text, not an object."""
        if source not in self._printing:
            as_object, as_text = (self._probe_call(source, a) for a in ({"headwater": 7}, '{"headwater": 7}'))
            printed = as_object is not None and "{'headwater': 7}" in as_object
            self._printing[source] = printed or (as_object is None and as_text is not None)
        return self._printing[source]

    def _probe_call(self, source: str, arguments: object) -> str | None:
        """A call with ``arguments`` as text; None where the template cannot do it."""
        call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": arguments}}
        asked: dict[str, Any] = {"role": "user", "content": "a"}
        said: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            return self._apply(source, [asked, said], {"add_generation_prompt": False})
        except Exception:  # an object cannot be joined to a text, and templates raise what they like
            return None


def _with_printed_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """``message`` with the arguments of its tool calls as JSON text."""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), Mapping):
            text = json.dumps(function["arguments"], ensure_ascii=False)
            call = {**call, "function": {**function, "arguments": text}}
        calls.append(call)
    return {**message, "tool_calls": calls} if calls else dict(message)


@lru_cache(maxsize=8)
def clock(date: datetime.date) -> str:
    """Jinja that defines ``strftime_now`` as midnight of ``date``: put it before a template.

    English names, as in the C locale. What it does not know it refuses.
    """
    month, day = _MONTHS[date.month - 1], _DAYS[date.weekday()]
    values = {
        "%F": "%Y-%m-%d",
        "%D": "%m/%d/%y",
        "%T": "%H:%M:%S",
        "%R": "%H:%M",
        "%Y": f"{date.year:04}",
        "%y": f"{date.year % 100:02}",
        "%B": month,
        "%b": month[:3],
        "%h": month[:3],
        "%A": day,
        "%a": day[:3],
        "%m": f"{date.month:02}",
        "%-m": str(date.month),
        "%d": f"{date.day:02}",
        "%-d": str(date.day),
        "%e": f"{date.day:2}",
        "%j": f"{date.timetuple().tm_yday:03}",
        "%u": str(date.isoweekday()),
        "%w": str(date.isoweekday() % 7),
        "%H": "00",
        "%-H": "0",
        "%I": "12",
        "%-I": "12",
        "%p": "AM",
        "%M": "00",
        "%-M": "0",
        "%S": "00",
        "%-S": "0",
        "%Z": "UTC",
        "%z": "+0000",
    }
    pairs = ", ".join(f"('{code}', '{value}')" for code, value in values.items())
    return (
        "{% macro strftime_now(format) %}{% set pinned = namespace(text=format) %}"
        f"{{% for code, value in [{pairs}] %}}"
        "{% set pinned.text = pinned.text | replace(code, value) %}{% endfor %}"
        "{% if '%' in pinned.text %}{{ raise_exception('no fixed time for ' + pinned.text) }}{% endif %}"
        "{{ pinned.text }}{% endmacro %}\n"
    )


@lru_cache(maxsize=64)
def _drawn(source: str) -> str:
    """What draws at random in a template: ``random``, ``lipsum`` or nothing."""
    before = ""
    try:
        for _, kind, value in jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).lex(source):
            if kind == "name" and (value == "lipsum" or (value == "random" and before == "|")):
                return value
            before = before if kind == "whitespace" else value
    except jinja2.TemplateSyntaxError:
        return ""  # the rendering says it better
    return ""
