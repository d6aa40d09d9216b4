"""What a device has told survives whatever ends its agent, and damage is no reason to tell more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headwater.client.masking.held_vector import HeldVector
from headwater.client.masking.memory_file import MemoryFile
from headwater.errors import DecodeError, StorageError
from headwater.security.secagg.memory import Told

VECTOR, SIGNED = Told(b"a" * 16, b"v" * 32), Told(b"b" * 16, b"v" * 32, b"s" * 32)


def test_the_last_line_of_a_round_holds_after_a_restart(tmp_path: Path) -> None:
    memory = MemoryFile(tmp_path / "masks")
    assert memory.of("run", 1) is None
    memory.note("run", 1, VECTOR)
    memory.note("run", 2, VECTOR)
    memory.note("run", 1, SIGNED)
    memory.note("other", 1, VECTOR)
    for one in (memory, MemoryFile(tmp_path / "masks")):
        assert one.of("run", 1) == SIGNED
        assert one.of("run", 2) == one.of("other", 1) == VECTOR
        assert one.of("run", 3) is None


def test_a_torn_line_was_never_told(tmp_path: Path) -> None:
    memory = MemoryFile(tmp_path)
    memory.note("run", 1, VECTOR)
    with (tmp_path / "run.jsonl").open("ab") as file:
        file.write(b'[1, "62')
    again = MemoryFile(tmp_path)
    assert again.of("run", 1) == VECTOR
    again.note("run", 1, SIGNED)
    assert MemoryFile(tmp_path).of("run", 1) == SIGNED


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    MemoryFile(tmp_path).note("run", 1, SIGNED)
    (tmp_path / "run.jsonl").write_bytes(b"nonsense\n")
    with pytest.raises(StorageError, match=r"run\.jsonl, line 1"):
        MemoryFile(tmp_path).of("run", 1)


def test_a_held_vector_is_read_as_it_was_written() -> None:
    parts = [np.array([-(2**62), 0, 2**62]), np.array([], np.int64), np.array([7])]
    data = HeldVector(b"c" * 32, b"p" * 32, parts).to_bytes()
    found = HeldVector.from_bytes(data)
    assert (found.common, found.plan) == (b"c" * 32, b"p" * 32)
    assert all(np.array_equal(a, b) for a, b in zip(found.values, parts, strict=True))
    for cut in range(len(data)):
        with pytest.raises(DecodeError):
            HeldVector.from_bytes(data[:cut])
