"""JSON to rows: :func:`read_jsonl`, one object per line, and :func:`read_json`, one array of objects.

A row that cannot be read is handed on as its error, so that all of a file's bad rows are known at once.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from headwater.data.files.sniff import misfit
from headwater.data.files.table import Row
from headwater.errors import DataError

ROW_BYTES = 64 * 2**20
"""A longer row is refused: it is more likely a broken file than a text."""
MAX_DEPTH = 100
_OBJECT = "one JSON object per line"
_TO_LINES = "For example: `jq -c '.KEY[]' in.json > out.jsonl`."


def read_jsonl(path: Path, stream: BinaryIO) -> Iterator[Row]:
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


def read_json(path: Path, stream: BinaryIO) -> Iterator[Row]:
    """Rows of a JSON array of objects, by the line where each begins; JSON lines named .json too.

    Raises:
        DataError: it is neither, or breaks off.
    """
    content = stream.read().removeprefix(b"\xef\xbb\xbf")
    first = content.lstrip()[:1]
    if first != b"[":
        if not first:
            return
        _require_lines(path, content)
        yield from read_jsonl(path, io.BytesIO(content))
        return
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        begin = content.rfind(b"\n", 0, error.start) + 1
        raise _not_utf8(
            f"{path}:{line}", content[begin : begin + 65536], error.start - begin, begin
        ) from None
    del content
    position, counted, line = text.index("[") + 1, 0, 1
    first_element = True
    while True:
        position = _skip_space(text, position)
        if text[position : position + 1] == "]":
            if text[position + 1 :].strip():
                raise DataError(str(path), expected="one JSON array", got="more after its end")
            return
        if not first_element:
            if text[position : position + 1] != ",":
                _broken(path, text, position, "expected ',' or ']'")
            position = _skip_space(text, position + 1)
            if text[position : position + 1] == "]":
                _broken(path, text, position, "a comma before the closing bracket")
        first_element = False
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            _broken(path, text, error.pos, f"no valid JSON: {error.msg}")
        except (ValueError, RecursionError) as error:
            _broken(path, text, position, _short(error))
        line += text.count("\n", counted, position)
        counted = position
        yield line, _as_row(value, text[position:end], f"{path}:{line}", "an array of JSON objects")
        position = end


def _row(line: bytes, start: int, where: str) -> dict[str, object] | DataError:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return _not_utf8(where, line, error.start, start)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return DataError(where, expected=_OBJECT, got=f"{error.msg} (at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:
        return DataError(where, expected=_OBJECT, got=_short(error))
    return _as_row(value, text, where, _OBJECT)


def _as_row(value: object, text: str, where: str, expected: str) -> dict[str, object] | DataError:
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


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


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


def _short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    if "4300" in str(error):
        return "a number of more than 4300 digits"
    return str(error)


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position


def _not_utf8(where: str, line: bytes, at: int, start: int) -> DataError:
    what, hint = misfit(line, at)
    return DataError(
        where, expected="UTF-8 text", got=f"byte 0x{line[at]:02x} at byte {start + at} of the file{what}",
        hint=hint,
    )  # fmt: skip


def _broken(path: Path, text: str, position: int, message: str) -> NoReturn:
    line = text.count("\n", 0, position) + 1
    got = "the end of the file" if position >= len(text.rstrip()) else message
    raise DataError(f"{path}:{line}", expected="an array of JSON objects", got=got) from None


def _require_lines(path: Path, content: bytes) -> None:
    """Refuse one JSON object that holds all rows: which of its values are they?"""
    first, _, rest = content.strip().partition(b"\n")
    try:
        whole = json.loads(first)
        if rest:  # JSON lines
            return
    except (ValueError, RecursionError):
        try:
            whole = json.loads(content)
        except (ValueError, RecursionError) as error:
            if first.strip() == b"{":
                raise DataError(str(path), expected="a JSON array of objects", got=str(error)[:200]) from None
            return  # JSON lines with a broken first one: it is named with its line
    if not isinstance(whole, dict):
        return
    chats = ("messages", "conversations")
    if rest or any(isinstance(v, list | dict) and k not in chats for k, v in whole.items()):
        names = ", ".join(repr(key[:40]) for key in list(whole)[:8])
        raise DataError(
            str(path), expected="a JSON array of objects, or one object per line",
            got=f"one object with the keys {names}", hint=_TO_LINES,
        )  # fmt: skip
