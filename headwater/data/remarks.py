"""What is allowed in data but worth a look, one sentence a kind: :func:`remarks`.

Nothing that is left unread, and no row that counts twice, goes without a word. A kind is one line with a
count and the first place, however often it occurs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from headwater.config.data import InstructionData
from headwater.config.partitions import ColumnPartition, DirichletPartition
from headwater.data.conversations import messages_of
from headwater.data.files.folders import Sources, is_split_name
from headwater.data.files.layouts import Layout, RowData, texts_of
from headwater.data.files.streams import stem, suffixes
from headwater.data.files.table import FILE_COLUMN, Table
from headwater.data.table_row import TableRow
from headwater.tasks.table import task_of

SHOWN = 6
"""Names in one sentence; of more, the number is told."""

Splits = Mapping[str, tuple[Sequence[int], Sequence[int]]]


def remarks(table: Table, splits: Splits, test: Table | None, settings: RowData) -> tuple[str, ...]:
    """About the clients' rows and the server's test rows, as files hold them.

    Args:
        table: all clients' rows.
        splits: by client, its rows for training and validation.
        test: the held-out rows, if there are any.
        settings: ``[data]``.
    """
    found = [*_recognised(table, settings), *_unread(table, settings, "the data")]
    if test is not None:
        found += [*_recognised(test, settings), *_unread(test, settings, "the test data")]
    for of in (table, test):
        if of is not None and (rows := with_line_breaks(of, range(len(of)))):
            found.append(line_breaks(len(rows), of.where(rows[0])))
    contents = _contents(table, settings)
    found += _duplicates(table, contents, settings)
    found += _shared(contents, test, settings)
    found += _labels(table, splits, test, settings)
    return tuple(dict.fromkeys(found))


def unread_splits(sources: Sources, read: Sequence[str]) -> tuple[str, ...]:
    """The splits beside the one that is read, but for those that something else reads.

    Also files that are read like any other and have the name of a split.
    """
    if sources.split is None:
        named = [stem(file) for file in sources.files if is_split_name(stem(file))]
        if not named or len(sources.files) == 1:
            return ()
        are = "is read like the other files, though it has the name of a split"
        if len(named) > 1:
            are = "are read like the other files, though they have the names of splits"
        return (f"{sources.files[0].parent}: {_listed(named)} {are}",)
    found = []
    if left := [name for name in sources.unread if name not in read]:
        found.append(
            f"{sources.files[0].parent}: of its splits '{sources.split}' is read, not {_listed(left)}"
        )
    if sources.unlisted:
        found.append(
            f"{sources.files[0].parent}: not read are {_listed(sources.unlisted)}, "
            "which its README.md does not list"
        )
    return tuple(found)


def content(table: Table, row: int, settings: RowData) -> str:
    """What a model is shown of a row and asked for, but for a label: equal for rows that are the same."""
    if isinstance(settings, InstructionData):
        return json.dumps(messages_of(table, row, settings), default=str)
    text, pair = texts_of(table, row, settings)
    return text.strip() if pair is None else f"{text.strip()}\x00{pair.strip()}"


def columns_read(table: Table, settings: RowData) -> set[str]:
    """The columns that decide anything, in the files of ``table`` that were looked at."""
    read = {c for layout in table.layouts.values() if isinstance(layout, Layout) for c in _all(layout)}
    read.update(settings.target_columns)
    if isinstance(settings.partition, ColumnPartition | DirichletPartition) and settings.partition.column:
        read.add(settings.partition.column)
    return read


def _all(layout: Layout) -> tuple[str, ...]:
    return (*layout.columns, *layout.optional)


def _recognised(table: Table, settings: RowData) -> list[str]:
    found: dict[str, list[int]] = {}
    for file, layout in sorted(table.layouts.items()):
        if isinstance(layout, Layout) and layout.recognised:
            found.setdefault(layout.describe(), []).append(file)
    return [
        f"{table.files[files[0]].name}{f' and {len(files) - 1} more files' if files[1:] else ''}: "
        f"recognised as {described}"
        for described, files in found.items()
    ]


def _unread(table: Table, settings: RowData, what: str) -> list[str]:
    read = columns_read(table, settings)
    counts = {
        name: sum(value is not None for value in values)
        for name, values in table.columns.items()
        if name not in read
    }
    return unread_columns(counts, what)


def rows_of(count: int) -> str:
    """``count`` rows in words."""
    return "1 row" if count == 1 else f"{count:,} rows"


def with_line_breaks(table: Table, rows: Iterable[int]) -> list[int]:
    """Those of ``rows`` that come from a delimited file and hold a line break."""
    delimited = [suffixes(file)[0] in (".csv", ".tsv") for file in table.files]
    columns = [values for name, values in table.columns.items() if name != FILE_COLUMN]
    return [
        row
        for row in rows
        if delimited[table.file[row]] and any("\n" in v for c in columns if isinstance(v := c[row], str))
    ]


def line_breaks(count: int, first: str) -> str:
    """A sentence about rows of delimited files with line breaks."""
    have = "has" if count == 1 else "have"
    return (
        f"{rows_of(count)} of CSV or TSV {have} line breaks in a field (first {first}): right if they are "
        "the text's own, but a field that begins with a lone double quote takes the lines after it"
    )


def duplicates(count: int, first: str, of: str = "") -> str:
    """A sentence about rows that are there twice."""
    rows = "1 row is an exact duplicate" if count == 1 else f"{count:,} rows are exact duplicates"
    return f"{rows} of another (first {first}{f', of {of}' if of else ''})"


def contradictions(count: int, first: str, against: str = "") -> str:
    """A sentence about rows whose text has another label elsewhere."""
    rows = f"{rows_of(count)} {'has' if count == 1 else 'have'}"
    place = f"first {first}{f', against {against}' if against else ''}"
    return f"{rows} the text of another row and another label ({place})"


def unread_columns(counts: Mapping[str, int], what: str) -> list[str]:
    """A sentence about columns with so many values each; none if there are none."""
    named = [f"{name!r:.60} ({rows_of(count)})" for name, count in counts.items() if count]
    if not named:
        return []
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return [f"columns of {what} that nothing reads: {', '.join(named[:SHOWN])}{more}"]


def _duplicates(table: Table, contents: Sequence[int], settings: RowData) -> list[str]:
    task, first = task_of(settings), dict[int, int]()
    again: list[tuple[int, int]] = []
    other: list[tuple[int, int]] = []
    for row, key in enumerate(contents):
        before = first.setdefault(key, row)
        if before == row:
            continue
        one, other_one = (task.shown(TableRow(table, i, settings)) for i in (row, before))
        same = one == other_one
        (again if same else other).append((row, before))
    found = []
    if again:
        row, before = again[0]
        found.append(duplicates(len(again), table.where(row), table.where(before)))
    if other:
        row, before = other[0]
        found.append(contradictions(len(other), table.where(row), table.where(before)))
    return found


def _shared(contents: Sequence[int], test: Table | None, settings: RowData) -> list[str]:
    """How many test rows are also in the clients' data, word for word."""
    if test is None:
        return []
    known = set(contents)
    shared = [row for row, key in enumerate(_contents(test, settings)) if key in known]
    if not shared:
        return []
    return [
        f"{len(shared):,} of {len(test):,} test rows have a text that is also in the clients' data "
        f"(first {test.where(shared[0])})"
    ]


def _contents(table: Table, settings: RowData) -> list[int]:
    """A hash of each row's :func:`content`, which are not kept: they are as large as the data."""
    return [hash(content(table, row, settings)) for row in range(len(table))]


def _labels(table: Table, splits: Splits, test: Table | None, settings: RowData) -> list[str]:
    if not settings.has_labels:
        return []
    task = task_of(settings)
    by_row = [task.labels_of(TableRow(table, row, settings)) for row in range(len(table))]
    found = _never(by_row, task.outputs or (), "the clients' data")
    if test is not None:
        held_out = [task.labels_of(TableRow(test, row, settings)) for row in range(len(test))]
        found += _never(held_out, task.outputs or (), "the test data")
    single = []
    for name, (train, validation) in sorted(splits.items()):
        labels = {label for row in (*train, *validation) for label in by_row[row]}
        if len(labels) == 1:
            single.append(f"{name!r} (only {labels.pop()!r})")
    if single:
        shown = ", ".join(single[:5]) + (", …" if len(single) > 5 else "")
        clients = "1 client has" if len(single) == 1 else f"{len(single)} clients have"
        found.append(f"{clients} a single class: {shown}")
    return found


def _never(by_row: Iterable[Sequence[str]], known: Sequence[str], where: str) -> list[str]:
    there = {label for labels in by_row for label in labels}
    absent = [label for label in known if label not in there]
    if not absent:
        return []
    return [f"no row of {where} has the label{'s' if len(absent) > 1 else ''} {_listed(absent)}"]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name!r:.60}" for name in names[:SHOWN]) + more
