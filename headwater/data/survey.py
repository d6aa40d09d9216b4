"""What some data is, counted row by row: :class:`Survey`. It keeps numbers and a few rows, never the data.

The same survey serves a federation's rows, which are in memory, and a file of gigabytes, which streams by.
No torch.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from headwater.config.data import CausalLMData, InstructionData
from headwater.data.conversations import conversation_of
from headwater.data.files.layouts import Layout, RowData, layout_of, texts_of
from headwater.data.files.problems import Problems
from headwater.data.files.table import Table
from headwater.data.remarks import columns_read, content, with_line_breaks
from headwater.data.table_row import TableRow
from headwater.errors import DataError
from headwater.tasks.table import task_of

SAMPLES = 3
"""Rows that are shown."""
MOST_LABELS = 1000
"""Different labels that are counted; a column with more is none."""

Spans = list[tuple[str, bool]]
"""A row as stretches of text, each with whether it has loss."""


@dataclass
class Owner:
    """What one owner has.

    Attributes:
        rows: how many can be used.
        labels: rows by label.
        numbers: each row's target, where it is a number.
        characters: of each row's text.
        tokens: of each example; empty without a model.
        loss_tokens: tokens that have loss.
    """

    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    numbers: array[float] = field(default_factory=lambda: array("d"))
    characters: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    loss_tokens: int = 0


@dataclass
class Column:
    """How many rows have a value, by its type."""

    types: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SampleRow:
    """A row that is shown."""

    where: str
    owner: str
    spans: Spans
    label: str | None
    table: Table
    row: int


class Survey:
    """Counts rows of any number of owners.

    Args:
        settings: ``[data]``; None where nobody knows what the columns are.

    Attributes:
        owners: by name, in the order in which they came.
        columns: by name.
        layouts: how files are read, with the number of files.
        line_breaks: rows of delimited files with line breaks in a field: how many, and where the first is.
        problems: rows that cannot be used.
        duplicates: rows whose content was there before, and the place of the first.
        contradictions: rows whose text was there before with another label, and the place of the first.
    """

    def __init__(self, settings: RowData | None) -> None:
        self._settings = settings
        self._task = None if settings is None else task_of(settings)
        self.owners: dict[str, Owner] = {}
        self.columns: dict[str, Column] = {}
        self.layouts: dict[str, set[int]] = {}
        self.line_breaks = (0, "")
        self.problems = Problems()
        self.duplicates: tuple[int, str] = (0, "")
        self._samples: dict[str, list[SampleRow]] = {}
        self.contradictions: tuple[int, str] = (0, "")
        self._seen: dict[int, int] = {}
        self._unreadable: set[int] = set()
        self._read: set[str] = set()

    @property
    def samples(self) -> list[SampleRow]:
        """Some rows, of as many owners as there are."""
        found = [kept[i] for i in range(SAMPLES) for kept in self._samples.values() if i < len(kept)]
        return found[:SAMPLES]

    @property
    def unread(self) -> dict[str, int]:
        """Columns that nothing reads, with the rows that have a value there."""
        if self._settings is None:
            return {}
        counts = {name: sum(column.types.values()) for name, column in self.columns.items()}
        return {name: count for name, count in counts.items() if count and name not in self._read}

    @property
    def rows(self) -> int:
        """Rows that can be used."""
        return sum(owner.rows for owner in self.owners.values())

    def add(self, owner: str, table: Table, rows: Iterable[int]) -> None:
        """Count rows of one owner."""
        into = self.owners.setdefault(owner, Owner())
        chosen = list(rows)
        for name, values in table.columns.items():
            types = self.columns.setdefault(name, Column()).types
            types.update(_type(values[row]) for row in chosen if values[row] is not None)
        if broken := with_line_breaks(table, chosen):
            count, first = self.line_breaks
            self.line_breaks = (count + len(broken), first or table.where(broken[0]))
        for row in chosen:
            if table.file[row] in self._unreadable:
                continue
            try:
                self._require_layout(table, row)
            except DataError as error:  # of the file: said once
                self.problems.add(error)
                self._unreadable.add(table.file[row])
                continue
            try:
                self._row(into, owner, table, row)
            except DataError as error:
                self.problems.add(error)
        if self._settings is not None and table.layouts:
            self._read |= columns_read(table, self._settings)
        for file, layout in table.layouts.items():
            if isinstance(layout, Layout) and layout.recognised:
                self.layouts.setdefault(layout.describe(), set()).add(file)

    def _require_layout(self, table: Table, row: int) -> None:
        if self._settings is None or table.file[row] in table.layouts:
            return
        layout_of(table, row, self._settings)
        for column in self._settings.target_columns:
            table.require(column)

    def _row(self, into: Owner, owner: str, table: Table, row: int) -> None:
        settings = self._settings
        if settings is None:
            text = "\x00".join(f"{n}={v[row]!r}" for n, v in table.columns.items() if v[row] is not None)
        else:
            text = content(table, row, settings)
        label = None
        if settings is not None and self._task is not None:
            read = TableRow(table, row, settings)
            label, number = self._task.shown(read), self._task.number(read)
            into.labels.update(self._task.labels_of(read))
            if number is not None:
                into.numbers.append(number)
            if len(into.labels) > MOST_LABELS:
                columns = " and ".join(repr(column) for column in settings.target_columns)
                raise DataError(f"column {columns}", expected=f"at most {MOST_LABELS} labels", got="more")
        key, answer = hash(text), hash(label)  # hashes alone: the data may be of any size
        before = self._seen.get(key)
        if before is None:
            self._seen[key] = answer
        elif before == answer:
            self.duplicates = self.duplicates[0] + 1, self.duplicates[1] or table.where(row)
        else:
            self.contradictions = self.contradictions[0] + 1, self.contradictions[1] or table.where(row)
        into.rows += 1
        into.characters.append(len(text))
        if settings is not None and (len(self._samples) < SAMPLES or owner in self._samples):
            kept = self._samples.setdefault(owner, [])
            if len(kept) < SAMPLES:
                spans = plain_spans(table, row, settings)
                kept.append(SampleRow(table.where(row), owner, spans, label, table, row))


def plain_spans(table: Table, row: int, settings: RowData) -> Spans:
    """A row as files hold it, with what has loss, before any model's template."""
    if isinstance(settings, InstructionData):
        spans: Spans = []
        for message in conversation_of(table, row, settings).messages:
            spans.append((f"{message['role']}: ", False))
            loss = message["role"] == "assistant" and message.get("weight") != 0
            said = [str(message["content"]), *(json.dumps(c) for c in message.get("tool_calls", ()))]
            spans += [(" ".join(filter(None, said)), loss), ("\n", False)]
        return spans[:-1]
    text, pair = texts_of(table, row, settings)
    spans = [(text, isinstance(settings, CausalLMData))]
    return spans if pair is None else [*spans, ("\n", False), (pair, False)]


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Least, mean and greatest of at least one number."""
    values = np.asarray(numbers)
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """Least, median, 90th and 99th percentile, and most; nothing of nothing."""
    if not len(values):
        return {}
    found = np.percentile(np.asarray(values), [0, 50, 90, 99, 100], method="nearest")
    return {name: int(v) for name, v in zip(("min", "p50", "p90", "p99", "max"), found, strict=True)}


def _type(value: object) -> str:
    names = {
        "str": "text",
        "int": "number",
        "float": "number",
        "bool": "boolean",
        "list": "list",
        "dict": "object",
    }
    return names.get(type(value).__name__, type(value).__name__)
