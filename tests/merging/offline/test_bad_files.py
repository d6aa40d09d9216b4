"""Files that headwater merge refuses: quantised, not sound, not there, changed meanwhile."""

from __future__ import annotations

import json
import os
import pickle
import struct

import numpy as np
import pytest

import headwater
from headwater.errors import DecodeError, ModelError, StorageError
from headwater.merging.offline.folder import merge_folders
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rules.linear import Mean
from tests.merging.offline.small_adapters import CONFIG, WEIGHTS, adapter, edit, refused


def test_quantised_tensors(tmp_path):
    a = edit(adapter(tmp_path / "a"), **{"q_proj.lora_A.weight": np.ones((2, 5), np.int8)})
    refused(tmp_path, [a], DecodeError, "layers.0.q_proj.lora_A.weight", "got I8")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"r": ' + b"9" * 5000 + b"}", b" " * (17 << 20)],
    ids=["empty", "torn", "list", "no utf-8", "brackets", "long number", "huge"],
)
def test_a_config_that_is_no_json(tmp_path, content):
    a = adapter(tmp_path / "a")
    (a / CONFIG).write_bytes(content)
    refused(tmp_path, [a], DecodeError, str(a / CONFIG))


def test_notes_that_are_no_json(tmp_path):
    a = adapter(tmp_path / "a")
    (a / "headwater.json").write_text("{")
    refused(tmp_path, [a], DecodeError, str(a / "headwater.json"))


def test_files_that_are_not_there_or_none(tmp_path):
    a = adapter(tmp_path / "a")
    refused(tmp_path, [tmp_path / "none"], StorageError, str(tmp_path / "none"), "No such file")
    refused(tmp_path, [a / CONFIG], DecodeError, str(a / CONFIG), "Give what save_pretrained wrote")
    (a / WEIGHTS).unlink()
    refused(tmp_path, [a], ModelError, str(a), "no file of weights")
    (a / CONFIG).unlink()
    os.mkfifo(a / CONFIG)  # reading one waits for ever
    refused(tmp_path, [a], DecodeError, str(a / CONFIG))


def test_links_in_a_circle(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "y")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    refused(tmp_path, [tmp_path / "x"], StorageError, str(tmp_path / "x"))
    a = adapter(tmp_path / "a")
    refused(tmp_path, [a], StorageError, "--output", out=tmp_path / "x" / "out")


def test_a_pickle_is_not_loaded(tmp_path):
    a = adapter(tmp_path / "a")
    (a / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
    (a / WEIGHTS).rename(tmp_path / "kept")
    refused(tmp_path, [a], ModelError, str(a), "adapter_model.bin, a pickle")
    (a / "adapter_model.bin").rename(a / WEIGHTS)
    refused(tmp_path, [a], DecodeError, str(a / WEIGHTS), "a pickle")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_of_a_length_that_begins_as_a_pickle_does_is_none(tmp_path, length):
    a = adapter(tmp_path / "a")
    data = (a / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size < length
    header = data[8 : 8 + size].ljust(length)
    (a / WEIGHTS).write_bytes(struct.pack("<Q", length) + header + data[8 + size :])
    assert headwater.merge([a], tmp_path / "out").adapters == 1


def _header(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_header(data: bytes, header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + int.from_bytes(data[:8], "little") :]


def _overlapping(data: bytes) -> bytes:
    header = _header(data)
    first, *others = header
    for name in others:
        header[name]["data_offsets"] = header[first]["data_offsets"]
    return _with_header(data, header)


def _with_a_gap(data: bytes) -> bytes:
    header = _header(data)
    for entry in header.values():
        entry["data_offsets"] = [at + 8 for at in entry["data_offsets"]]
    return _with_header(data, header) + b"\0" * 8


def _larger_shape(data: bytes) -> bytes:
    header = _header(data)
    next(iter(header.values()))["shape"] = [1 << 40, 1 << 40]
    return _with_header(data, header)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:40],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 1 << 62) + data[8:],
        lambda data: struct.pack("<Q", (1 << 64) - 1) + data[8:],
        lambda data: struct.pack("<Q", 0) + data[8:],
        lambda data: data[:8] + b"\xff" * 16 + data[24:],
        lambda data: struct.pack("<Q", 100_000) + b"[" * 100_000,
        _overlapping,
        _with_a_gap,
        _larger_shape,
    ],
    ids=[
        "empty", "seven bytes", "torn header", "a byte less", "a byte more", "huge header", "largest header",
        "no header", "no utf-8", "brackets", "overlap", "gap", "larger shape",
    ],
)  # fmt: skip
def test_files_that_are_not_sound(tmp_path, spoil):
    a, b = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)
    (b / WEIGHTS).write_bytes(spoil((b / WEIGHTS).read_bytes()))
    refused(tmp_path, [a, b], DecodeError, str(b / WEIGHTS))


def test_a_name_of_a_tensor_that_patterns_would_search_for_ever(tmp_path):
    a = adapter(tmp_path / "a", modules=("x" * 5000,), rank_pattern={".*x.*x.*y": 2})
    refused(tmp_path, [a], DecodeError, "a name of at most 1024 characters")


@pytest.mark.parametrize("name", ["a\nheadwater: done", "a\x1b[2J"])
def test_a_name_of_a_tensor_that_would_write_on_the_terminal(tmp_path, name):
    a = adapter(tmp_path / "a", modules=(name,))
    refused(tmp_path, [a], DecodeError, str(a), repr(name)[1:-1], "all of them printable")


def test_values_beyond_float32_are_refused_before_a_rule_makes_nothing_of_them(tmp_path):
    a = edit(adapter(tmp_path / "a"), **{"q_proj.lora_A.weight": np.full((2, 5), 1e300)})
    refused(tmp_path, [a], DecodeError, "q_proj.lora_A.weight", "that float32 holds", rule="ties")


def test_a_path_that_no_system_takes(tmp_path):
    refused(tmp_path, [adapter(tmp_path / "a"), tmp_path / ("x" * 300)], StorageError, "too long")


def test_a_file_that_changes_while_it_is_merged(tmp_path):
    a = adapter(tmp_path / "a")

    def progress(text):
        if text.startswith("merged 1"):
            (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:200])

    with pytest.raises(DecodeError, match="became shorter"):
        merge_folders([a], tmp_path / "out", Recipe(Mean()), progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_system_that_gives_less_than_it_is_asked_for(tmp_path, monkeypatch):
    """As Linux does above 2 GiB, which a head of a large vocabulary has in float32."""
    a, whole = adapter(tmp_path / "a"), os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, at: whole(file, [views[0][:7]], at))
    merge_folders([a], tmp_path / "out", Recipe(Mean()))
    monkeypatch.undo()
    merge_folders([a], tmp_path / "again", Recipe(Mean()))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()
