"""JSON lines to rows: :func:`read_jsonl`. Arrays are in :mod:`headwater.data.files.json_array`.

A row that cannot be read is handed on as its error, so that all of a file's bad rows are known at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from headwater.data.files.sniff import misfit
from headwater.data.files.table import Row
from headwater.errors import DataError

ROW_BYTES = 64 * 2**20
"""A longer row is refused: it is more likely a broken file than a text."""
MAX_DEPTH = 100
_OBJECT = "one JSON object per line"


class Lines(Protocol):
    """What has lines of bytes."""

    def readline(self, size: int, /) -> bytes:
        """The next line, at most ``size`` bytes of it; nothing at the end."""


def read_jsonl(path: Path, stream: Lines) -> Iterator[Row]:
    """Rows of JSON lines, UTF-8, by their line; blank lines are passed over.

    Raises:
        DataError: the file as a whole is something else.
    """
    offset = number = 0
    any_row = False
    while line := stream.readline(ROW_BYTES + 1):
        number += 1
        start, offset = offset, offset + len(line)
        if len(line) > ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(ROW_BYTES)
                offset += len(line)
            yield (
                number,
                DataError(
                    f"{path}:{number}",
                    expected=f"a row of at most {ROW_BYTES >> 20} MiB",
                    got="a longer line",
                ),
            )
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
            start = offset - len(line)
        if not line.strip():
            continue
        if not any_row and line.strip() in (b"{", b"["):
            raise DataError(
                f"{path}:{number}",
                expected=_OBJECT,
                got="JSON spread over several lines",
                hint="Name an array of objects *.json, or write each object into one line: "
                "`jq -c . in.json > out.jsonl`.",
            )
        any_row = True
        yield number, _row(line, start, f"{path}:{number}")


def _row(line: bytes, start: int, where: str) -> dict[str, object] | DataError:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return not_utf8(where, line, error.start, start)
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        return DataError(where, expected=_OBJECT, got=f"{error.msg} (at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:
        return DataError(where, expected=_OBJECT, got=short(error))
    return as_row(value, text, where, _OBJECT)


def as_row(value: object, text: str, where: str, expected: str) -> dict[str, object] | DataError:
    """``value``, if it is a row; ``text`` is as it is written."""
    if not isinstance(value, dict):
        hint = "Name an array of objects *.json." if isinstance(value, list) else ""
        return DataError(where, expected=expected, got=f"a {type(value).__name__}", hint=hint)
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        return DataError(where, expected=f"at most {MAX_DEPTH} levels of nesting", got="more")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None
        raise ValueError(f"the key {twice[:60]!r} twice in one object")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _deeper(value: object, depth: int) -> bool:
    """Whether ``value`` is nested deeper than ``depth``. Not recursive."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def short(error: Exception) -> str:
    """What the decoder says, in a few words."""
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    if "4300" in str(error):
        return "a number of more than 4300 digits"
    return str(error)


def not_utf8(where: str, line: bytes, at: int, start: int) -> DataError:
    """That ``line[at]`` is no UTF-8, of a line that begins at byte ``start`` of the file."""
    what, hint = misfit(line, at)
    return DataError(
        where, expected="UTF-8 text", got=f"byte 0x{line[at]:02x} at byte {start + at} of the file{what}",
        hint=hint,
    )  # fmt: skip
