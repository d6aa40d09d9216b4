"""A JSON array to rows, piece by piece: :func:`read_json` holds a row and a megabyte, not the file."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from headwater.data.files.json_rows import DECODER, ROW_BYTES, as_row, not_utf8, read_jsonl, short
from headwater.data.files.table import Row
from headwater.errors import DataError

_READ = 2**20
_NEAR = 4096
"""Characters: what is broken so near the end of what was read may be whole with what follows."""
_BOM = b"\xef\xbb\xbf"
_ARRAY = "an array of JSON objects"
_EITHER = "a JSON array of objects, or one object per line"
_TO_LINES = "For example: `jq -c '.KEY[]' in.json > out.jsonl`."


def read_json(path: Path, stream: io.BufferedReader[io.RawIOBase]) -> Iterator[Row]:
    """Rows of a JSON array of objects, by the line where each begins; JSON lines named .json too.

    Raises:
        DataError: it is neither, or breaks off.
    """
    if stream.peek(1).removeprefix(_BOM).lstrip()[:1] != b"[":
        lines = _Ahead(stream)
        lines.require_rows(path)
        yield from read_jsonl(path, lines)
        return
    text = _Text(path, stream)
    text.next()
    text.at += 1
    first = True
    while (mark := text.next()) != "]":
        if not first:
            if mark != ",":
                text.broken(text.at, "expected ',' or ']'")
            text.at += 1
            if text.next() == "]":
                text.broken(text.at, "a comma before the closing bracket")
        first = False
        line = text.line(text.at)
        value, written = text.value()
        yield line, as_row(value, written, f"{path}:{line}", _ARRAY)
    text.at += 1
    if text.next():
        raise DataError(str(path), expected="one JSON array", got="more after its end")


class _Text:
    """A window on a stream of UTF-8: :attr:`at` is where reading has come to in :attr:`text`."""

    def __init__(self, path: Path, stream: io.BufferedReader[io.RawIOBase]) -> None:
        self._path, self._stream = path, stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._begin = 0  # of what is decoded next, in bytes of the file
        self._counted, self._line = 0, 1  # so far in the text, and the line there
        self._ended = False
        self.text, self.at = "", 0

    def next(self) -> str:
        """Pass over white space; the character there, or nothing at the end of the file."""
        while True:
            while (character := self.text[self.at : self.at + 1]) in (" ", "\t", "\n", "\r"):
                self.at += 1
            if character or not self._more(_READ):
                return character

    def value(self) -> tuple[object, str]:
        """The JSON value here, and as it is written; :attr:`at` is then behind it."""
        read = _READ
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                whole = len(self.text) - error.pos > _NEAR and not error.msg.startswith("Unterminated")
                offset = error.pos - self.at
                if whole or not self._more(read):
                    self.broken(self.at + offset, f"no valid JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                self.broken(self.at, short(error))
            else:
                length = end - self.at
                if end < len(self.text) or not self._more(read):  # a number may go on
                    written = self.text[self.at : self.at + length]
                    self.at += length
                    return value, written
            if len(self.text) > ROW_BYTES:
                where = f"{self._path}:{self.line(self.at)}"
                raise DataError(where, expected=f"a row of at most {ROW_BYTES >> 20} MiB", got="a longer one")
            read *= 2

    def line(self, position: int) -> int:
        """The line of the file that ``position`` of the text is in."""
        if position >= self._counted:
            self._line += self.text.count("\n", self._counted, position)
            self._counted = position
            return self._line
        return self._line - self.text.count("\n", position, self._counted)

    def broken(self, position: int, message: str) -> NoReturn:
        """Raise what is wrong at ``position``."""
        there = self.text[position : position + _NEAR].strip() or not self._ended
        where = f"{self._path}:{self.line(position)}"
        got = message if there else "the end of the file"
        raise DataError(where, expected=_ARRAY, got=got) from None

    def _more(self, size: int) -> bool:
        """Read on, and drop what is behind; False at the end of the file."""
        if self._ended:
            return False
        content = self._stream.read(max(size, len(_BOM)))
        self._ended = not content
        if self._begin == 0 and content.startswith(_BOM):
            content, self._begin = content.removeprefix(_BOM), len(_BOM)
        rest = len(self._decoder.getstate()[0])
        line = self.line(self.at)
        kept = self.text[self.at :]
        self.text, self.at, self._counted, self._line = kept, 0, 0, line
        try:
            self.text += self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._no_text(error, rest) from None
        self._begin += len(content)
        return not self._ended

    def _no_text(self, error: UnicodeDecodeError, rest: int) -> DataError:
        piece, begin = error.object, error.object.rfind(b"\n", 0, error.start) + 1
        line = self.line(len(self.text)) + piece.count(b"\n", 0, error.start)
        start = self._begin - rest + begin
        return not_utf8(f"{self._path}:{line}", piece[begin : begin + 2**16], error.start - begin, start)


class _Ahead:
    """Lines of a stream of which some bytes were looked at before."""

    def __init__(self, stream: io.BufferedReader[io.RawIOBase]) -> None:
        self._stream, self._held = stream, io.BytesIO()

    def readline(self, size: int) -> bytes:
        """As the stream's own."""
        line = self._held.readline(size)
        return line if line.endswith(b"\n") else line + self._stream.readline(size - len(line))

    def require_rows(self, path: Path) -> None:
        """Refuse one JSON object that holds all rows: which of its values are they?"""
        lines = b""
        while (line := self._stream.readline(ROW_BYTES)) and not line.removeprefix(_BOM).strip():
            lines += line
        first, rest = line.removeprefix(_BOM).strip(), bool(self._stream.peek(1).strip())
        self._held = io.BytesIO(lines + line)
        try:
            whole = json.loads(first) if first else None
            if rest:  # JSON lines
                return
        except (ValueError, RecursionError):
            content = lines + line + self._stream.read(ROW_BYTES)
            self._held = io.BytesIO(content)
            try:
                whole = json.loads(content.removeprefix(_BOM))
            except (ValueError, RecursionError) as error:
                if first != b"{":
                    return  # JSON lines with a broken first one: it is named with its line
                got = str(error)[:200]
                if self._stream.peek(1):
                    got = f"one object of more than {ROW_BYTES >> 20} MiB"
                raise DataError(str(path), expected=_EITHER, got=got, hint=_TO_LINES) from None
        chats = ("messages", "conversations")
        if isinstance(whole, dict) and (
            rest or any(isinstance(v, list | dict) and k not in chats for k, v in whole.items())
        ):
            names = ", ".join(repr(key[:40]) for key in list(whole)[:8])
            got = f"one object with the keys {names}"
            raise DataError(str(path), expected=_EITHER, got=got, hint=_TO_LINES)
