"""Data files to rows: :func:`read_rows` reads JSONL, CSV, Parquet, folders of them and `datasets` folders.

Every row keeps its file and line, so that whatever is wrong with it later can be found by its owner.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from headwater.data.arrow import read_datasets_folder, read_parquet
from headwater.data.table import Row, Table
from headwater.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
_KNOWN = "a .jsonl, .csv or .parquet file, a folder of them, or a folder saved by `datasets`"


def read_rows(path: Path) -> Table:
    """Read every row of ``path``.

    A folder's files are read in the order of their names; hidden files and ``*.md`` are passed over,
    anything else that is not data is refused. Columns are the union over the files.

    Raises:
        DataError: names the file, and the line and byte where there is one.
        MissingDependency: a Parquet or `datasets` file without pyarrow.
    """
    files: list[Path] = []
    units: list[str] = []
    file: list[int] = []
    line: list[int] = []
    columns: dict[str, list[object]] = {}
    for source in _files(path):
        unit, rows = _read(source)
        before = len(line)
        for number, values in rows:
            for name, value in values.items():
                column = columns.setdefault(name, [])
                column.extend([None] * (len(line) - len(column)))
                column.append(value)
            file.append(len(files))
            line.append(number)
        if len(line) == before:
            raise DataError(str(source), expected="at least one row", got="an empty file")
        files.append(source)
        units.append(unit)
    for column in columns.values():
        column.extend([None] * (len(line) - len(column)))
    return Table(columns, tuple(files), file, line, units)


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


def _files(path: Path) -> list[Path]:
    """The files to read, in order; a folder saved by `datasets` counts as one."""
    if not path.exists():
        raise DataError(
            str(path),
            expected=_KNOWN,
            got="nothing there",
            hint="Check data.path; it starts at the folder of the file that names it.",
        )
    if path.is_file() or _is_datasets_folder(path):
        return [path]
    found = []
    for entry in sorted(path.iterdir(), key=lambda p: p.name):
        if entry.name.startswith(".") or entry.suffix.lower() == ".md":
            continue
        if not entry.is_file() or entry.suffix.lower() not in SUFFIXES:
            raise DataError(
                str(entry),
                expected="only .jsonl, .csv and .parquet files in a data folder",
                got="a folder" if entry.is_dir() else "another file",
                hint="Move it elsewhere, so that nothing is left out of the training unseen.",
            )
        found.append(entry)
    if not found:
        raise DataError(str(path), expected=_KNOWN, got="an empty folder")
    return found


def _is_datasets_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))


def _read(path: Path) -> tuple[str, Iterator[Row]]:
    """What the numbers of the rows count, and the rows of one file."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "row", read_datasets_folder(path)
    if suffix == ".parquet":
        return "row", read_parquet(path)
    if suffix == ".csv":
        return "line", _read_csv(path)
    if suffix in (".jsonl", ".ndjson"):
        return "line", _read_jsonl(path)
    hint = "Write one JSON object per line into a .jsonl file." if suffix == ".json" else ""
    raise DataError(str(path), expected=_KNOWN, got=f"a file named *{suffix}", hint=hint)


def _read_text(path: Path) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(str(path), expected="a readable file", got=error.strerror or str(error)) from None
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}",
            expected="UTF-8 text",
            got=f"byte 0x{content[error.start]:02x} at byte {error.start} of the file",
            hint="Save the file as UTF-8, for example with `iconv -f cp1252 -t utf-8`.",
        ) from None


def _read_jsonl(path: Path) -> Iterator[Row]:
    # split at \n only: str.splitlines also cuts at U+2028 and others that JSON strings may hold
    for number, text in enumerate(_read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}", expected="one JSON object per line", got=str(error)) from None
        if not isinstance(values, dict):
            raise DataError(
                f"{path}:{number}", expected="one JSON object per line", got=f"a {type(values).__name__}"
            )
        yield number, values


def _read_csv(path: Path) -> Iterator[Row]:
    limit = csv.field_size_limit(2**31 - 1)  # a module-wide setting, put back below: a speech is one field
    try:
        reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}:{number}", expected="valid CSV", got=str(error)) from None
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) != len(header) or "" in header:
                    raise DataError(
                        f"{path}:{number}", expected="a header of unique column names", got=repr(header)
                    )
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{path}:{number}",
                    expected=f"{len(header)} fields, as in the header",
                    got=str(len(fields)),
                    hint="Put texts that hold a comma or a line break in double quotes.",
                )
            yield number, dict(zip(header, fields, strict=True))
    finally:
        csv.field_size_limit(limit)
