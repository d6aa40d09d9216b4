"""How a file's rows hold what is learnt: :func:`layout_of` says which columns are read, and as what.

What the federation file says is done. Where it says nothing, a layout is recognised by its columns, if
only one fits; if several do, the file is refused with the key to set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.config.data import BaseData, InstructionData, TextData
from headwater.data.files.table import Table
from headwater.errors import ConfigError, DataError

RowData = BaseData
"""The settings of rows, of whatever kind."""
Kind = Literal["text", "pair", "words", "columns", "alpaca", "messages", "sharegpt", "turns"]

_LOOKED_AT = 64
"""Rows of a file whose columns decide."""
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
          ("question", "sentence"), ("text1", "text2"), ("sentence_A", "sentence_B"))  # fmt: skip
PROMPTS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))
CHATS = ("messages", "conversations", "conversation")
"""Columns that are recognised: pairs of texts, prompts and answers, conversations."""


_IN_WORDS: Mapping[Kind, str] = {
    "text": "texts",
    "pair": "pairs of texts",
    "words": "lists of words",
    "columns": "prompts and answers",
    "alpaca": "Alpaca rows",
    "messages": "OpenAI messages",
    "sharegpt": "ShareGPT conversations",
    "turns": "conversations as lists of texts, the user's first",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows are read.

    Args:
        kind: what the columns are.
        columns: those that must be there: text; text and its pair; prompt and answer; the messages.
        optional: those that are read where a row has them.
        recognised: whether it was found out and not said.
    """

    kind: Kind
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    recognised: bool = False

    def describe(self) -> str:
        """In words."""
        names = ", ".join([*self.columns, *(f"{c} where present" for c in self.optional)])
        return f"{_IN_WORDS[self.kind]} ({names})"


def layout_of(table: Table, row: int, settings: RowData, *, answered: bool = True) -> Layout:
    """The layout of the row's file. It is found once for each file of a table.

    Without ``answered``, instructions need no column of answers.

    Raises:
        DataError: a column that the settings name is not there; no layout fits, or several do.
    """
    file = table.file[row]
    if file not in table.layouts:
        table.layouts[file] = _find(table, row, settings, answered=answered)
    found = table.layouts[file]
    assert isinstance(found, Layout)
    return found


def texts_of(table: Table, row: int, settings: RowData) -> tuple[str, str | None]:
    """A row's text, and the text that it is paired with.

    Raises:
        DataError: as :func:`layout_of`, or one of them is missing or empty.
    """
    layout = layout_of(table, row, settings)
    columns = layout.columns
    if layout.kind == "words":
        return " ".join(table.words(columns[0], row)), None
    return table.text(columns[0], row), table.text(columns[1], row) if len(columns) > 1 else None


def _find(table: Table, row: int, settings: RowData, *, answered: bool) -> Layout:
    sample = _sample(table, row)
    if settings.inputs is not None:
        kind, columns = settings.inputs
        return Layout(kind, tuple(table.require(column) for column in columns))
    if isinstance(settings, TextData):
        return _texts(table, row, settings, sample)
    if isinstance(settings, InstructionData):
        return _instruction(table, row, settings, sample, answered=answered)
    raise ConfigError(
        f"data.kind '{settings.kind}'",
        expected="settings that say their `inputs`, or settings of texts or conversations",
        got="others",
    )


def _sample(table: Table, row: int) -> Mapping[str, object]:
    """A value of every column that the first rows of the row's file have."""
    file, first = table.file[row], row
    while first and table.file[first - 1] == file:  # a file's rows are together
        first -= 1
    rows = [i for i in range(first, min(first + _LOOKED_AT, len(table))) if table.file[i] == file]
    found: dict[str, object] = {}
    for name, values in table.columns.items():
        value = next((values[i] for i in rows if values[i] is not None), None)
        if value is not None:
            found[name] = value
    return found


def _texts(table: Table, row: int, settings: TextData, sample: Mapping[str, object]) -> Layout:
    if settings.text_pair is not None:
        return Layout("pair", (table.require(settings.text), table.require(settings.text_pair)))
    if settings.text == "text" and "text" not in table.columns:
        pairs = [pair for pair in PAIRS if pair[0] in sample and pair[1] in sample]
        if len(pairs) == 1:
            return Layout("pair", pairs[0], recognised=True)
        if pairs:
            raise _ambiguous(table, row, pairs, "data.text and data.text_pair")
    return Layout("text", (table.require(settings.text),))


def _instruction(
    table: Table, row: int, settings: InstructionData, sample: Mapping[str, object], *, answered: bool
) -> Layout:
    chat = _chat(table, row, settings, sample)
    said = (settings.prompt, settings.answer) != ("prompt", "answer")
    format = settings.format
    if format in ("messages", "sharegpt") or (format is None and settings.messages is not None):
        if chat is None:
            table.require(settings.messages or "messages")
            return Layout("messages", (settings.messages or "messages",), ("tools",))
        return Layout(format, chat.columns, chat.optional) if format in ("messages", "sharegpt") else chat
    alpaca = Layout("alpaca", ("instruction", "output"), ("input", "system", "history"), recognised=True)
    if format == "alpaca" or format == "columns" or said:
        columns = alpaca.columns if format == "alpaca" else (settings.prompt, settings.answer)
        for column in columns[: 2 if answered else 1]:
            table.require(column)
        return Layout(format or "columns", columns, alpaca.optional if format == "alpaca" else ())
    fitting = [] if chat is None else [Layout(chat.kind, chat.columns, chat.optional, recognised=True)]
    if "prompt" in sample and "answer" in sample:
        fitting.append(Layout("columns", ("prompt", "answer")))
    if "instruction" in sample and "output" in sample:
        fitting.append(alpaca)
    if "instruction" in sample and "response" in sample:
        fitting.append(Layout("columns", ("instruction", "response"), ("context",), recognised=True))
    fitting += [
        Layout("columns", pair, recognised=True) for pair in PROMPTS if all(c in sample for c in pair)
    ]
    if not fitting and not answered:
        fitting = _questions(sample, alpaca)
    if answered:
        _refuse_preferences(table, row, sample, fitting)
    if not fitting:
        table.require("prompt")
        table.require("answer")
        return Layout("columns", ("prompt", "answer"))  # a row without one is named by its line
    if len(fitting) > 1:
        raise _ambiguous(
            table, row, [f.columns for f in fitting], "data.format (or data.prompt, data.answer)"
        )
    return fitting[0]


def _refuse_preferences(
    table: Table, row: int, sample: Mapping[str, object], fitting: Sequence[Layout]
) -> None:
    """Refuse rows that hold answers not to be learnt: two of them each, or one that is judged."""
    if not fitting and "chosen" in sample and "rejected" in sample:
        hint = _preferred(sample)
        got = "preference data: 'chosen' and 'rejected'"
    elif fitting and "completion" in fitting[0].columns and isinstance(sample.get("label"), bool):
        got = "preference data: a 'completion' and the 'label' true or false"
        hint = 'Keep the good rows alone, or train on all: data.answer = "completion".'
    else:
        return
    where = str(table.files[table.file[row]])
    raise DataError(where, expected="rows whose answer is to be learnt", got=got, hint=hint)


def _preferred(sample: Mapping[str, object]) -> str:
    """How to train on the preferred answers."""
    chosen, asked = sample["chosen"], [p for p, _ in [*PROMPTS, ("instruction", "")] if p in sample]
    first = chosen[0] if isinstance(chosen, list) and chosen else None
    if isinstance(first, dict) and first.get("role", first.get("from")) not in ("assistant", "gpt"):
        return 'data.messages = "chosen" trains on the chosen ones.'
    if not asked:
        return "Divide the chosen texts into the columns prompt and answer."
    prompt = "" if asked[0] == "prompt" else f'data.prompt = "{asked[0]}" and '
    return f'{prompt}data.answer = "chosen" trains on the chosen ones.'


def _questions(sample: Mapping[str, object], alpaca: Layout) -> list[Layout]:
    """Layouts whose answers are left out."""
    found = []
    if "instruction" in sample:
        about = Layout("columns", ("instruction", "response"), ("context",), recognised=True)
        found.append(about if "context" in sample else alpaca)
    pairs = {prompt: (prompt, answer) for prompt, answer in [*PROMPTS, ("prompt", "answer")]}
    return found + [Layout("columns", p, recognised=True) for name, p in pairs.items() if name in sample]


def _chat(table: Table, row: int, settings: InstructionData, sample: Mapping[str, object]) -> Layout | None:
    """A column of conversations: the one that is named, or the one of a usual name that holds some."""
    names = CHATS if settings.messages is None else (settings.messages,)
    found = []
    for name in names:
        value = sample.get(name)
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and "from" in first and "value" in first:
            found.append(Layout("sharegpt", (name,), ("system", "tools")))
        elif isinstance(first, str):
            found.append(Layout("turns", (name,), ("system",)))
        elif isinstance(first, dict) or (isinstance(value, str) and value.lstrip().startswith("[")):
            found.append(Layout("messages", (name,), ("tools",)))
    if len(found) > 1:
        raise _ambiguous(table, row, [f.columns for f in found], "data.messages")
    return found[0] if found else None


def _ambiguous(table: Table, row: int, found: Sequence[tuple[str, ...]], key: str) -> DataError:
    shown = "; ".join(" and ".join(map(repr, columns)) for columns in found)
    return DataError(
        str(table.files[table.file[row]]),
        expected="rows that can be read in one way",
        got=f"columns for several: {shown}",
        hint=f"Say which with {key}.",
    )
