"""What headwater merge refuses, by folder and tensor, and that nothing is written then."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import headwater
from headwater.errors import ConfigError, DecodeError, HeadwaterError, ModelError, StorageError
from headwater.merging.offline.base_weights import base_weights
from headwater.merging.offline.folder import merge_folders
from headwater.merging.offline.merge import Recipe
from headwater.merging.offline.rules.linear import Mean
from tests.support.faults import Disk, How

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODULES = ("layers.0.q_proj", "layers.0.v_proj")


def adapter(
    folder: Path, seed: int = 0, *, modules=MODULES, rows=6, columns=5, rank=2, notes=None, **config
) -> Path:
    """A small LoRA adapter, or one that ``config`` makes something else."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    save_file(
        {
            f"base_model.model.{module}.lora_{letter}.weight": draw.standard_normal(shape).astype("<f4")
            for module in modules
            for letter, shape in (("A", (rank, columns)), ("B", (rows, rank)))
        },
        folder / WEIGHTS,
    )
    full = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "base_model_name_or_path": "org/base", **config}
    (folder / CONFIG).write_text(json.dumps(full))
    if notes is not None:
        (folder / "headwater.json").write_text(json.dumps(notes))
    return folder


def refused(tmp_path: Path, folders, kind: type[HeadwaterError], *said: str, **options) -> None:
    """The merge ends in an error of ``kind`` that says all of ``said``; nothing else is in ``tmp_path``."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        headwater.merge(folders, **{"out": tmp_path / "out", **options})
    assert type(caught.value) is kind
    for text in said:
        assert text in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def edit(folder: Path, **values) -> Path:
    """Change the tensors of an adapter: by name, None to take one away."""
    tensors = load_file(folder / WEIGHTS)
    for name, value in values.items():
        (full,) = [key for key in tensors if key.endswith(name)]
        if value is None:
            del tensors[full]
        else:
            tensors[full] = value
    save_file(tensors, folder / WEIGHTS)
    return folder


def test_no_adapter_and_a_folder_twice(tmp_path):
    refused(tmp_path, [], ConfigError, "folders of adapters")
    a = adapter(tmp_path / "a")
    (tmp_path / "link").symlink_to(a)
    refused(tmp_path, [a, tmp_path / "link"], ConfigError, f"{tmp_path / 'link'}", "the folder twice")


def test_two_folders_with_the_same_values_are_merged_with_a_note(tmp_path):
    a, b = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    report = headwater.merge([a, b], tmp_path / "out")
    assert report.notes == (f"{b} and {a} hold the same values: they count twice",)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1], "one number for each of 2"),
        ([1, 0], "not zero"),
        ([1, math.nan], "not zero"),
        ([1, math.inf], "not zero"),
        ([1e308, 1.7e308], "a finite sum"),
        ([1, -1], "positive weights"),
    ],
)
def test_weights_that_say_nothing(tmp_path, weights, said):
    folders = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    refused(tmp_path, folders, ConfigError, said, weights=weights)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("rule", "means", "one of mean,"),
        ("density", 0.2, "--density: expected no setting with --rule mean"),
        ("rank", 0, "--rank"),
        ("energy", 0.0, "--energy"),
        ("energy", math.nan, "--energy"),
        ("scale", math.nan, "--scale"),
        ("scale", 0.0, "--scale"),
    ],
)
def test_options_that_no_rule_has(tmp_path, option, value, said):
    refused(tmp_path, [adapter(tmp_path / "a")], ConfigError, said, **{option: value})


def test_a_setting_of_a_rule_out_of_its_bounds(tmp_path):
    refused(
        tmp_path, [adapter(tmp_path / "a")], ConfigError, "--density of rule ties", rule="ties", density=2.0
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"base_model_name_or_path": "org/another"}, "base model"),
        ({"modules": MODULES[:1]}, "no base_model.model.layers.0.v_proj"),
        ({"modules": (*MODULES, "layers.0.k_proj")}, "no base_model.model.layers.0.k_proj"),
        ({"rows": 7}, "shape of the weight under base_model.model.layers.0.q_proj"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_adapters_that_do_not_belong_together(tmp_path, other, said):
    a, b = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2, **other)
    refused(tmp_path, [a, b], ModelError, str(a), str(b), said)
    refused(tmp_path, [b, a], ModelError, str(a), str(b), said)


def test_the_third_of_three_is_compared_where_the_first_says_no_base(tmp_path):
    a = adapter(tmp_path / "a", 1, base_model_name_or_path=None)
    b, c = adapter(tmp_path / "b", 2), adapter(tmp_path / "c", 3, base_model_name_or_path="org/another")
    refused(tmp_path, [a, b, c], ModelError, str(c), "'org/base'", "'org/another'")


@pytest.mark.parametrize(
    "name",
    [
        "/models/base/",
        "Base",
        "/home/x/.cache/huggingface/hub/models--org--base/snapshots/0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_one_base_in_several_places_is_told_by_the_last_part_of_its_name(tmp_path, name):
    a, b = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2, base_model_name_or_path=name)
    (note,) = headwater.merge([a, b], tmp_path / "out").notes
    assert note.startswith("taken for one base")
    assert "'org/base'" in note


def test_hashes_of_the_base_count_more_than_names(tmp_path):
    ones, twos = {"base": {"sha256": "1" * 64}}, {"base": {"sha256": "2" * 64}}
    a = adapter(tmp_path / "a", 1, notes=ones)
    b = adapter(tmp_path / "b", 2, notes=ones, base_model_name_or_path="/elsewhere/model")
    assert headwater.merge([a, b], tmp_path / "out").notes == ()
    c = adapter(tmp_path / "c", 3, notes=twos)
    shown = [path for path in tmp_path.iterdir() if path.name != "out"]
    assert len(shown) == 3
    refused(tmp_path, [a, c], ModelError, str(c), "sha256", out=tmp_path / "new")


def test_other_labels_are_refused_and_other_reading_is_told(tmp_path):
    def notes(labels, tokens):
        return {"labels": labels, "rows": {"data": {"kind": "classification", "max_tokens": tokens}}}

    a = adapter(tmp_path / "a", 1, notes=notes(["bad", "good"], 48))
    b = adapter(tmp_path / "b", 2, notes=notes(["good", "bad"], 48))
    c = adapter(tmp_path / "c", 3, notes=notes(["bad", "good"], 64))
    refused(tmp_path, [a, b], ModelError, str(b), "labels of the head")
    (note,) = headwater.merge([a, c], tmp_path / "out").notes
    assert str(c) in note
    assert "max_tokens" in note


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(tmp_path, value):
    a = adapter(tmp_path / "a", 1)
    b = edit(adapter(tmp_path / "b", 2), **{"q_proj.lora_A.weight": np.full((2, 5), value, "<f4")})
    tensor = "base_model.model.layers.0.q_proj.lora_A.weight"
    refused(tmp_path, [a, b], DecodeError, str(b / WEIGHTS), tensor, "10 that are NaN or infinite")


def test_a_result_that_float32_does_not_hold(tmp_path):
    a = edit(adapter(tmp_path / "a"), **{"q_proj.lora_B.weight": np.full((6, 2), 3e38, "<f4")})
    said = "layers.0.q_proj.lora_B.weight: expected numbers that float32 holds"
    refused(tmp_path, [a], ModelError, said, rule="task_arithmetic", scale=1e3, space="stack")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 3}, "factors of rank 3"),
        ({"rank_pattern": {"v_proj": 4}}, "layers.0.v_proj: expected factors of rank 4"),
        ({"r": "two"}, "adapter_config.json, r: expected a finite number, got 'two'"),
        ({"r": 0}, "a whole number above 0"),
        ({"r": 10**400}, "a finite number"),
        ({"lora_alpha": [4]}, "lora_alpha: expected a finite number, got [4]"),
        ({"lora_alpha": math.inf}, "lora_alpha: expected a finite number"),
        ({"rank_pattern": ["v_proj"]}, "rank_pattern: expected a table by module"),
        ({"alpha_pattern": {"v_(proj": 4}}, "alpha_pattern: expected names of modules, or patterns"),
        ({"alpha_pattern": {"(a*)*b": 4}}, "alpha_pattern: expected names of modules, or short patterns"),
        ({"alpha_pattern": {"v_proj": None}}, "alpha_pattern of layers.0.v_proj: expected a finite number"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights 'corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"peft_type": "VERA"}, "peft_type 'VERA'"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"peft_type": "LOKR"}, "peft_type 'LOKR'"),
        ({"peft_type": "OFT"}, "peft_type 'OFT'"),
        ({"peft_type": ["LORA"]}, "peft_type ['LORA']"),
        ({"peft_type": None}, "peft_type None"),
    ],
)
def test_a_config_that_its_tensors_deny_or_that_no_merge_can_take(tmp_path, config, said):
    refused(tmp_path, [adapter(tmp_path / "a", **config)], ModelError, str(tmp_path / "a"), said)


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_patterns_beside_parameters_are_refused_by_name(tmp_path, pattern):
    """PEFT matches them with names of parameters; the file has names of modules."""
    a = adapter(tmp_path / "a", target_parameters=["q_proj.weight"], **{pattern: {"q_proj.weight": 2}})
    refused(tmp_path, [a], ModelError, str(a), f"no {pattern} beside target_parameters")


def test_numbers_of_experts_that_differ(tmp_path):
    a = adapter(tmp_path / "a", 1, rank=4, r=2, target_parameters=["q_proj.weight", "v_proj.weight"])
    b = adapter(tmp_path / "b", 2, rank=6, r=2, target_parameters=["v_proj.weight", "q_proj.weight"])
    refused(tmp_path, [a, b], ModelError, str(a), str(b), "layers.0.q_proj#000002")
    c = adapter(tmp_path / "c", 3, rank=5, r=2, target_parameters=["q_proj.weight", "v_proj.weight"])
    refused(tmp_path, [a, c], ModelError, str(c), "factors of rank 2")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("q_proj.lora_B.weight", "expected with it base_model.model.layers.0.q_proj.lora_B.weight"),
        ("q_proj.lora_A.weight", "for each lora_A its lora_B"),
    ],
)
def test_a_factor_without_the_other(tmp_path, name, said):
    refused(tmp_path, [edit(adapter(tmp_path / "a"), **{name: None})], ModelError, str(tmp_path / "a"), said)


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
    refused(tmp_path, [a / CONFIG], DecodeError, str(a / CONFIG), "Give the folder")
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


def test_a_file_that_changes_while_it_is_merged(tmp_path):
    a = adapter(tmp_path / "a")

    def progress(text):
        if text.startswith("merged 1"):
            (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:200])

    with pytest.raises(DecodeError, match="became shorter"):
        merge_folders([a], tmp_path / "out", Recipe(Mean()), progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_that_is_taken(tmp_path):
    a, b = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("another")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name in ("full", "file", "link"):
        refused(tmp_path, [a, b], ConfigError, "--output", "not there yet", out=tmp_path / name)
        refused(tmp_path, [a, b], ConfigError, "an adapter's folder", out=tmp_path / name, overwrite=True)
    for out in (a, a / "merged", tmp_path, tmp_path / "b" / ".." / "a"):
        refused(tmp_path, [a, b], ConfigError, "outside of the adapters'", out=out, overwrite=True)


def test_an_adapter_is_replaced_where_that_is_asked_for(tmp_path):
    a, b, old = (adapter(tmp_path / name, seed) for seed, name in enumerate(["a", "b", "old"]))
    headwater.merge([a, b], tmp_path / "new")
    headwater.merge([a, b], old, overwrite=True)
    assert (old / WEIGHTS).read_bytes() == (tmp_path / "new" / WEIGHTS).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "new", "old"]


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("how", ["full", "before", "after"])
def test_a_disk_that_fails_leaves_all_or_nothing(tmp_path, how: How, old):
    a, b = (adapter(tmp_path / "in" / name, seed) for seed, name in enumerate("ab"))
    home = tmp_path / "home"
    ends = set()
    for at in range(1, 100):
        home.mkdir()
        if old:
            adapter(home / "out", 9)
        before = (home / "out" / WEIGHTS).read_bytes() if old else None
        failed = None
        with Disk(home, at=at, how=how) as disk:
            try:
                headwater.merge([a, b], home / "out", overwrite=old)
            except StorageError as error:
                failed = error
        if how == "full" and failed is not None:
            assert "No space left" in str(failed)
            left = list(home.iterdir())
            assert len(left) == (1 if old else 0)  # the old one, put aside where a full disk takes no name
            assert not old or (left[0] / WEIGHTS).read_bytes() == before
        ends.add(failed is not None or disk.crashed)
        headwater.merge([a, b], home / "out", overwrite=True)  # what a crash left is in nobody's way
        assert [path.name for path in home.iterdir()] == ["out"]
        whole = failed is None and not disk.crashed
        shutil.rmtree(home)
        if whole:
            break
    assert ends == {True, False}


def test_a_folder_that_may_not_be_written(tmp_path):
    a = adapter(tmp_path / "a")
    (tmp_path / "file").write_text("")
    refused(tmp_path, [a], StorageError, "writing", "File exists", out=tmp_path / "file" / "out")


def test_a_base_without_weights(tmp_path):
    with pytest.raises(ModelError, match=re.escape(f"--base {tmp_path / 'none'}")):
        base_weights(tmp_path / "none")


def test_a_base_whose_weight_has_another_shape(tmp_path):
    a = adapter(tmp_path / "a")
    tensors = load_file(a / WEIGHTS) | {"base_model.model.head.weight": np.ones((3, 4), "<f4")}
    save_file(tensors, a / WEIGHTS)
    (tmp_path / "base").mkdir()
    save_file({"head.weight": np.ones((2, 4), "<f4")}, tmp_path / "base" / "model.safetensors")
    refused(tmp_path, [a], ModelError, "head.weight", "[3, 4]", "[2, 4]", base=tmp_path / "base")
