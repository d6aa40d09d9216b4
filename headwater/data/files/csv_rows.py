"""Delimited text to rows: :func:`read_delimited` for CSV and TSV. All values are text.

A row that cannot be read is handed on as its error; the file goes on after it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from headwater.data.files.json_rows import ROW_BYTES
from headwater.data.files.sniff import misfit
from headwater.data.files.streams import open_data
from headwater.data.files.table import Row
from headwater.errors import DataError

_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def read_delimited(path: Path, stream: BinaryIO, delimiter: str) -> Iterator[Row]:
    """Rows below a header, by the line where each begins; double quotes around what holds a delimiter.

    Raises:
        DataError: the header is wrong, or a line has no end.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    limit = csv.field_size_limit(ROW_BYTES)  # a module-wide setting, put back below: a speech is one field
    try:
        yield from _rows(path, text, delimiter)
    finally:
        csv.field_size_limit(limit)
        text.detach()


def _rows(path: Path, text: TextIO, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(_lines(path, text), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    located = False  # the file is searched for its first bad byte alone
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = DataError(
                f"{path}:{number}",
                expected="valid CSV" if delimiter == "," else "valid TSV",
                got=str(error),
                hint="A text that begins with a double quote needs quotes around all of it and its own "
                "quotes doubled.",
            )
            if header is None:
                raise problem from None
            yield number, problem
            continue
        if not fields:
            continue
        if header is None:
            header = _header(path, number, fields, delimiter)
        elif len(fields) != len(header):
            yield (
                number,
                DataError(
                    f"{path}:{number}",
                    expected=f"{len(header)} fields, as in the header",
                    got=str(len(fields)),
                    hint=f"Put texts that hold {_NAMES[delimiter]} or a line break in double quotes.",
                ),
            )
        elif bad := next((f for f in fields if not f.isascii() and _escaped(f)), ""):
            yield number, _not_utf8(path, number, bad, locate=not located)
            located = True
        else:
            yield number, dict(zip(header, fields, strict=True))


def _lines(path: Path, text: TextIO) -> Iterator[str]:
    number = 0
    while line := text.readline(ROW_BYTES + 1):
        number += 1
        if len(line) > ROW_BYTES:
            raise DataError(
                f"{path}:{number}", expected=f"a row of at most {ROW_BYTES >> 20} MiB", got="a longer line"
            )
        yield line


def _header(path: Path, number: int, fields: list[str], delimiter: str) -> list[str]:
    who = f"{path}:{number}"
    if bad := next((f for f in fields if _escaped(f)), ""):
        raise _not_utf8(path, number, bad, locate=True)
    if len(fields) == 1:
        name = fields[0]
        excel = name.lower().startswith("sep=")
        other = name[4:5] if excel else next((d for d in ";\t|," if d != delimiter and d in name), "")
        if excel or other:
            hint = {"\t": "Name it *.tsv.", ",": "Name it *.csv."}.get(
                other, "Save it with commas between the columns."
            )
            raise DataError(
                who,
                expected=f"{_NAMES[delimiter]} between the columns",
                got=f"{_NAMES.get(other, repr(other))} in {name[:80]!r}",
                hint=hint,
            )
    names = [name or f"unnamed column {i}" for i, name in enumerate(fields, start=1)]  # pandas' index
    if len(set(names)) != len(names):
        raise DataError(who, expected="a header of unique column names", got=f"{names!r:.200}")
    return names


def _escaped(text: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in text)


def _not_utf8(path: Path, number: int, text: str, *, locate: bool) -> DataError:
    """Say which byte of a row is not UTF-8 and, with ``locate``, where in the file it is."""
    raw = text.encode("utf-8", "surrogateescape")
    at = next(len(text[:i].encode("utf-8", "surrogateescape")) for i, c in enumerate(text) if _escaped(c))
    what, hint = misfit(raw + b"\n", at)
    place = ""
    if locate:
        number, place = _locate(path, number)
    return DataError(
        f"{path}:{number}", expected="UTF-8 text", got=f"byte 0x{raw[at]:02x}{place}{what}", hint=hint
    )


def _locate(path: Path, number: int) -> tuple[int, str]:
    """The line, from ``number`` on, of the first byte that is not UTF-8, and its place in words."""
    offset = 0
    with open_data(path) as stream:
        for line, content in enumerate(iter(lambda: stream.readline(ROW_BYTES), b""), start=1):
            if line >= number:
                try:
                    content.decode()
                except UnicodeDecodeError as error:
                    return line, f" at byte {offset + error.start} of the file"
            offset += len(content)
    return number, ""
