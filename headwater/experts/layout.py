"""The bytes of a ``.hw`` file: a header that lists its parts, the parts, and a checksum over all before it.

:func:`write` and :class:`Layout` are inverses. Everything that is read is a stranger's: sizes are bounded
before memory is taken, and the checksum is checked before anything is believed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.compression.byte_reader import Reader, varint
from headwater.errors import DecodeError, StorageError
from headwater.experts.fields import LONGEST, ConfigFields, NoteFields, from_bytes, to_bytes
from headwater.files import read_at

MAGIC = b"\x89HWX\r\n\x1a\n\x01"
"""A byte that no text has, the name, line ends that a transfer as text would change, and the version."""
HINT = "Ask for the file again, or compress the adapter again with this version."
FACTORS, TERNARY, NUMBERS = 0, 1, 2
"""How a part is coded."""
SUM = 32
"""Bytes of the checksum, SHA-256."""
_LONGEST_HEADER, _MOST_PARTS, _LONGEST_NAME, _MOST_AXES = 16 << 20, 1 << 18, 1024, 8
FREE, EXPANSION = 64 << 20, 16384
"""Bytes of values, as float32, that any file may hold, and how many more for each of its own bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor, or the two factors of a LoRA module.

    Args:
        name: of the tensor or the module.
        coding: :data:`FACTORS`, :data:`TERNARY` or :data:`NUMBERS`.
        variant: of the coding, 0 to 15: the type of numbers, what ternary values are added to, or 1 for the
            factors of an embedding.
        shape: of the tensor; of factors (r, rows, axes of the inputs …).
    """

    name: str
    coding: int
    variant: int
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many numbers it stands for."""
        if self.coding == FACTORS:
            rank, rows, *inputs = self.shape
            return rank * (rows + math.prod(inputs))
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says before its parts.

    Args:
        config: of PEFT, without scales where it has factors.
        notes: of Headwater, or empty.
        origin: the digest of the adapter that values are added to; empty without.
        head: whether the tensors ``head.…`` are a file of their own in a folder.
    """

    config: Mapping[str, Any]
    notes: Mapping[str, Any]
    origin: bytes
    head: bool


def write(header: Header, parts: Sequence[tuple[Part, bytes]]) -> bytes:
    """The file.

    Args:
        header: of it.
        parts: in order of their names, each once.
    """
    config, notes = to_bytes(header.config), to_bytes(header.notes) if header.notes else b""
    out = bytearray(varint(len(config)) + config + varint(len(notes)) + notes)
    out += bytes([len(header.origin)]) + header.origin + bytes([header.head]) + varint(len(parts))
    before = b""
    for part, body in parts:
        name = part.name.encode()
        shared = _shared(before, name)
        out += varint(shared) + varint(len(name) - shared) + name[shared:]
        out += bytes([16 * part.coding + part.variant, len(part.shape)])
        out += b"".join(varint(size) for size in part.shape) + varint(len(body))
        before = name
    whole = MAGIC + varint(len(out)) + bytes(out) + b"".join(body for _, body in parts)
    return whole + hashlib.sha256(whole).digest()


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes two names begin with together."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class Layout:
    """An opened file, whose checksum was right.

    Args:
        path: of the file, which must not change while it is open.

    Attributes:
        header: what it says.
        parts: by name, in their order.
        size: its bytes.
        digest: its checksum, hex.

    Raises:
        StorageError: it cannot be read.
        DecodeError: it is no such file, or not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        start = self._check()
        reader = Reader(start, f"{path}", HINT)
        if reader.take(len(MAGIC), "signature") != MAGIC:
            raise reader.fail("a compressed adapter of version 1", "something else")
        head = reader.take(reader.varint(min(_LONGEST_HEADER, self.size), "header's length"), "header")
        at = len(MAGIC) + len(varint(len(head))) + len(head)
        self._places: dict[str, tuple[int, int]] = {}
        self.parts: dict[str, Part] = {}
        reader = Reader(head, f"{path}, header", HINT)
        self.header = _header(reader)
        for part, size in _parts(reader):
            self.parts[part.name] = part
            self._places[part.name] = at, size
            at += size
        reader.end()
        if at != self.size - SUM:
            raise reader.fail(f"parts of {self.size - SUM} bytes", f"{at}")
        values = sum(part.values for part in self.parts.values())
        if 4 * values > FREE + EXPANSION * self.size:
            raise reader.fail(f"at most {(FREE + EXPANSION * self.size) // 4} values in it", f"{values}")

    def _check(self) -> bytes:
        """The start of the file, with its header; the checksum is right."""
        digest, start = hashlib.sha256(), bytearray()
        try:
            with self.path.open("rb") as file:
                self.size = left = os.fstat(file.fileno()).st_size
                left -= SUM
                while left > 0 and (block := file.read(min(left, 1 << 20))):
                    if not start and not block.startswith(MAGIC):
                        raise _not_ours(self.path, block)
                    digest.update(block)
                    if len(start) < _LONGEST_HEADER + 64:
                        start += block
                    left -= len(block)
                found = file.read(SUM)
                if not start and not found.startswith(MAGIC):
                    raise _not_ours(self.path, found)
        except OSError as error:
            raise StorageError(f"{self.path}", expected="a readable file", got=f"{error.strerror}") from error
        if found != digest.digest() or not start:
            raise DecodeError(
                f"{self.path}", expected="bytes with the checksum at their end", got="others", hint=HINT
            )
        self.digest = digest.hexdigest()
        return bytes(start)

    def bytes_of(self, name: str) -> int:
        """The length of a part."""
        return self._places[name][1]

    def body(self, name: str) -> Reader:
        """A reader of a part's bytes.

        Raises:
            DecodeError: the file became shorter.
        """
        at, size = self._places[name]
        with self.path.open("rb", buffering=0) as file:
            data = bytes(read_at(file, at, size))
        reader = Reader(data, f"{self.path}, {name}", HINT)
        if len(data) != size:
            raise reader.fail(f"{size} bytes", f"{len(data)}: the file has changed")
        return reader


def _not_ours(path: Path, start: bytes) -> DecodeError:
    version = len(start) >= len(MAGIC) and start.startswith(MAGIC[:-1])
    return DecodeError(
        f"{path}",
        expected="an adapter's folder, or a file that headwater compress wrote",
        got=f"version {start[len(MAGIC) - 1]} of such a file" if version else "another file",
        hint="Update Headwater."
        if version
        else "Give what save_pretrained wrote, or a .hw file; --data goes before each file of rows.",
    )


def _header(reader: Reader) -> Header:
    length = reader.varint(LONGEST, "length of config")
    config = from_bytes(reader, reader.take(length, "config"), ConfigFields)
    length = reader.varint(LONGEST, "length of notes")
    notes = from_bytes(reader, reader.take(length, "notes"), NoteFields) if length else {}
    origin = reader.take(reader.byte((0, SUM), "length of the origin's digest"), "origin's digest")
    return Header(config, notes, origin, bool(reader.byte((0, 1), "whether there is a head")))


def _parts(reader: Reader) -> list[tuple[Part, int]]:
    found: list[tuple[Part, int]] = []
    before = b""
    for _ in range(reader.varint(_MOST_PARTS, "number of parts")):
        shared = reader.varint(len(before), "length of a shared name")
        rest = reader.take(reader.varint(_LONGEST_NAME - shared, "length of a name"), "name")
        name = before[:shared] + rest
        if name <= before or before[shared : shared + 1] == rest[:1] != b"":
            raise reader.fail("names in their order, each once", repr(name)[:80])
        coding = reader.byte((0, 1, *range(16, 19), *range(32, 36)), "coding")
        axes = reader.byte(tuple(range(_MOST_AXES + 1)), "number of axes")
        shape = tuple(reader.varint(1 << 31, "size of an axis") for _ in range(axes))
        part = Part(_text(reader, name), coding // 16, coding % 16, shape)
        if part.coding == FACTORS and (axes < 3 or 0 in shape or (part.variant and axes > 3)):
            raise reader.fail(f"{part.name}: rank, rows and axes of inputs", f"{shape}")
        found.append((part, reader.varint(1 << 40, "length of a part")))
        before = name
    return found


def _text(reader: Reader, name: bytes) -> str:
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise reader.fail("a name in UTF-8", repr(name)[:80]) from error
    if not text.isprintable() or text.startswith("__"):
        raise reader.fail("the name of a tensor", repr(text)[:80])
    return text
