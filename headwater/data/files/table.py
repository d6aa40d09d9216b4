"""Table: rows of a data file, column by column, each row knowing the file and line it came from."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headwater.data.files.streams import stem
from headwater.errors import DataError

FILE_COLUMN = "__file__"
"""A column that every table has: the name of the row's file without its suffixes."""

Row = tuple[int, dict[str, object] | DataError]
"""What readers yield: a line (from 1) and its values by column, or what is wrong with it."""


@dataclass(frozen=True)
class Table:
    """Rows as columns of equal length.

    Args:
        columns: values by column name; None where a row has no such value.
        files: the files read, in order.
        file: per row, the index of its file in ``files``.
        line: per row, its line in a text file (from 1), or its row in a columnar one (from 1).
        unit: per file, what ``line`` counts: ``"line"`` or ``"row"``.
        layouts: per file that was looked at, how its rows are read: :mod:`headwater.data.files.layouts`.
    """

    columns: Mapping[str, Sequence[object]]
    files: tuple[Path, ...]
    file: Sequence[int]
    line: Sequence[int]
    unit: Sequence[str]
    layouts: dict[int, object] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.line)

    def where(self, row: int) -> str:
        """``file:line`` of a row of text, ``file row n`` of a columnar row."""
        index = self.file[row]
        if self.unit[index] == "line":
            return f"{self.files[index]}:{self.line[row]}"
        return f"{self.files[index]} row {self.line[row]}"

    def stem(self, row: int) -> str:
        """The name of the row's file, without its suffixes."""
        return stem(self.files[self.file[row]])

    def require(self, column: str) -> str:
        """``column``, if it is there.

        Raises:
            DataError: it is not; says what columns exist.
        """
        if column != FILE_COLUMN and column not in self.columns:
            names = ", ".join(f"{name!r:.60}" for name in list(self.columns)[:20])
            names += f" and {len(self.columns) - 20} more" if len(self.columns) > 20 else ""
            raise DataError(
                str(self.files[0] if len(self.files) == 1 else self.files[0].parent),
                expected=f"a column {column!r}",
                got=f"the columns {names}",
                hint="Name the right column in [data] of the federation file, or rename it in the data.",
            )
        return column

    def value(self, column: str, row: int) -> object:
        """The value at ``row``.

        Raises:
            DataError: there is no such column, or this row has no value in it.
        """
        if column == FILE_COLUMN:
            return self.stem(row)
        self.require(column)
        value = self.columns[column][row]
        if value is None:
            raise DataError(
                self.where(row),
                expected=f"a value in column {column!r}",
                got="none",
                hint="Fill it in or take the row out.",
            )
        return value

    def text(self, column: str, row: int) -> str:
        """The text at ``row``, which must hold something other than white space."""
        value = self.value(column, row)
        if not isinstance(value, str):
            raise DataError(
                self.where(row),
                expected=f"text in column {column!r}",
                got=f"{type(value).__name__} {value!r:.40}",
            )
        if not value.strip():
            raise DataError(
                self.where(row),
                expected=f"text in column {column!r}",
                got="an empty text",
                hint="Take the row out.",
            )
        return require_unicode(value, self.where(row), column)

    def words(self, column: str, row: int) -> list[str]:
        """The words at ``row``: a list of texts, or a text that spaces divide; at least one."""
        value = self.value(column, row)
        found = self.text(column, row).split() if isinstance(value, str) else value
        if not isinstance(found, list) or not found or not all(isinstance(word, str) for word in found):
            raise DataError(
                self.where(row),
                expected=f"a list of words in column {column!r}",
                got="an empty list" if found == [] else f"{type(value).__name__} {value!r:.40}",
            )
        return [require_unicode(word, self.where(row), column) for word in found]

    def name(self, column: str, row: int) -> str:
        """The label or client at ``row``: text, or a number as ``str()`` writes it."""
        value = self.value(column, row)
        if not isinstance(value, str | int | float) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise DataError(
                self.where(row),
                expected=f"text or a number in column {column!r}",
                got=f"{type(value).__name__} {value!r:.40}",
            )
        return str(value)


def require_unicode(text: str, where: str, column: str) -> str:
    """``text``, if it is whole Unicode without NUL.

    Raises:
        DataError: it is not.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            where,
            expected=f"Unicode text in column {column!r}",
            got=f"half of a surrogate pair at character {error.start}",
        ) from None
    if "\x00" in text:
        raise DataError(
            where,
            expected=f"text in column {column!r} without NUL characters",
            got=f"one at character {text.index(chr(0))}",
        )
    return text


def check_name(name: str, who: str) -> str:
    """``name`` if it can name a client: 1–64 printable characters, in NFC, no white space around them.

    Raises:
        DataError: names ``who``, where the name came from.
    """
    problem = ""
    if not name:
        problem = "an empty name"
    elif len(name) > 64:
        problem = f"{len(name)} characters: {name[:24]!r}…"
    elif not name.isprintable() or name != unicodedata.normalize("NFC", name).strip():
        problem = ascii(name)
    if problem:
        raise DataError(
            who,
            expected="a client name of 1 to 64 printable characters in Unicode form NFC, not padded",
            got=problem,
        )
    return name
