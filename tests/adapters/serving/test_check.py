"""``headwater check``: a verdict for every runtime and trait, and the traits of what PEFT saves."""

from __future__ import annotations

import json
import shutil

import pytest
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from headwater.adapters.serving import traits as t
from headwater.adapters.serving.facts import MERGED, OK, REFUSED, REFUSES, RUNTIMES, SILENT
from headwater.adapters.serving.traits import TRAITS, Subject
from tests.experts import small
from tests.support.command import headwater

from . import trained


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trained.base(tmp_path_factory.mktemp("base") / "base")


def told(adapter, *more):
    done = headwater("check", adapter, "--json", *more)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return found | {"runtimes": {v["runtime"]: v for v in found["runtimes"]}}


def test_every_runtime_knows_every_trait():
    for runtime in RUNTIMES.values():
        assert runtime.facts.keys() == TRAITS.keys(), runtime.name
        for trait, fact in runtime.facts.items():
            assert fact.why or fact.untouched == OK, (runtime.name, trait)
            assert fact.why or fact.remedy != REFUSED, (runtime.name, trait)


@pytest.mark.parametrize(
    ("settings", "traits"),
    [
        ({"r": 4, "lora_alpha": 4}, set()),
        ({"r": 4, "lora_alpha": 8}, {t.SCALED}),
        ({"r": 4, "lora_alpha": 4.0}, {t.FRACTIONAL}),
        (trained.KINDS["rslora"], {t.SCALED, t.RSLORA}),
        (trained.KINDS["patterns"], {t.SCALED, t.RSLORA, t.MIXED_RANKS, t.MIXED_SCALES}),
        ({"r": 4, "lora_alpha": 4, "use_dora": True}, {t.DORA}),
        ({"r": 4, "lora_alpha": 4, "lora_bias": True}, {t.FACTOR_BIAS}),
        ({"r": 4, "lora_alpha": 4, "modules_to_save": ["norm"]}, {t.WHOLE}),
        ({"r": 4, "lora_alpha": 4, "target_modules": ["embed_tokens"]}, {t.EMBEDDING}),
        ({"r": 4, "lora_alpha": 4, "trainable_token_indices": [3]}, {t.TOKENS}),
        ({"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"}, {t.STARTED}),
    ],
)
def test_traits_of_what_peft_saves(base, tmp_path, settings, traits):
    adapter = trained.lora(tmp_path / "a", base, **settings)
    assert set(Subject.open(adapter).traits) == traits


def test_what_goes_wrong_without_a_word(base, tmp_path):
    found = told(trained.lora(tmp_path / "a", base, **trained.KINDS["rslora"]))["runtimes"]
    assert {name for name, v in found.items() if v["untouched"] == SILENT} == {"sglang", "ollama", "openvino"}
    assert found["sglang"]["remedy"] == "baked"
    assert any("√r too weak" in reason for reason in found["sglang"]["reasons"])
    assert found["vllm"]["untouched"] == OK


def test_a_head_beside_peft(tmp_path):
    adapter = small.lora(tmp_path / "a", head=True, lora_bias=False)
    found = told_of_pooled(adapter)
    assert t.POOLED in found["traits"]
    assert found["runtimes"]["vllm"]["remedy"] == REFUSED, "a bias of B"


def told_of_pooled(adapter):
    (adapter / "adapter_config.json").write_text(
        json.dumps(json.loads((adapter / "adapter_config.json").read_text()) | {"lora_bias": True})
    )
    return told(adapter)


@pytest.mark.parametrize(
    ("config", "merges"),
    [
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), True),
        (VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"), True),
        (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), False),
        (PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_kinds_are_for_peft_or_merged(base, tmp_path, config, merges):
    found = told(trained.save(tmp_path / "a", base, config))["runtimes"]
    assert {name for name, v in found.items() if v["remedy"] != REFUSED} == {"peft"} | (
        {MERGED} if merges else set()
    )
    assert found["vllm"]["untouched"] == REFUSES
    assert found["peft"]["untouched"] == OK


def test_adalora_is_lora_in_the_end(base, tmp_path):
    config = AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    found = told(trained.save(tmp_path / "a", base, config))
    assert t.ADALORA in found["traits"]
    assert "baked" in found["runtimes"]["vllm"]["remedy"]


def test_a_run_folder_and_a_file(base, tmp_path):
    adapter = trained.lora(tmp_path / "run" / "adapter", base, **trained.KINDS["patterns"])
    assert told(tmp_path / "run")["adapter"] == str(adapter)
    headwater("compress", adapter, "-o", tmp_path / "a.hw", "--codec", "exact")
    found = told(tmp_path / "a.hw")
    assert found["runtimes"]["vllm"]["untouched"] == "not its format"
    assert found["runtimes"]["vllm"]["remedy"] == "baked, padded"


def test_what_a_type_leaves_of_the_change(base, tmp_path):
    adapter = trained.lora(tmp_path / "a", base, r=4, lora_alpha=0.05)
    found = told(adapter, "--base", base)["merged_into"]
    assert found["float16"]["part"] == pytest.approx(1, abs=0.05)
    assert found["nf4"]["part"] < 0.5
    shown = headwater("check", adapter, "--base", base).out
    assert "merged into nf4" in shown
    assert "not offered" in shown


def test_no_such_adapter(tmp_path):
    assert "adapter_config.json" in headwater("check", tmp_path / "none").error
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter_config.json").write_text("{}")
    assert "peft_type" in headwater("check", tmp_path / "a").error
    config = LoraConfig(r=2)
    config.save_pretrained(tmp_path / "b")
    assert "adapter_model.safetensors" in headwater("check", tmp_path / "b").error


def resized(base, folder, **changes):
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_the_base_is_read_where_the_adapter_says_that_it_is(base, tmp_path):
    adapter = trained.lora(tmp_path / "a", base, r=4, lora_alpha=4)
    assert told(adapter)["base"] == {"folder": str(base), "remarks": []}
    moved = shutil.move(base, tmp_path / "moved")
    try:
        assert "base" not in told(adapter)  # and nothing is fetched
        assert told(adapter, "--base", moved)["base"]["remarks"] == []
        base.mkdir()
        assert "base" not in told(adapter)  # nor is a folder without a model an error
        base.rmdir()
    finally:
        shutil.move(moved, base)


@pytest.mark.parametrize(
    "made",
    [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]},
     {"target_modules": ["q_proj", "embed_tokens"]}],
    ids=["head saved", "head adapted", "embeddings adapted"],
)  # fmt: skip
def test_one_end_of_a_base_whose_ends_are_one_weight(base, tmp_path, made):
    adapter = trained.lora(tmp_path / "a", base, r=4, lora_alpha=4, **made)
    assert told(adapter)["base"]["remarks"] == []
    tied = resized(base, tmp_path / "tied", tie_word_embeddings=True)
    found = told(adapter, "--base", tied)
    (remark,) = found["base"]["remarks"]
    assert "tie_word_embeddings" in remark
    assert found["runtimes"][MERGED]["remedy"] == REFUSED
    done = headwater("export", adapter, "--for", "merged", "--base", tied, "-o", tmp_path / "out")
    assert done.code, "what is refused there is refused here"


def test_another_base(base, tmp_path):
    """Other tokens and other sides: found before a server fails, or serves noise."""
    adapter = trained.lora(tmp_path / "a", base, r=4, lora_alpha=4, modules_to_save=["lm_head"])
    grown = resized(base, tmp_path / "grown", vocab_size=999)
    assert "the base 999: resize" in " ".join(told(adapter, "--base", grown)["base"]["remarks"])
    values = load_file(adapter / "adapter_model.safetensors")
    name = next(n for n in values if n.endswith("q_proj.lora_A.weight"))
    values[name] = values[name][:, :-1].contiguous()
    save_file(values, adapter / "adapter_model.safetensors")
    remarks = told(adapter)["base"]["remarks"]
    assert any("other sides" in text and "q_proj of 32 x 31" in text for text in remarks), remarks
    other = resized(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({n: v for n, v in weights.items() if "v_proj" not in n}, other / "model.safetensors")
    plain = trained.lora(tmp_path / "b", base, r=4, lora_alpha=4)
    assert "lack model.layers.0.self_attn.v_proj" in " ".join(told(plain, "--base", other)["base"]["remarks"])
