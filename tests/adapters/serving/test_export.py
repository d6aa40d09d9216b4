"""What an export says is what PEFT says of the adapter: read back by the libraries that read it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.numpy import load_file

from headwater.adapters.serving.gguf_names import Naming
from headwater.merging.offline.peft_folder import PeftFolder
from tests.support.command import headwater

from . import trained

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trained.base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {kind: trained.lora(folder / kind, base, **made) for kind, made in trained.KINDS.items()}


def exported(adapter, runtime, out, *more):
    done = headwater("export", adapter, "--for", runtime, "-o", out, *more)
    assert done.code == 0, done.err
    return done


def products(folder):
    """s·B·A of every module, float64, from PEFT's own file."""
    adapter = PeftFolder.open(folder)
    return {module: np.matmul(*adapter.factors(module)) for module in adapter.modules}


def wanted(adapter):
    """B with s in it, rounded once to float32, and A, by PEFT's names: computed from the file alone."""
    scaling = {name: layer.scaling["default"] for name, layer in _layers(adapter)}
    values = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for name, value in values.items():
        module = name.removeprefix(PREFIX).partition(".lora_")[0]
        found[name] = (
            (value.astype(np.float64) * scaling[module]).astype(np.float32) if "lora_B" in name else value
        )
    return found


def _layers(adapter):
    """PEFT's own layers: what it takes for s."""
    model = PeftModel.from_pretrained(trained.load(adapter.parent / "base"), adapter)
    return ((n.removeprefix(PREFIX), m) for n, m in model.named_modules() if hasattr(m, "lora_A"))


@pytest.fixture(autouse=True)
def _beside(adapters, base):
    link = next(iter(adapters.values())).parent / "base"
    if not link.exists():
        link.symlink_to(base)


@pytest.mark.parametrize("runtime", ["vllm", "sglang", "openvino"])
@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns"])
def test_a_folder_has_one_rank_no_scale_and_the_same_product(adapters, tmp_path, kind, runtime):
    exported(adapters[kind], runtime, tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    values, want = load_file(tmp_path / "out/adapter_model.safetensors"), wanted(adapters[kind])
    rank = 8 if runtime == "vllm" else max(v.shape[0] for n, v in want.items() if "lora_A" in n)
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (rank, rank, False)
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert values.keys() == want.keys()
    for name, value in values.items():
        axis = 0 if "lora_A" in name else 1
        own = want[name].shape[axis]
        assert value.shape[axis] == rank
        np.testing.assert_array_equal(np.split(value, [own], axis)[0], want[name])
        assert not np.split(value, [own], axis)[1].any()


@pytest.mark.parametrize("runtime", ["vllm", "sglang", "openvino", "peft"])
@pytest.mark.parametrize("kind", ["rslora", "patterns"])
def test_peft_reads_the_same_model(adapters, base, tmp_path, kind, runtime):
    exported(adapters[kind], runtime, tmp_path / "out")
    want = trained.logits(PeftModel.from_pretrained(trained.load(base), adapters[kind]))
    got = trained.logits(PeftModel.from_pretrained(trained.load(base), tmp_path / "out"))
    torch.testing.assert_close(got, want, rtol=0, atol=0 if runtime == "peft" else 4e-6)


@pytest.mark.parametrize("kind", ["rslora", "patterns", "dora"])
def test_mlx_has_transposed_factors_of_one_rank(adapters, tmp_path, kind):
    exported(adapters[kind], "mlx", tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    values = load_file(tmp_path / "out/adapters.safetensors")
    rank = config["lora_parameters"]["rank"]
    assert config["lora_parameters"]["scale"] == 1.0
    assert config["fine_tune_type"] == ("dora" if kind == "dora" else "lora")
    assert config["num_layers"] == 2
    for name, want in wanted(adapters[kind]).items():
        module = name.removeprefix(PREFIX).partition(".lora_")[0]
        assert module in config["lora_parameters"]["keys"]
        if "magnitude" in name:
            np.testing.assert_array_equal(values.pop(f"{module}.m"), want.reshape(-1))
            continue
        letter = "a" if "lora_A" in name else "b"
        got = values.pop(f"{module}.lora_{letter}")
        own = got[:, : want.shape[0]] if letter == "a" else got[: want.shape[1]]
        assert got.shape[letter == "a"] == rank
        np.testing.assert_array_equal(own, want.T)
    assert not values


@pytest.mark.parametrize(("kind", "alpha"), [("plain", 4.0), ("rslora", 4.0), ("patterns", 0.0)])
def test_gguf_is_read_back_with_turned_heads(adapters, base, tmp_path, kind, alpha):
    gguf = pytest.importorskip("gguf")
    exported(adapters[kind], "llama.cpp", tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out/lora.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["adapter.lora.alpha"] == alpha  # 0: llama.cpp then adds B·A whatever the rank
    values = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    ends = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "down_proj": "ffn_down"}
    for name, want in wanted(adapters[kind]).items():
        layer, last = name.split(".layers.")[1][0], name.partition(".lora_")[0].rpartition(".")[2]
        letter = "a" if "lora_A" in name else "b"
        got = values.pop(f"blk.{layer}.{ends[last]}.weight.lora_{letter}")
        if letter == "b" and last in ("q_proj", "k_proj"):
            got = unturned(got, heads=4 if last == "q_proj" else 2)
        np.testing.assert_array_equal(got, want)
    assert not values


def unturned(rows, heads):
    """Of each head: rows 0, 2, 4, … are the first half, 1, 3, 5, … the second."""
    size = len(rows) // heads
    whole = [rows[h * size : (h + 1) * size] for h in range(heads)]
    return np.concatenate([np.concatenate([head[0::2], head[1::2]]) for head in whole])


def test_only_llamas_turn_heads():
    pytest.importorskip("gguf")
    config = {"num_hidden_layers": 1, "num_attention_heads": 2, "model_type": "qwen2"}
    rows = np.arange(8)
    np.testing.assert_array_equal(Naming.of(config, "x").rows("q_proj", rows), rows)
    turned = Naming.of({**config, "model_type": "mistral"}, "x")
    np.testing.assert_array_equal(turned.rows("q_proj", rows), [0, 2, 1, 3, 4, 6, 5, 7])
    np.testing.assert_array_equal(turned.rows("v_proj", rows), rows)


def test_ollama_gets_a_modelfile(adapters, tmp_path):
    pytest.importorskip("gguf")
    exported(adapters["rslora"], "ollama", tmp_path / "out", "--from", "smollm2:135m")
    text = (tmp_path / "out/Modelfile").read_text()
    assert text == "FROM smollm2:135m\nADAPTER ./lora.gguf\n"
    done = headwater("export", adapters["rslora"], "--for", "ollama", "-o", tmp_path / "no")
    assert "--from" in done.error
    done = headwater("export", adapters["rslora"], "--for", "ollama", "-o", tmp_path / "no", "--from", "a\nb")
    assert "one line" in done.error
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("runtime", ["vllm", "sglang", "llama.cpp", "openvino"])
def test_dora_is_refused_with_the_way_out(adapters, tmp_path, runtime):
    done = headwater("export", adapters["dora"], "--for", runtime, "-o", tmp_path / "out")
    assert done.code == 4
    assert "--for merged" in done.error
    assert not (tmp_path / "out").exists()


def test_a_compressed_adapter_is_exported_too(adapters, base, tmp_path):
    headwater("compress", adapters["patterns"], "-o", tmp_path / "a.hw", "--codec", "exact")
    exported(tmp_path / "a.hw", "sglang", tmp_path / "of-file")
    exported(adapters["patterns"], "sglang", tmp_path / "of-folder")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("of-file", "of-folder")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_classifiers_head(base, tmp_path):
    """vLLM takes it in the file; for the others it lies beside."""
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    get_peft_model(model, LoraConfig(target_modules=["v_proj"], task_type="SEQ_CLS")).save_pretrained(
        tmp_path / "a"
    )
    want = load_file(tmp_path / "a/adapter_model.safetensors")[f"{PREFIX}score.weight"]
    exported(tmp_path / "a", "vllm", tmp_path / "vllm")
    got = load_file(tmp_path / "vllm/adapter_model.safetensors")[f"{PREFIX}score.weight"]
    np.testing.assert_array_equal(got, want)
    assert json.loads((tmp_path / "vllm/adapter_config.json").read_text())["modules_to_save"] == ["score"]
    exported(tmp_path / "a", "sglang", tmp_path / "sglang")
    assert not any("score" in n for n in load_file(tmp_path / "sglang/adapter_model.safetensors"))
    np.testing.assert_array_equal(load_file(tmp_path / "sglang/head.safetensors")["score.weight"], want)
    assert json.loads((tmp_path / "sglang/adapter_config.json").read_text())["modules_to_save"] is None


def test_ranks(adapters, tmp_path):
    exported(adapters["patterns"], "vllm", tmp_path / "out", "--rank", 16)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 16
    assert "one of 1, 8, 16" in headwater(
        "export", adapters["patterns"], "--for", "vllm", "-o", tmp_path / "x", "--rank", 12
    ).error  # fmt: skip
    assert "at least 7" in headwater(
        "export", adapters["patterns"], "--for", "sglang", "-o", tmp_path / "x", "--rank", 4
    ).error  # fmt: skip


def test_nothing_is_overwritten(adapters, tmp_path):
    exported(adapters["plain"], "vllm", tmp_path / "out")
    assert (
        "not there yet"
        in headwater("export", adapters["plain"], "--for", "vllm", "-o", tmp_path / "out").error
    )
    exported(adapters["plain"], "mlx", tmp_path / "out", "--overwrite")
    assert not (tmp_path / "out/adapter_model.safetensors").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    done = headwater("export", adapters["plain"], "--for", "vllm", "-o", tmp_path / "mine", "--overwrite")
    assert "something else" in done.error
    inside = headwater("export", adapters["plain"], "--for", "vllm", "-o", adapters["plain"] / "out")
    assert "shares files" in inside.error
