"""Who has which rows, before anything is a token: :func:`open_rows`, :func:`own_rows`, :func:`held_out_rows`.

Every row is read and every value that will be used is looked at; what is wrong is said of all rows at once.
No torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from headwater.config.data import TextData
from headwater.config.load import LoadedFederation
from headwater.config.partitions import ColumnPartition
from headwater.data.files.folders import Sources, sources
from headwater.data.files.formats import files_sha256, read_chunks, read_sources
from headwater.data.files.layouts import Layout, RowData, layout_of
from headwater.data.files.problems import Problems
from headwater.data.files.table import FILE_COLUMN, Table, check_name
from headwater.data.partition import partition
from headwater.data.remarks import remarks, unread_splits
from headwater.data.split import sample, split
from headwater.data.table_row import TableRow
from headwater.errors import ConfigError, DataError, HeadwaterError
from headwater.seeds.keys import Key
from headwater.tasks.table import task_of

_FIRST = 64
"""Rows that show whether a file holds pairs."""


@dataclass(frozen=True)
class OpenedRows:
    """Rows and whose they are.

    Args:
        table: all clients' rows; None where there are only the server's.
        splits: by client, its rows for training and for validation.
        test: the server's held-out rows.
        warnings: what is allowed but worth a look, one sentence each.
        sha256: of the files that were read (hex).
    """

    table: Table | None
    splits: Mapping[str, tuple[list[int], list[int]]]
    test: Table | None
    warnings: tuple[str, ...]
    sha256: str = ""


def open_rows(loaded: LoadedFederation, settings: RowData, key: Key) -> OpenedRows:
    """Every client's rows, and the server's.

    Raises:
        DataError: a file, row, label, name or partition is wrong, or a client is empty; all bad rows at once.
    """
    problems = Problems()
    found = _sources(loaded, settings.path, settings.split, "train")
    table = _read(found, settings, problems, partitioned=True)
    read, test = [], None
    if settings.test is not None:
        held_out = _sources(loaded, settings.test, settings.test_split, "test")
        test = _read(held_out, settings, problems)
        if loaded.path(settings.test) == loaded.path(settings.path) and held_out.split is not None:
            read = [held_out.split]
    problems.raise_any()
    parts = partition(table, settings.partition, settings.group_column, key.child("partition"))
    splits = {name: _split(name, table, rows, settings, key) for name, rows in parts.items()}
    return OpenedRows(
        table,
        splits,
        test,
        unread_splits(found, read) + remarks(table, splits, test, settings),
        files_sha256([loaded.path(p) for p in (settings.path, settings.test) if p is not None]),
    )


def own_rows(loaded: LoadedFederation, settings: RowData, path: Path, name: str, key: Key) -> OpenedRows:
    """The rows of one client, as its own device sees them: every row of ``path`` is ``name``'s.

    Raises:
        DataError: as :func:`open_rows`.
    """
    problems = Problems()
    # the organiser's split, where the owner's data has splits
    found = _sources(loaded, str(path), None, settings.split or "train")
    table = _read(found, settings, problems)
    problems.raise_any()
    require_said_pairs(table, settings)
    splits = {name: _split(name, table, list(range(len(table))), settings, key)}
    return OpenedRows(table, splits, None, unread_splits(found, []) + remarks(table, splits, None, settings))


def held_out_rows(loaded: LoadedFederation, settings: RowData, path: str) -> OpenedRows:
    """The server's rows alone.

    Raises:
        DataError: as :func:`open_rows`.
    """
    problems = Problems()
    test = _read(_sources(loaded, path, settings.test_split, "test"), settings, problems)
    problems.raise_any()
    return OpenedRows(None, {}, test, (), files_sha256([loaded.path(path)]))


def rows_of(path: Path, settings: RowData) -> Table:
    """The rows of a file or folder of held-out rows, for a reader without a federation; none is checked.

    Raises:
        DataError: the file cannot be read; all bad rows at once.
    """
    problems = Problems()
    table = read_sources(sources(path, settings.test_split, default="test"), problems)
    problems.raise_any()
    return table


def reads_pairs(loaded: LoadedFederation, settings: RowData) -> bool:
    """Whether rows are pairs of texts: the federation file says so, or they are recognised as such.

    Looked at are the first rows of the held-out file and of the clients', those of them that are here.
    """
    if not isinstance(settings, TextData):
        return False
    if settings.text_pair is not None:
        return True
    for path, split_name, default in (
        (settings.test, settings.test_split, "test"),
        (settings.path, settings.split, "train"),
    ):
        if path is None or not loaded.path(path).exists():  # a server has no client's rows
            continue
        # what cannot be read is said where a run opens its data; here it shows nothing
        with contextlib.suppress(HeadwaterError):
            found = _sources(loaded, path, split_name, default)
            table = next((table for _, table in read_chunks(found, Problems(), rows=_FIRST)), None)
            if table is not None:
                return layout_of(table, 0, settings).kind == "pair"
    return False


def require_said_pairs(table: Table, settings: RowData) -> None:
    """Refuse pairs of texts that are only recognised, where a server has no rows to recognise them by.

    It could not write into the adapter's ``headwater.json`` that rows are pairs, and texts alone would be
    predicted without a word.

    Raises:
        DataError: names the file, and the keys that the organiser sets.
    """
    if not isinstance(settings, TextData) or settings.test is not None:
        return
    for file, layout in sorted(table.layouts.items()):
        if isinstance(layout, Layout) and layout.kind == "pair" and layout.recognised:
            first, second = layout.columns
            raise DataError(
                str(table.files[file]),
                expected="data.text_pair in the federation file: without data.test a server cannot see that "
                "rows are pairs of texts",
                got=f"pairs, recognised by their columns {first!r} and {second!r}",
                hint=f'The organiser sets data.text = "{first}" and data.text_pair = "{second}".',
            )


def check_values(table: Table, settings: RowData, problems: Problems, column: str | None = None) -> None:
    """Look at every value of every row that will be used.

    Args:
        table: the rows.
        settings: ``[data]``.
        problems: takes what is wrong.
        column: one that must name a client in every row.
    """
    for needed in (*settings.target_columns, *([column] if column is not None else [])):
        table.require(needed)
    task = task_of(settings)
    lacking: dict[int, bool] = {}
    for row in range(len(table)):
        file = table.file[row]
        if file not in lacking:
            # of a file that goes on from an earlier piece it is known
            lacking[file] = file not in table.layouts and _lacks(table, row, settings, column, problems)
        if lacking[file]:
            continue
        try:
            task.check(TableRow(table, row, settings))
            if column is not None:
                table.name(column, row)
        except DataError as error:
            problems.add(error)


def _lacks(table: Table, row: int, settings: RowData, column: str | None, problems: Problems) -> bool:
    """Whether the row's file has no value at all where every row needs one: said once, not of every row."""
    file = table.file[row]
    layout = problems.attempt(lambda: layout_of(table, row, settings))
    if layout is None:
        return True
    needed = [*layout.columns, *([column] if column else []), *settings.target_columns]
    rows = list(takewhile(lambda i: table.file[i] == file, range(row, len(table))))
    for name in needed:
        if name == FILE_COLUMN or len(rows) < 2 or any(table.columns[name][i] is not None for i in rows):
            continue
        there = [n for n, v in table.columns.items() if any(v[i] is not None for i in rows)]
        problems.add(
            DataError(
                str(table.files[file]),
                expected=f"a column {name!r}",
                got=f"the columns {', '.join(f'{n!r:.60}' for n in there[:20])}",
                hint="Name the right column in [data] of the federation file, or rename it in the data.",
            )
        )
        return True
    return False


def _sources(loaded: LoadedFederation, path: str, split: str | None, default: str) -> Sources:
    return sources(loaded.path(path), split, default=default)


def _read(found: Sources, settings: RowData, problems: Problems, *, partitioned: bool = False) -> Table:
    labels = getattr(settings, "labels", ())
    if len(set(labels)) != len(labels):
        raise ConfigError("data.labels", expected="labels that differ", got=repr(list(labels)))
    table = read_sources(found, problems)
    by_column = partitioned and isinstance(settings.partition, ColumnPartition)
    column = settings.partition.column if by_column else None  # type: ignore[union-attr]  # looked at above
    if len(table):  # else every row is a problem already
        problems.attempt(lambda: check_values(table, settings, problems, column))
    return table


def _split(
    name: str, table: Table, rows: list[int], settings: RowData, key: Key
) -> tuple[list[int], list[int]]:
    check_name(name, f"client {name!r:.80}")
    if not rows:
        raise DataError(f"client {name!r}", expected="at least one row", got="none")
    share = max(1, math.ceil(settings.fraction * len(rows)))
    limit = min(share, settings.max_examples_per_client or share)
    kept = sample(rows, limit, key.child("subsample", name))
    task = task_of(settings)
    strata = [task.stratum(TableRow(table, row, settings)) or "" for row in kept]
    return split(kept, settings.validation_fraction, key.child("split", name), strata)
