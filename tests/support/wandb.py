"""What the offline files of wandb hold: :func:`records`. wandb has no reader of its own for Python.

A file is 4 bytes of name, 2 of magic, a version, and a log as LevelDB writes it: blocks of 32 KiB, in them
fragments with CRC-32 (4 bytes), length (2, little-endian) and type (whole, first, middle, last).
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(folder: Path) -> Iterator[Any]:
    """Every protobuf record of the files below ``folder``, the oldest file first.

    Each file's run has been closed; wandb's process may still be writing it, and is waited for.
    """
    for file in sorted(folder.glob("*/wandb/offline-run-*/*.wandb")):
        ends = time.monotonic() + 60
        while not (found := _read(file)) or not found[-1].HasField("exit"):
            assert time.monotonic() < ends, f"{file} does not end"
            time.sleep(0.05)
        yield from found


def history(folder: Path) -> list[dict[str, Any]]:
    """Each round's row."""
    rows = []
    for record in records(folder):
        if record.HasField("history"):
            items = record.history.item
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
    return rows


def _read(file: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(content) for content in _log(file.read_bytes())]


def _log(content: bytes) -> Iterator[bytes]:
    assert content[:4] in {b":W&B", b""}, content[:HEAD]
    at, parts = HEAD, b""
    while at + HEAD <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        kind, length = content[at + 6], int.from_bytes(content[at + 4 : at + 6], "little")
        data = content[at + HEAD : at + HEAD + length]
        if len(data) < length:  # being written
            return
        assert zlib.crc32(bytes([kind]) + data) == int.from_bytes(content[at : at + 4], "little")
        parts = data if kind in {WHOLE, FIRST} else parts + data
        if kind in {WHOLE, LAST}:
            yield parts
        at += HEAD + length
