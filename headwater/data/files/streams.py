"""A data file as a stream of bytes, unpacked on the way: :func:`open_data`.

What comes out of a compressed file is bounded: a few bytes can unpack to terabytes.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from headwater.data.files.sniff import HEAD, advice, binary_kind
from headwater.errors import DataError, MissingDependency

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ALWAYS_UNPACKED, MOST_TIMES = 64 * 2**20, 200
"""A compressed file may unpack to 64 MiB, or to 200 times its size if that is more."""

_DAMAGED = "If it is not compressed, take the last suffix off its name; else it is damaged: get it again."

Watch = Callable[[int], None]
"""Told how many bytes of a file were read since it was last told."""


def suffixes(path: Path) -> tuple[str, str]:
    """The suffix of a file's format and that of its compression, lower-case: ``a.csv.gz`` has both."""
    name = path.name.lower()
    packed = next((c for c in COMPRESSIONS if name.endswith(c)), "")
    return Path(name.removesuffix(packed)).suffix, packed


def stem(path: Path) -> str:
    """A file's name without the suffixes of its format and compression."""
    packed = suffixes(path)[1]
    return Path(path.name[: len(path.name) - len(packed)]).stem


@contextmanager
def open_data(path: Path, watch: Watch | None = None) -> Iterator[io.BufferedReader[io.RawIOBase]]:
    """The bytes of a text file, unpacked. Nothing but UTF-8 text gets further than its first bytes.

    Raises:
        DataError: it cannot be read, is no text, or unpacks to too much.
        MissingDependency: zstd without pyarrow.
    """
    suffix, packed = suffixes(path)
    with ExitStack() as stack:
        try:
            raw: io.RawIOBase = stack.enter_context(path.open("rb", buffering=0))
            size = path.stat().st_size
        except OSError as error:
            raise DataError(str(path), expected="a readable file", got=error.strerror or str(error)) from None
        limit = max(ALWAYS_UNPACKED, MOST_TIMES * size) if packed else None
        counted = io.BufferedReader(_Watched(raw, path, watch))
        inner = cast("io.RawIOBase", _unpacked(counted, packed, path) if packed else counted)
        watched: io.RawIOBase = _Watched(inner, path, limit=limit)
        stream = io.BufferedReader(watched, 2**20)
        head = stream.peek(HEAD)[:HEAD]
        if (kind := binary_kind(head)) is not None:
            raise DataError(
                str(path), expected=f"UTF-8 text, as in every *{suffix}{packed}", got=kind,
                hint=advice(kind, suffix),
            )  # fmt: skip
        yield stream


class _Watched(io.RawIOBase):
    """Reads from ``inner``, tells ``watch``, stops at ``limit``, speaks of errors as ours."""

    def __init__(
        self,
        inner: io.RawIOBase | BinaryIO,
        path: Path,
        watch: Watch | None = None,
        *,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        self._inner, self._path, self._watch, self._limit, self._read = inner, path, watch, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # whatever io passes is a buffer
        try:
            data = self._inner.read(len(view)) or b""
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            what = "a readable file" if self._limit is None else "a whole compressed file"
            hint = "" if self._limit is None else _DAMAGED
            raise DataError(str(self._path), expected=what, got=text, hint=hint) from None
        view[: len(data)] = data
        self._read += len(data)
        if self._watch is not None:
            self._watch(len(data))
        if self._limit is not None and self._read > self._limit:
            raise DataError(
                str(self._path),
                expected=f"a compressed file that unpacks to at most {MOST_TIMES} times its size "
                f"(or {ALWAYS_UNPACKED >> 20} MiB)",
                got=f"more than {self._limit:,} bytes",
                hint="If this is right, unpack it first.",
            )
        return len(data)


def _unpacked(stream: io.BufferedIOBase, packed: str, path: Path) -> io.IOBase:
    opened = cast("BinaryIO", stream)
    if packed == ".gz":
        return gzip.GzipFile(fileobj=opened)
    if packed == ".bz2":
        return bz2.BZ2File(opened)
    if packed == ".xz":
        return lzma.LZMAFile(opened)
    try:
        arrow = importlib.import_module("pyarrow")
    except ImportError:
        raise MissingDependency(
            str(path),
            expected="the package pyarrow, to unpack zstd",
            got="nothing",
            hint="Install it with `pip install headwater[simulation]`, or unpack the file.",
        ) from None
    return cast("io.IOBase", arrow.CompressedInputStream(stream, "zstd"))
