"""What merged folders mean to plain PEFT: one adapter stays what it is, a mean is that of ΔW."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import headwater
from headwater.errors import ModelError
from tests.merging.offline.peft_cases import CASES, WEIGHTS, base, base_with, deltas, load, logits, save

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SUMS = [name for name, case in CASES.items() if case.delta]
LORA = [name for name in CASES if not name.startswith(("ia3", "p", "adalora"))]


def close(got: torch.Tensor, expected: torch.Tensor, part: float = 2e-5) -> None:
    """Equal but for float32's rounding, measured by the largest value."""
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < part, f"{float(error):.2e} of the largest"


@pytest.mark.parametrize("name", CASES)
def test_one_adapter_of_weight_one_stays_what_it_is(name, tmp_path):
    adapter = save(name, tmp_path / "a", seed=1)
    headwater.merge([adapter], tmp_path / "out")
    expected = logits(name, load(name, adapter))
    without = logits(name, base(CASES[name].base).double())
    close(logits(name, load(name, tmp_path / "out")), expected)
    if without.ndim == 3:  # a prompt's places stand before the rows'
        expected = expected[:, -without.shape[1] :]
    assert (expected - without).abs().max() > 0.01 * without.abs().max()  # the adapter does something


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["lora", "rslora with patterns", "dora", "classifier", "ia3", "prefix"])
def test_one_adapter_in_half_precision_stays_what_it_is(name, dtype, tmp_path):
    adapter = save(name, tmp_path / "a", seed=1, dtype=dtype)
    assert {value.dtype for value in load_file(adapter / WEIGHTS).values()} == {dtype}
    headwater.merge([adapter], tmp_path / "out")
    close(logits(name, load(name, tmp_path / "out")), logits(name, load(name, adapter)))


@pytest.mark.parametrize("name", SUMS)
def test_the_weighted_mean_is_that_of_the_changes_and_of_nothing_else(name, tmp_path):
    first = save(name, tmp_path / "a", seed=1)
    second = save(name, tmp_path / "b", seed=2, other=True)
    report = headwater.merge([first, second], tmp_path / "out", weights=[3, 1])
    mine, other = deltas(load(name, first)), deltas(load(name, second))
    assert mine.keys() == other.keys()
    expected = {module: 0.75 * mine[module] + 0.25 * other[module] for module in mine}
    merged = load(name, tmp_path / "out")
    got = deltas(merged)
    assert got.keys() == expected.keys()
    assert len(report.ranks) == len(got)
    for module, value in expected.items():
        close(got[module], value)
    if CASES[name].base != "attending":  # of which PEFT 0.21 adds the change of out_proj twice
        close(logits(name, merged), logits(name, base_with(name, expected)))


@pytest.mark.parametrize(
    "name", ["lora", "rslora", "rank pattern", "convolutions", "embedding", "fused experts"]
)
def test_a_negative_weight_takes_the_change_out(name, tmp_path):
    first = save(name, tmp_path / "a", seed=1)
    second = save(name, tmp_path / "b", seed=2, other=True)
    headwater.merge([first, second], tmp_path / "out", rule="task_arithmetic", weights=[1, -0.5], scale=2.0)
    mine, other = deltas(load(name, first)), deltas(load(name, second))
    expected = {module: 2.0 * mine[module] - other[module] for module in mine}
    close(logits(name, load(name, tmp_path / "out")), logits(name, base_with(name, expected)))


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].delta])
def test_what_is_no_factor_of_a_change_is_averaged(name, tmp_path):
    first, second = save(name, tmp_path / "a", seed=1), save(name, tmp_path / "b", seed=2)
    headwater.merge([first, second], tmp_path / "out", weights=[1, 3])
    mine, other, got = (load_file(tmp_path / folder / WEIGHTS) for folder in ("a", "b", "out"))
    assert got.keys() == mine.keys()
    config = json.loads((first / "adapter_config.json").read_text())
    plain = [key for key in mine if not key.endswith(("lora_A.weight", "lora_B.weight"))]
    plain = [key for key in plain if "lora_embedding" not in key]
    assert plain
    for key in plain:
        scale = config["lora_alpha"] / config["r"] if key.endswith("lora_B.bias") else 1.0
        close(got[key], scale * (0.25 * mine[key] + 0.75 * other[key]), 1e-6)
    logits(name, load(name, tmp_path / "out"))  # PEFT loads and runs it


def test_fused_experts_have_one_rank_where_the_merge_is_cut(tmp_path):
    """The best directions of each expert by itself, under the rank that all have."""
    name = "fused experts"
    folders = [save(name, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    report = headwater.merge(folders, tmp_path / "out", rank=3)
    assert set(report.ranks.values()) == {3}
    assert report.kept < 1
    mine, other = (deltas(load(name, folder)) for folder in folders)
    for parameter, got in deltas(load(name, tmp_path / "out")).items():
        u, s, vt = torch.linalg.svd((mine[parameter] + other[parameter]) / 2, full_matrices=False)
        close(got, (u[..., :3] * s[..., None, :3]) @ vt[..., :3, :], 1e-4)


def test_a_pruned_adalora_keeps_the_scale_that_it_was_trained_with(tmp_path):
    name, adapter = "adalora", tmp_path / "a"
    save(name, adapter, seed=1)
    config = json.loads((adapter / "adapter_config.json").read_text())
    values = load_file(adapter / WEIGHTS)
    pattern = {}
    for key in [key for key in values if key.endswith("lora_E")]:
        module, kept = key.removesuffix(".lora_E"), [True, False, "q_proj" in key, True, False]
        pattern[module + ".lora_E"] = kept
        for letter in "AE":
            values[f"{module}.lora_{letter}"] = values[f"{module}.lora_{letter}"][kept].contiguous()
        values[f"{module}.lora_B"] = values[f"{module}.lora_B"][:, kept].contiguous()
    save_file(values, adapter / WEIGHTS)
    config["rank_pattern"] = {key.removeprefix("base_model.model."): kept for key, kept in pattern.items()}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    report = headwater.merge([adapter], tmp_path / "out")
    assert set(report.ranks.values()) == {2, 3}
    close(logits(name, load(name, tmp_path / "out")), logits(name, load(name, adapter)))


@pytest.mark.parametrize("name", ["lora", "rslora with patterns", "dora", "tokens", "ia3", "prompt"])
def test_any_order_gives_the_same_bytes(name, tmp_path):
    folders = [save(name, tmp_path / str(seed), seed=seed) for seed in range(3)]
    headwater.merge(folders, tmp_path / "ab", weights=[1, 2, 3])
    headwater.merge([folders[2], folders[0], folders[1]], tmp_path / "ba", weights=[3, 1, 2])
    assert (tmp_path / "ab" / WEIGHTS).read_bytes() == (tmp_path / "ba" / WEIGHTS).read_bytes()


def test_a_head_is_merged_by_what_changed_in_it_where_the_base_is_given(tmp_path):
    name = "module to save"
    model = base(CASES[name].base)
    model.save_pretrained(tmp_path / "base", max_shard_size="4KB")  # several files
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    folders = [save(name, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    headwater.merge(folders, tmp_path / "out", rule="task_arithmetic", base=tmp_path / "base")
    mine, other, got = (load_file(tmp_path / folder / WEIGHTS) for folder in ("1", "2", "out"))
    for key in ("lm_head.weight", "model.norm.weight"):
        start = model.get_parameter(key).detach()
        full = f"base_model.model.{key}"
        close(got[full], mine[full] + other[full] - start, 1e-6)


def test_biases_beside_lora_are_merged_by_what_changed_in_them_where_the_base_is_given(tmp_path):
    name = "bias all"
    model = base(CASES[name].base)
    model.save_pretrained(tmp_path / "base")
    folders = [save(name, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    headwater.merge(folders, tmp_path / "out", rule="task_arithmetic", base=tmp_path / "base")
    mine, other, got = (load_file(tmp_path / folder / WEIGHTS) for folder in ("1", "2", "out"))
    biases = [key for key in mine if key.endswith("bias")]
    assert any(".base_layer." in key for key in biases)
    for key in biases:
        own = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        close(got[key], mine[key] + other[key] - model.get_parameter(own).detach(), 1e-6)


def test_a_grouped_convolution_is_refused_as_what_it_is(tmp_path):
    """PEFT gives B the base's groups: [out, r/groups, 1, 1], which is no matrix beside A."""
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, groups=2))
    config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(ModelError, match="a convolution in 2 groups") as caught:
        headwater.merge([tmp_path / "a"], tmp_path / "out")
    assert "of two adapters" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["rslora with patterns", "dora", "classifier", "convolutions", "embedding", "fused experts", "ia3"],
)
def test_an_adapter_that_is_had_back_from_the_store_of_rmm_does_what_it_did(name, tmp_path):
    made = [save(name, tmp_path / "a", seed=1), save(name, tmp_path / "b", seed=2)]
    headwater.merge(made, tmp_path / "all", rule="rmm", directions=1)
    for task, adapter in enumerate(made, start=1):
        headwater.merge([tmp_path / "all"], tmp_path / f"back{task}", rule="rmm", task=task)
        close(logits(name, load(name, tmp_path / f"back{task}")), logits(name, load(name, adapter)))
