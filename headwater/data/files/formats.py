"""Data files to rows: :func:`read_rows`, all of them in one table; :func:`read_chunks`, piece by piece.

JSONL, JSON, CSV, TSV (packed or not), Parquet, folders of them and `datasets` folders. Every row keeps its
file and line, so that whatever is wrong with it later can be found by its owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from headwater.data.files.arrow import read_datasets_folder, read_parquet
from headwater.data.files.csv_rows import read_delimited
from headwater.data.files.folders import KNOWN, SUFFIXES, Sources, sources
from headwater.data.files.json_array import read_json
from headwater.data.files.json_rows import read_jsonl
from headwater.data.files.problems import Problems
from headwater.data.files.sniff import HEAD, advice, binary_kind
from headwater.data.files.streams import Watch, open_data, suffixes
from headwater.data.files.table import Row, Table
from headwater.errors import DataError

CHUNK = 1024
"""Rows of a piece."""
MOST_COLUMNS = 4096
"""A file with more is refused: where every row has keys of its own, a table of them fills any memory."""


def read_rows(path: Path, split: str | None = None, *, default: str = "train") -> Table:
    """Read every row of ``path``. Columns are the union over its files.

    Args:
        path: a file or folder.
        split: of a folder with splits.
        default: the split where none is named.

    Raises:
        DataError: names the file, and the line and byte where there is one; all bad rows at once.
        MissingDependency: a Parquet or `datasets` file without pyarrow.
    """
    problems = Problems()
    found = read_sources(sources(path, split, default=default), problems)
    problems.raise_any()
    return found


def read_sources(found: Sources, problems: Problems) -> Table:
    """The rows of chosen files; those that cannot be read go to ``problems`` instead.

    A file that cannot be read at all is one of the problems.
    """
    pieces = Pieces()
    for index, source in enumerate(found.files):
        for number, values in _file_rows(source, None, problems):
            pieces.add(index, number, values)
    return pieces.table(found.files)


def read_chunks(
    found: Sources, problems: Problems, watch: Watch | None = None, *, rows: int = CHUNK
) -> Iterator[tuple[int, Table]]:
    """The rows of chosen files, at most ``rows`` at a time, never of two files.

    Args:
        found: the files.
        problems: takes the rows that cannot be read.
        watch: told how many bytes were read.
        rows: of a piece.

    Yields:
        The file's index, and a table whose ``files`` are all, with every column that the file has had.
    """
    for index, source in enumerate(found.files):
        pieces, layouts = Pieces(), dict[int, object]()
        for number, values in _file_rows(source, watch, problems):
            pieces.add(index, number, values)
            if len(pieces) >= rows:
                table = pieces.table(found.files, layouts)
                yield index, table
                pieces = Pieces(table.columns)
        if len(pieces):
            yield index, pieces.table(found.files, layouts)


class Pieces:
    """Rows that become a table, with ``columns`` whether a row has them or not."""

    def __init__(self, columns: Iterable[str] = ()) -> None:
        self._file: list[int] = []
        self._line: list[int] = []
        self._columns: dict[str, list[object]] = {name: [] for name in columns}

    def __len__(self) -> int:
        return len(self._line)

    def add(self, file: int, line: int, values: dict[str, object]) -> None:
        """One more row."""
        count = len(self._line)
        for name, value in values.items():
            column = self._columns.setdefault(name, [])
            if len(column) < count:
                column.extend([None] * (count - len(column)))
            column.append(value)
        self._file.append(file)
        self._line.append(line)

    def table(self, files: tuple[Path, ...], layouts: dict[int, object] | None = None) -> Table:
        """All of them; ``layouts`` are those found before."""
        for column in self._columns.values():
            column.extend([None] * (len(self._line) - len(column)))
        units = [_unit(f) for f in files]
        return Table(self._columns, files, self._file, self._line, units, {} if layouts is None else layouts)


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over the names and contents of files, and of the files below folders, in order."""
    whole = hashlib.sha256()
    for path in paths:
        below = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in below:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            whole.update(f"{name}\0{digest}\n".encode())
    return whole.hexdigest()


def _file_rows(
    source: Path, watch: Watch | None, problems: Problems
) -> Iterator[tuple[int, dict[str, object]]]:
    empty, rows, columns = True, _read(source, watch), set[str]()
    while True:
        try:
            number, values = next(rows)
        except StopIteration:
            break
        except DataError as error:  # the file as a whole, or the rest of it
            problems.add(error)
            return
        empty = False
        if isinstance(values, DataError):
            problems.add(values)
            continue
        if not columns.issuperset(values):
            columns.update(values)
            if len(columns) > MOST_COLUMNS:
                where = f"{source}:{number}" if _unit(source) == "line" else f"{source} row {number}"
                problems.add(
                    DataError(
                        where,
                        expected=f"at most {MOST_COLUMNS} different columns in a file",
                        got="more",
                        hint="Give every row the same keys.",
                    )
                )
                return
        yield number, values
    if empty:
        problems.add(DataError(str(source), expected="at least one row", got="an empty file"))


def _unit(path: Path) -> str:
    """What the numbers of a file's rows count."""
    return "row" if suffixes(path)[0] == ".parquet" or path.is_dir() else "line"


def _read(path: Path, watch: Watch | None) -> Iterator[Row]:
    if path.is_dir():
        yield from read_datasets_folder(path, watch)
        return
    suffix, packed = suffixes(path)
    if suffix == ".parquet" and not packed:
        yield from read_parquet(path, watch)
        return
    if suffix not in SUFFIXES or suffix == ".parquet":
        raise _unknown(path, suffix + packed)
    with open_data(path, watch) as stream:
        match suffix:
            case ".csv":
                yield from read_delimited(path, stream, ",")
            case ".tsv":
                yield from read_delimited(path, stream, "\t")
            case ".json":
                yield from read_json(path, stream)
            case _:
                yield from read_jsonl(path, stream)


def _unknown(path: Path, suffix: str) -> DataError:
    """A file of another kind: say what it is, if its bytes do."""
    try:
        with path.open("rb") as stream:
            kind = binary_kind(stream.read(HEAD))
    except OSError as error:
        return DataError(str(path), expected="a readable file", got=error.strerror or str(error))
    named = f"a file named *{suffix}" if suffix else "a file without a suffix"
    if suffix in (".xlsx", ".xls", ".ods"):
        kind = kind or "an Excel file"
    hint = advice(kind, ".jsonl") if kind else "Give the data as JSONL, CSV or Parquet."
    return DataError(str(path), expected=KNOWN, got=f"{named}: {kind}" if kind else named, hint=hint)
