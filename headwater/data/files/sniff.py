"""What bytes are, in words: :func:`binary_kind` of a file's head, :func:`misfit` of a byte that is not UTF-8.

A message that says "a zip archive, as Excel files are" or "UTF-16 text" tells an owner what to do;
"byte 0x50 at 0" does not.
"""

from __future__ import annotations

HEAD = 4096
"""Bytes of a file's beginning that are enough to tell."""

_MAGIC = (
    (b"\x00\x00\xfe\xff", "UTF-32 text"),
    (b"\xff\xfe\x00\x00", "UTF-32 text"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"PK\x03\x04", "a zip archive, as Excel (.xlsx) and Word files are"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file (.xls, .doc)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
)
_SUFFIX = {"gzip-compressed data": ".gz", "bzip2-compressed data": ".bz2", "xz-compressed data": ".xz",
           "zstd-compressed data": ".zst", "a Parquet file": ".parquet"}  # fmt: skip


def binary_kind(head: bytes) -> str | None:
    """What a file that begins with ``head`` is, if that is anything but text in UTF-8.

    Args:
        head: its first bytes, :data:`HEAD` of them or all.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    start = head[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"<?xml"):
        return "an XML file"
    return _by_zeros(head)


def advice(kind: str, path_suffix: str) -> str:
    """The next step with a file of this kind, named ``*path_suffix``."""
    if kind.startswith("UTF-"):
        return f"Save the file as UTF-8, for example with `iconv -f {kind.split()[0].lower()} -t utf-8`."
    if (suffix := _SUFFIX.get(kind)) is not None:
        return f"Name it *{suffix if suffix == '.parquet' else path_suffix + suffix}."
    if "Excel" in kind:
        return "Open it in its program and save it as CSV (UTF-8)."
    return "Give the data as JSONL, CSV or Parquet."


def misfit(line: bytes, at: int) -> tuple[str, str]:
    """What the byte ``line[at]``, where UTF-8 ends, seems to be, and what to do about it."""
    try:
        line[at:].decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start == 0 and b"\n" not in line[at:]:
            return " in the middle of a character", "The file seems cut off: copy it again."
    try:
        near = line[max(0, at - 1) : at + 2].decode("cp1252")
        letter = line[at : at + 1].decode("cp1252")
    except UnicodeDecodeError:
        near = letter = ""
    high = sum(byte >= 0x80 for byte in line)
    latin = letter and (letter.isalpha() or letter in "\u2018\u2019\u201c\u201d\u2013\u2014\u2026€£§°")
    if latin and high * 3 < len(line) and not (len(near) == 3 and ord(near[2]) >= 0x80):
        return f" (in cp1252 it is {letter!r})", (
            "Save the file as UTF-8, for example with `iconv -f cp1252 -t utf-8`."
        )
    return " (the text is in another encoding)", (
        "Save the file as UTF-8: `iconv -f ENCODING -t utf-8`, where `file -i` may tell the encoding."
    )


def _by_zeros(head: bytes) -> str | None:
    """Wide encodings without a byte order mark have zeros in every second or fourth byte."""
    if b"\x00" not in head:
        return None
    if not head.strip(b"\x00"):
        return "nothing but zero bytes, as after a crash or a broken copy"
    quarter = len(head) // 4 or 1
    lanes = [head[i::4].count(0) / quarter for i in range(4)]
    if sum(lane > 0.9 for lane in lanes) >= 2 and len(head) >= 8:
        if lanes[1] > 0.9 and lanes[2] > 0.9:
            return "UTF-32 text without a byte order mark"
        if (lanes[0] > 0.9) == (lanes[2] > 0.9) and (lanes[1] > 0.9) == (lanes[3] > 0.9):
            return f"UTF-16{'LE' if lanes[1] > 0.9 else 'BE'} text without a byte order mark"
    even, odd = lanes[0] + lanes[2], lanes[1] + lanes[3]
    if len(head) >= 8 and min(even, odd) < 0.05 and max(even, odd) > 0.6:
        return f"UTF-16{'LE' if odd > even else 'BE'} text without a byte order mark"
    # a zero in the middle of text is a row's fault, and said with its line
    controls = sum(byte < 9 or 13 < byte < 32 for byte in head)
    return "binary data" if controls * 20 > len(head) else None
