"""What headwater merge refuses, by folder and tensor, and that nothing is written then."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

import headwater
from headwater.errors import ConfigError, DecodeError, ModelError, StorageError
from headwater.merging.offline.base_weights import base_weights
from tests.merging.offline.small_adapters import MODULES, WEIGHTS, adapter, edit, refused
from tests.support.faults import Disk, How


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
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"feedforward_modules": ["v_proj"]}, "feedforward_modules"),
        ({"num_virtual_tokens": 4}, "num_virtual_tokens"),
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
        ({"r": "two"}, "adapter_config.json, r: expected a finite number, at most 1e+38, got 'two'"),
        ({"r": 0}, "a whole number above 0"),
        ({"r": 10**400}, "a finite number"),
        ({"lora_alpha": [4]}, "lora_alpha: expected a finite number, at most 1e+38, got [4]"),
        ({"lora_alpha": math.inf}, "lora_alpha: expected a finite number"),
        ({"lora_alpha": 1e300}, "lora_alpha: expected a finite number, at most 1e+38"),
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


@pytest.mark.parametrize(
    ("a", "b", "e", "said"),
    [
        ((3, 5), (6, 3), (2, 1), "q_proj.lora_E: expected shape [3, 1]"),
        ((3, 5), (6, 3), (3, 3), "q_proj.lora_E: expected shape [3, 1]"),
        ((0, 10**13), (10**13, 0), (0, 1), "layers.0.q_proj: expected factors of a weight with 1 to"),
        ((3, 0), (6, 3), (3, 1), "layers.0.q_proj: expected factors of a weight with 1 to"),
    ],
)
def test_factors_and_a_diagonal_that_do_not_fit(tmp_path, a, b, e, said):
    """A shape without values costs no bytes in a file, and could ask for any memory."""
    folder = adapter(tmp_path / "a", modules=MODULES[:1], peft_type="ADALORA", init_r=12)
    shapes = {"lora_A.weight": a, "lora_B.weight": b, "lora_E": e}
    save_file(
        {f"base_model.model.{MODULES[0]}.{name}": np.zeros(shape, "<f4") for name, shape in shapes.items()},
        folder / WEIGHTS,
    )
    refused(tmp_path, [folder], ModelError, str(folder), said)


def test_bases_whose_own_weights_differ(tmp_path):
    """PEFT saves an embedding of the base beside LoRA on it: it is the base's, and no adapter's."""
    name = "base_model.model.embed.base_layer.weight"
    folders = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2), adapter(tmp_path / "c", 3)]
    for folder, value in zip(folders, (0.0, 0.0, 1.0), strict=True):
        save_file(load_file(folder / WEIGHTS) | {name: np.full((4, 3), value, "<f4")}, folder / WEIGHTS)
    headwater.merge(folders[:2], tmp_path / "out")
    assert not load_file(tmp_path / "out" / WEIGHTS)[name].any()
    shutil.rmtree(tmp_path / "out")
    refused(tmp_path, folders, ModelError, str(folders[2]), name, "trained on different bases")


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float16])
def test_bases_saved_in_two_precisions(tmp_path, coarse):
    """What torch rounds an embedding to is that embedding; the merge keeps the finest one."""
    name = "base_model.model.embed.base_layer.weight"
    folders = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    fine = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 3), np.float32))
    fine[0] = torch.tensor([1.00390625, -1.01171875, 0.0])  # half way between two bfloat16
    for folder, value in zip(folders, (fine.to(coarse), fine), strict=True):
        save_torch(load_torch(folder / WEIGHTS) | {name: value}, folder / WEIGHTS)
    headwater.merge(folders, tmp_path / "out")
    assert np.array_equal(load_file(tmp_path / "out" / WEIGHTS)[name], fine.numpy())
    other = fine.clone()
    other[1, 1] += 0.1
    save_torch(load_torch(folders[0] / WEIGHTS) | {name: other.to(coarse)}, folders[0] / WEIGHTS)
    shutil.rmtree(tmp_path / "out")
    refused(tmp_path, folders, ModelError, str(folders[0]), name, "trained on different bases")


def test_a_bias_of_a_factor_that_its_config_does_not_announce(tmp_path):
    """PEFT would leave it out when it loads the adapter."""
    a = adapter(tmp_path / "a")
    name = "base_model.model.layers.0.q_proj.lora_B.bias"
    save_file(load_file(a / WEIGHTS) | {name: np.ones(6, "<f4")}, a / WEIGHTS)
    refused(tmp_path, [a], ModelError, f"{a}, tensor {name}", "has lora_bias")


def test_a_head_of_weights_that_cancel(tmp_path):
    """Nobody says what it was without adapters: there is nothing that the sum could be."""
    folders = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    for folder in folders:
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors | {"base_model.model.score.weight": np.ones((2, 3), "<f4")}, folder / WEIGHTS)
    said = ("score.weight", "weights that are positive", "--base MODEL")
    refused(tmp_path, folders, ConfigError, *said, rule="task_arithmetic", weights=[1, -1])
    refused(tmp_path, folders, ConfigError, *said, rule="task_arithmetic", weights=[3, -1])
