"""Rows as conversations: :func:`conversation_of`, whatever layout they have.

Every key of a message reaches the model's chat template; what would change the meaning and cannot be
passed on is refused by line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headwater.config.data import InstructionData
from headwater.data.files.layouts import Layout, layout_of
from headwater.data.files.table import Table, require_unicode
from headwater.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
_ASSISTANTS = ("gpt", "assistant", "chatgpt", "bard", "bing", "model")
_CALLS = ("function_call", "tool_call")
_TOOLS = ("tool", "observation", "function_response", "tool_response")
_SHAREGPT = {"human": "user", "user": "user", "system": "system"} | {
    **dict.fromkeys((*_ASSISTANTS, *_CALLS), "assistant"),
    **dict.fromkeys(_TOOLS, "tool"),
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row.

    Args:
        messages: ``role`` and ``content`` each, and whatever else the row says of them.
        tools: JSON schemas of the functions that the model may call; None without.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


def conversation_of(
    table: Table, row: int, settings: InstructionData, *, answered: bool = True
) -> Conversation:
    """The row as a conversation, with ``settings.system`` in front unless it has a system message.

    Without ``answered`` it need not have an answer, and one in a column of its own is not read.

    Raises:
        DataError: names file and line, what was expected and what is there.
    """
    layout = layout_of(table, row, settings, answered=answered)
    where, tools = table.where(row), None
    match layout.kind:
        case "messages" | "sharegpt" | "turns":
            messages = _chat(table, row, layout, answered=answered)
            tools = _tools(_optional(table, row, layout, "tools"), where)
        case "alpaca":
            messages = _history(_optional(table, row, layout, "history"), where)
            messages += _turn(table, row, layout, "input", answered=answered)
        case _:
            messages = _turn(table, row, layout, "context", answered=answered)
    system = _optional(table, row, layout, "system") or settings.system
    if system is not None and messages[0]["role"] not in ("system", "developer"):
        if not isinstance(system, str):
            raise DataError(where, expected="text in column 'system'", got=f"{system!r:.40}")
        messages.insert(0, {"role": "system", "content": require_unicode(system, where, "system")})
    return Conversation(messages, tools)


def messages_of(table: Table, row: int, settings: InstructionData) -> list[dict[str, Any]]:
    """The messages of :func:`conversation_of`."""
    return conversation_of(table, row, settings).messages


def _turn(table: Table, row: int, layout: Layout, context: str, *, answered: bool) -> list[dict[str, Any]]:
    """Prompt and answer; what the instruction is about follows it after a blank line."""
    prompt, answer = layout.columns
    where, keys = table.where(row), ("role", "content")
    asked = table.value(prompt, row)
    if not answered and isinstance(asked, list):
        return _messages(asked, keys, prompt, where, answered=False)
    said_after = table.value(answer, row) if answered else None
    if isinstance(asked, list) and isinstance(said_after, list):  # messages on both sides
        before = _messages(asked, keys, prompt, where, answered=False) if asked else []
        # answers given before are context: only what is on the answer's side is learnt
        told = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in before]
        return told + _messages(said_after, keys, answer, where)
    said = table.text(prompt, row)
    about = _optional(table, row, layout, context)
    if about is not None and (not isinstance(about, str) or about.strip()):
        said += "\n\n" + table.text(context, row)
    question = {"role": "user", "content": said}
    return [question, {"role": "assistant", "content": table.text(answer, row)}] if answered else [question]


def _optional(table: Table, row: int, layout: Layout, column: str) -> object:
    if column not in layout.optional or column not in table.columns:
        return None
    value = table.columns[column][row]
    return None if value in ("", []) else value


def _history(value: object, where: str) -> list[dict[str, Any]]:
    """Earlier turns of an Alpaca row: a list of pairs."""
    if value is None:
        return []
    messages: list[dict[str, Any]] = []
    for pair in value if isinstance(value, list) else [value]:
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) and t.strip() for t in pair)
        ):
            raise DataError(
                where, expected="pairs of question and answer in column 'history'", got=f"{pair!r:.60}"
            )
        question, answer = (require_unicode(text, where, "history") for text in pair)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _chat(table: Table, row: int, layout: Layout, *, answered: bool) -> list[dict[str, Any]]:
    column, where = layout.columns[0], table.where(row)
    value = _parsed(table.value(column, row), where, column)
    if layout.kind == "turns":
        value = _in_turn(value, where, column)
    keys = ("from", "value") if layout.kind == "sharegpt" else ("role", "content")
    return _messages(value, keys, column, where, answered=answered)


def _in_turn(value: object, where: str, column: str) -> list[dict[str, Any]]:
    """Texts by turns of user and assistant, as LIMA has them."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(where, expected=f"a list of texts in column {column!r}", got=f"{value!r:.60}")
    return [{"role": ROLES[2 + i % 2], "content": text} for i, text in enumerate(value)]


def _messages(
    value: object, keys: tuple[str, str], column: str, where: str, *, answered: bool = True
) -> list[dict[str, Any]]:
    """A list of messages; with ``answered``, at least one of them an answer that counts."""
    expected = f'a list of {{"{keys[0]}", "{keys[1]}"}} in column {column!r}'
    if not isinstance(value, list) or not value:
        raise DataError(
            where,
            expected=expected,
            got=f"{type(value).__name__} {value!r:.40}",
            hint="CSV cannot hold lists: use JSONL or Parquet.",
        )
    messages = [_message(m, keys[0] == "from", expected, where, column) for m in value]
    if not answered:
        return messages
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise DataError(where, expected=f"an answer of the assistant in {column!r}", got="none")
    if all(m.get("weight") == 0 for m in answers):
        raise DataError(
            where, expected="an answer whose weight is not 0", got="none", hint="Take the row out."
        )
    return messages


def _message(message: object, sharegpt: bool, expected: str, where: str, column: str) -> dict[str, Any]:
    """One message with known role and text; keys without a value are left out."""
    roles = tuple(_SHAREGPT) if sharegpt else ROLES
    expected = f"{expected}, {'from' if sharegpt else 'role'} one of {', '.join(roles)}"
    if not isinstance(message, dict):
        raise DataError(where, expected=expected, got=f"{message!r:.60}")
    said = {key: value for key, value in message.items() if value is not None and value != [] and value != ""}
    role, content = said.pop("role", None), said.pop("content", None)
    if sharegpt:
        name = said.pop("from", None)
        role, content = _SHAREGPT.get(name) if isinstance(name, str) else None, said.pop("value", None)
        if name in _CALLS:
            said["tool_calls"], content = _called(content, name, where), None
    if role not in ROLES:
        shown = message.get("from" if sharegpt else "role")
        got = f"{shown!r:.60}" if shown is not None else f"{message!r:.60}"
        raise DataError(where, expected=expected, got=got)
    content = _text(content, expected, where, column)
    if calls := said.get("tool_calls"):
        said["tool_calls"] = _calls(calls, where)
    if not content.strip() and role != "tool" and not (role == "assistant" and calls):
        raise DataError(where, expected=expected, got=f"no text: {message!r:.60}")
    if "weight" in said:
        weight = said["weight"]
        if not isinstance(weight, int | float) or weight not in (0, 1):
            raise DataError(where, expected="a weight of 0 or 1", got=f"{weight!r:.40}")
        said["weight"] = int(weight)
    found = {"role": role, "content": content, **said}
    for key, inner in said.items():
        require_unicode(
            inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False, default=str),
            where,
            key,
        )
    return found


def _text(content: object, expected: str, where: str, column: str) -> str:
    """A message's text; OpenAI's lists of parts are joined, if all are texts."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else None
            if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
                raise DataError(where, expected="parts of type 'text' alone", got=f"{kind or part!r:.60}")
            parts.append(part["text"])
        content = "".join(parts)
    if not isinstance(content, str):
        raise DataError(where, expected=expected, got=f"{type(content).__name__} {content!r:.60}")
    return require_unicode(content, where, column)


def _calls(calls: object, where: str) -> list[Any]:
    """Tool calls with arguments as objects, as templates want them; OpenAI's files hold JSON text."""
    if not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls):
        raise DataError(where, expected="a list of objects as 'tool_calls'", got=f"{calls!r:.60}")
    found = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            arguments = _parsed(function["arguments"] or "{}", where, "arguments")
            call = {**call, "function": {**function, "arguments": arguments}}
        found.append(call)
    return found


def _called(value: object, name: str, where: str) -> list[Any]:
    """What ShareGPT has as the JSON text of a call, or of several, as OpenAI's tool calls."""
    found: Any = _parsed(value, where, name)
    calls = found if isinstance(found, list) and found else [found]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(
            where, expected=f'JSON {{"name", "arguments"}} as what a {name!r} says', got=f"{value!r:.60}"
        )
    functions = [{"name": c["name"], "arguments": c.get("arguments", c.get("parameters", {}))} for c in calls]
    return [{"type": "function", "function": function} for function in functions]


def _tools(value: object, where: str) -> list[Any] | None:
    value = _parsed(value, where, "tools")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(where, expected="a list of JSON schemas in column 'tools'", got=f"{value!r:.60}")
    return value or None


def _parsed(value: object, where: str, what: str) -> object:
    """JSON in a string, as CSV and some Parquet files hold it."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(where, expected=f"valid JSON in {what!r}", got=str(error)) from None
