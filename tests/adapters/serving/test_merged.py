"""A merged model says what PEFT says, and what does not arrive is not offered."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, VeraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headwater.adapters.serving import merged as serving_merged
from headwater.adapters.serving.arrival import (
    Arrival,
    from_bfloat16,
    rounded_nf4,
    roundings,
    to_bfloat16,
)  # fmt: skip
from headwater.adapters.serving.through_peft import compare_logits
from headwater.adapters.serving.traits import Subject
from headwater.errors import ModelError
from tests.support.command import headwater

from . import trained


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trained.base(tmp_path_factory.mktemp("base") / "base")


def merged(adapter, base, out, *more):
    done = headwater("export", adapter, "--for", "merged", "--base", base, "-o", out, "--json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize("kind", ["patterns", "dora"])
def test_weights_are_those_that_peft_merges(base, tmp_path, kind):
    adapter = trained.lora(tmp_path / "a", base, **trained.KINDS[kind])
    told = merged(adapter, base, tmp_path / "out")
    assert told["arrival"]["part"] == pytest.approx(1, abs=1e-4)
    assert told["logits"]["top"] == 1
    want = PeftModel.from_pretrained(trained.load(base), adapter).merge_and_unload().state_dict()
    got = load_file(tmp_path / "out/model.safetensors")
    before = load_file(base / "model.safetensors")
    assert got.keys() == before.keys()
    for name, values in got.items():
        torch.testing.assert_close(values, want[name], rtol=0, atol=2e-7)
        if not any(target in name for target in trained.TARGETS):
            torch.testing.assert_close(values, before[name], rtol=0, atol=0)


def test_shards_and_bfloat16(base, tmp_path):
    """A base in parts and in bfloat16: each weight is rounded once, and the layout stays."""
    trained.load(base).bfloat16().save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    for path in base.glob("token*"):
        (tmp_path / "parts" / path.name).write_bytes(path.read_bytes())
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    adapter = trained.lora(tmp_path / "a", tmp_path / "parts", r=4, lora_alpha=64)
    merged(adapter, tmp_path / "parts", tmp_path / "out")
    exact = trained.load(tmp_path / "parts")
    want = PeftModel.from_pretrained(exact, adapter).merge_and_unload().bfloat16().state_dict()
    found = 0
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(path, "pt") as file, safe_open(tmp_path / "parts" / path.name, "pt") as before:
            assert list(file.keys()) == list(before.keys())
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                got = file.get_tensor(name)
                assert got.dtype == torch.bfloat16
                apart = (got.float() - want[name].float()).abs() > 0.004 * want[name].float().abs()
                assert not apart.any(), name  # one step where sums of another order round otherwise
                found += 1
    assert found == len(load_file_all(tmp_path / "parts"))
    merged(adapter, tmp_path / "parts", tmp_path / "wide", "--dtype", "float32")
    assert json.loads((tmp_path / "wide/config.json").read_text())["dtype"] == "float32"
    wide = trained.load(tmp_path / "wide")
    torch.testing.assert_close(
        trained.logits(wide),
        trained.logits(PeftModel.from_pretrained(trained.load(tmp_path / "parts"), adapter)),
        rtol=0, atol=1e-4,
    )  # fmt: skip


def load_file_all(folder):
    return {n: v for path in folder.glob("*.safetensors") for n, v in load_file(path).items()}


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
        VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"),
    ],
    ids=["ia3", "vera", "whole weights"],
)  # fmt: skip
def test_other_kinds_are_merged_by_peft(base, tmp_path, config):
    adapter = trained.save(tmp_path / "a", base, config)
    told = merged(adapter, base, tmp_path / "out")
    assert told["logits"]["effect"] > 1e-3
    want = trained.logits(PeftModel.from_pretrained(trained.load(base), adapter))
    torch.testing.assert_close(trained.logits(trained.load(tmp_path / "out")), want, rtol=0, atol=1e-4)


def test_a_list_of_shards_stays_with_the_shards(base, tmp_path):
    """What PEFT merges is one file: under the base's list of shards a server would read nothing of it."""
    trained.load(base).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    for path in base.glob("token*"):
        (tmp_path / "parts" / path.name).write_bytes(path.read_bytes())
    for name, more, listed in (("whole", {"modules_to_save": ["norm"]}, False), ("plain", {}, True)):
        adapter = trained.lora(tmp_path / name, tmp_path / "parts", r=2, **more)
        merged(adapter, tmp_path / "parts", tmp_path / f"{name} out")
        index = tmp_path / f"{name} out/model.safetensors.index.json"
        assert index.is_file() == listed
        if listed:
            names = set(json.loads(index.read_text())["weight_map"].values())
            assert names == {path.name for path in index.parent.glob("*.safetensors")}


def test_virtual_tokens_cannot_be_merged(base, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    adapter = trained.save(tmp_path / "a", base, config)
    done = headwater("export", adapter, "--for", "merged", "--base", base, "-o", tmp_path / "out")
    assert "no weight holds virtual tokens" in done.error


def test_a_wrong_merge_is_not_called_done(base, tmp_path):
    adapter = trained.lora(tmp_path / "a", base, r=4, lora_alpha=8)
    merged(adapter, base, tmp_path / "out")
    values = load_file(tmp_path / "out/model.safetensors")
    values["model.layers.0.self_attn.q_proj.weight"] *= 1.1
    save_file(values, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="PEFT's logits within"):
        compare_logits(Subject.open(adapter), base, tmp_path / "out", "float32")


@pytest.mark.parametrize("twice", [False, True], ids=["one weight", "both in the file"])
@pytest.mark.parametrize(
    "made", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]},
             {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
    ids=["output", "embeddings", "whole"],
)  # fmt: skip
def test_one_end_of_a_model_whose_ends_are_one_weight_is_not_merged(base, tmp_path, made, twice):
    """Merged it changes both: with --unchecked that was written without a word."""
    tied = tmp_path / "tied"
    shutil.copytree(base, tied)
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    values = load_file(tied / "model.safetensors")
    if not twice:
        del values["lm_head.weight"]
        save_file(values, tied / "model.safetensors", metadata={"format": "pt"})
    adapter = trained.lora(tmp_path / "adapter", tied, r=4, lora_alpha=6, **made)
    done = headwater("export", adapter, "--for", "merged", "--unchecked", "-o", tmp_path / "out")
    assert (done.code, not (tmp_path / "out").exists()) == (4, True), done.err
    assert "apart from its embeddings" in done.err
    assert "Serve the adapter unmerged" in done.err


def test_a_change_that_drowns_in_rounding_is_refused(base, tmp_path):
    trained.load(base).bfloat16().save_pretrained(tmp_path / "half")
    adapter = trained.lora(tmp_path / "a", base, r=4, lora_alpha=0.01)
    done = headwater(
        "export", adapter, "--for", "merged", "--base", tmp_path / "half", "-o", tmp_path / "out"
    )
    assert "a finer --dtype" in done.error
    assert not (tmp_path / "out").exists()
    told = merged(adapter, tmp_path / "half", tmp_path / "out", "--anyway", "--unchecked")
    assert told["arrival"]["error"] > 0.5


@pytest.mark.parametrize("kind", ["patterns", "dora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_in_blocks_has_the_same_bits(base, tmp_path, monkeypatch, kind, dtype):
    trained.load(base).to(dtype).save_pretrained(tmp_path / "base")
    adapter = trained.lora(tmp_path / "a", tmp_path / "base", **trained.KINDS[kind])
    whole = merged(adapter, tmp_path / "base", tmp_path / "whole", "--unchecked")
    monkeypatch.setattr(serving_merged, "_CACHED", 7 * 32)  # 7 rows, which divide no weight here
    blocks = merged(adapter, tmp_path / "base", tmp_path / "blocks", "--unchecked")
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()
    assert blocks["arrival"] == pytest.approx(whole["arrival"], rel=1e-6)
    assert whole["arrival"]["part"] == pytest.approx(1, abs=0.01)


def test_what_float16_does_not_hold_is_refused(base, tmp_path):
    """It became infinite without a word where the rows that are measured lacked it."""
    model = trained.load(base)
    model.model.layers[0].self_attn.q_proj.weight.data[5, 3] = 65000.0
    model.half().save_pretrained(tmp_path / "base")
    adapter = trained.lora(tmp_path / "a", base, r=4, lora_alpha=6)
    values = load_file(adapter / "adapter_model.safetensors")
    for name in values:
        values[name][:] = 10.0
    save_file(values, adapter / "adapter_model.safetensors")
    done = headwater(
        "export",
        adapter,
        "--for",
        "merged",
        "--base",
        tmp_path / "base",
        "-o",
        tmp_path / "out",
        "--unchecked",
    )
    assert "values that float16 holds" in done.error
    assert "--dtype float32" in done.error
    assert not (tmp_path / "out").exists()


def test_a_merge_starts_without_what_it_does_not_need():
    """A copy of a base takes a tenth of a second; pydantic alone takes as long."""
    code = (
        "import sys, headwater.cli.serving; print(sorted({'pydantic', 'scipy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_a_gguf_of_the_base(base, tmp_path):
    """What the adapter leaves alone stays as it is; what it changes is the base's with B·A, rows turned."""
    gguf = pytest.importorskip("gguf")
    weights = {n: v.float().numpy() for n, v in load_file(base / "model.safetensors").items()}
    adapter = trained.lora(tmp_path / "a", base, **trained.KINDS["dora"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, value in weights.items():
        own = names.get_name(name, (".weight",))
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if value.ndim == 2:
            writer.add_tensor(own, gguf.quants.quantize(value, q8), raw_dtype=q8)
        else:
            writer.add_tensor(own, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    told = merged(adapter, base, tmp_path / "out", "--gguf", tmp_path / "base.gguf", "--dtype", "float32")
    assert told["arrival"]["part"] == pytest.approx(1, abs=1e-3)
    before, after = (gguf.GGUFReader(p) for p in (tmp_path / "base.gguf", tmp_path / "out/merged.gguf"))
    assert after.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    old = {tensor.name: tensor for tensor in before.tensors}
    want = PeftModel.from_pretrained(trained.load(base), adapter).merge_and_unload().state_dict()
    for tensor in after.tensors:
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32 or "norm" in tensor.name:
            np.testing.assert_array_equal(tensor.data, old[tensor.name].data)
    got = {tensor.name: np.array(tensor.data) for tensor in after.tensors}
    np.testing.assert_allclose(
        got["blk.1.attn_v.weight"], want["model.layers.1.self_attn.v_proj.weight"].numpy(), atol=2e-3
    )
    turned = want["model.layers.1.self_attn.k_proj.weight"].numpy()
    turned = turned.reshape(2, 2, 4, 32).swapaxes(1, 2).reshape(16, 32)
    np.testing.assert_allclose(got["blk.1.attn_k.weight"], turned, atol=2e-3)


def test_rounding_is_torchs_and_the_measure_means_what_it_says():
    values = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    want = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), want)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)  # to even: down, then up
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(ties)), [1, 1 + 2**-6])
    blocks = rounded_nf4(values).reshape(-1, 64)
    assert (np.abs(blocks).max(axis=1) == np.abs(values.reshape(-1, 64)).max(axis=1)).all()
    assert all(len(np.unique(block)) <= 16 for block in blocks)
    half = Arrival()
    half.add(values, np.ones_like(values), values + 0.5)
    assert (half.part, half.error) == pytest.approx((0.5, 0.5), abs=1e-5)
    change = np.float32(0.002) * values[::-1]
    found = {name: Arrival() for name in roundings()}
    for name, rounding in roundings().items():
        served = rounding(values)
        found[name].add(served, change, rounding(served + change))
    assert found["float16"].sound
    assert not found["nf4"].sound
    assert found["nf4"].part < 0.5
