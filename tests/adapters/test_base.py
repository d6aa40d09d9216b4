import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from headwater.adapters.base import load_base
from headwater.adapters.weights import hash_base
from headwater.config.model import CausalLMModel, EncoderModel, SequenceClassificationModel
from headwater.errors import ModelError
from tests.support.tiny_models import tiny_bert, tiny_llama

LABELS = ("no", "yes")


def encoder(**changes):
    return EncoderModel(kind="encoder", path="bert", **changes)


@pytest.fixture
def bert(tmp_path):
    return tiny_bert(tmp_path / "bert")


def test_the_hash_is_portable_and_sees_every_weight(tmp_path, bert):
    before = hash_base(bert)
    moved = shutil.copytree(bert, tmp_path / "elsewhere" / "again")
    config = json.loads((moved / "config.json").read_text())
    config |= {"transformers_version": "9", "_name_or_path": "/home/somebody"}
    (moved / "config.json").write_text(json.dumps(config, indent=None))
    (moved / "README.md").write_text("hello")
    assert hash_base(moved) == before
    (moved / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert hash_base(moved) != before
    weights = bytearray((bert / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (bert / "model.safetensors").write_bytes(weights)
    assert hash_base(bert) != before


def edited(path, **changes):
    """The JSON file with ``changes``, in another layout."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(dict(reversed(content.items()))), encoding="utf-8")


def test_the_hash_sees_the_tokenizer(tmp_path):
    """Two members whose tokenizers differ would train on different tokens, and never know."""
    folder = tiny_llama(tmp_path / "llama")
    seen = {hash_base(folder)}

    def is_new():
        found = hash_base(folder)
        return found not in seen and not seen.add(found)

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    edited(folder / "tokenizer.json", model=tokenizer["model"])
    assert is_new()
    edited(folder / "tokenizer_config.json", eos_token="<|bos|>")
    assert is_new()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert is_new()
    edited(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    assert is_new()
    for name in ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"):
        (folder / name).write_bytes(b"one")
        assert is_new()
        (folder / name).write_bytes(b"two")
        assert is_new()


def test_the_hash_passes_by_what_changes_no_token(tmp_path):
    folder = tiny_llama(tmp_path / "llama")
    before = hash_base(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert hash_base(folder) == before
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer("a text", truncation=True, max_length=3, padding="max_length")
    tokenizer.save_pretrained(folder)  # keeps how it was last called
    edited(folder / "tokenizer.json")
    edited(folder / "tokenizer_config.json", name_or_path="/home/somebody", transformers_version="4.1")
    (folder / "generation_config.json").write_text("{}")
    assert hash_base(folder) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_json_file_is_named(bert, name, content):
    (bert / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"expected a {name}"):
        hash_base(bert)


def test_shards_are_those_of_the_index(tmp_path):
    folder = tiny_llama(tmp_path / "llama")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    whole = (folder / "model.safetensors").rename(folder / names[0])
    shutil.copy(whole, folder / names[1])
    index = {"weight_map": {"a": names[1], "b": names[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = hash_base(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"of no concern")
    assert hash_base(folder) == before
    (folder / names[1]).unlink()
    with pytest.raises(ModelError, match=names[1]):
        hash_base(folder)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("[", "JSONDecodeError"),
        ("{}", "KeyError"),
        ('{"weight_map": []}', "AttributeError"),
        ('{"weight_map": {}}', "got none"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', r"beside .* got '\.\./other"),
        ('{"weight_map": {"a": 3}}', "beside .* got 3"),
    ],
)
def test_an_index_that_lists_no_files_beside_it_is_refused(tmp_path, index, says):
    folder = tiny_llama(tmp_path / "llama")
    (tmp_path / "other").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "other" / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=says):
        hash_base(folder)


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_vl", "mistral3", "clip", "qwen2_audio"])
def test_a_model_of_more_than_text_is_refused_by_its_parts(tmp_path, bert, kind):
    (bert / "config.json").write_text(json.dumps({"model_type": kind}))
    other = "audio" if "audio" in kind else "vision"
    with pytest.raises(ModelError, match=rf"text alone, got {kind}, which has the parts .*{other}"):
        load_base(encoder(), tmp_path, labels=LABELS)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", None])
def test_weights_that_were_quantised_before_are_refused(tmp_path, bert, method):
    config = json.loads((bert / "config.json").read_text())
    saved = {"quant_method": method, "bits": 4} if method else {"bits": 4}
    (bert / "config.json").write_text(json.dumps({**config, "quantization_config": saved}))
    with pytest.raises(ModelError, match=f"before they were quantised, got .* of {method or 'no known'}"):
        load_base(encoder(), tmp_path, labels=LABELS)


def test_a_wrong_hash_names_both(tmp_path, bert):
    right = hash_base(bert)
    assert load_base(encoder(sha256=right), tmp_path, labels=LABELS).sha256 == right
    with pytest.raises(ModelError, match=f"expected sha256 {'0' * 64}, got {right}"):
        load_base(encoder(sha256="0" * 64), tmp_path, labels=LABELS)


def test_pickled_weights_are_refused(tmp_path, bert):
    (bert / "model.safetensors").unlink()
    torch.save({}, bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*refused"):
        load_base(encoder(), tmp_path, labels=LABELS)


def test_neither_folder_nor_hub(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="relative to the federation file"):
        load_base(EncoderModel(kind="encoder", path="../no/such/folder"), tmp_path, labels=LABELS)
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="no network"):
        load_base(EncoderModel(kind="encoder", path="some/model"), tmp_path, labels=LABELS)


def test_a_hub_name_is_its_snapshot(tmp_path, bert, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(name, **kwargs):
        asked.update(name=name, **kwargs)
        return str(bert)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    settings = EncoderModel(kind="encoder", path="some/model", revision="v1")
    assert load_base(settings, tmp_path / "x", labels=LABELS).sha256 == hash_base(bert)
    assert (asked["name"], asked["revision"]) == ("some/model", "v1")
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_layers_are_the_first_ones(tmp_path, bert):
    base = load_base(encoder(layers=1), tmp_path, labels=LABELS)
    full = load_base(encoder(), tmp_path, labels=LABELS)
    assert len(base.model.encoder.layer) == 1
    state = full.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in base.model.state_dict().items())
    with pytest.raises(ModelError, match="at most 2, got 3"):
        load_base(encoder(layers=3), tmp_path, labels=LABELS)


def test_no_dropout_and_full_precision(tmp_path, bert):
    model = load_base(encoder(), tmp_path, labels=LABELS).model
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_fresh_names_the_new_head(tmp_path, bert):
    settings = SequenceClassificationModel(kind="sequence-classification", path="bert")
    base = load_base(settings, tmp_path, labels=LABELS)
    assert base.fresh == {"classifier.weight", "classifier.bias"}
    assert base.model.config.id2label == {0: "no", 1: "yes"}


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_llama(tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 missing or of another shape, such as model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load_base(CausalLMModel(kind="causal-lm", path="llama"), tmp_path, labels=None)


def test_another_architecture_is_an_error_of_ours(tmp_path, bert):
    (bert / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(ModelError, match="AutoModel"):
        load_base(encoder(), tmp_path, labels=LABELS)
