import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater.adapters import attach as room
from headwater.adapters.base import load_base
from headwater.adapters.kinds.table import kind_of
from headwater.adapters.targets import linear_modules
from headwater.errors import ConfigError, ModelError, SpecMismatch
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import collate
from tests.support import federations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def build(folder, kind, base, adapter, *, seed=0, changes=None, **settings):
    table = federations.adapter(adapter, base, **(changes or {}))
    return federations.adapted(federations.federation(folder, kind, base, table, **settings), seed=seed)


def batch_of(model, count=3):
    return collate(
        federations.examples(count, language_model=model.language_model),
        0,
    )


@pytest.mark.parametrize(
    ("base", "adapter", "scaling"), [("llama", "lora", 2.0), ("gpt2", "rslora", 4 / 2**0.5)]
)
def test_the_spec_tells_how_to_form_the_product(folder, base, adapter, scaling):
    """W + s·B·A (transposed for Conv1D) put into a plain base gives the adapted model's logits."""
    model = build(folder, "causal-lm", base, adapter)
    noise = torch.Generator().manual_seed(0)
    state = model.initial_state().map(lambda v: torch.randn(v.shape, generator=noise))
    model.load(state)
    plain = load_base(model.base.settings, folder, labels=None).model
    for spec in state.spec:
        if spec.role != "lora_b":
            continue
        assert spec.scaling == pytest.approx(scaling)
        assert spec.transposed == (base == "gpt2")
        product = spec.scaling * state[spec.name] @ state[spec.pair]
        module = plain.get_submodule(spec.name.removeprefix("base_model.model.").partition(".lora_B")[0])
        module.weight.data += product.T if spec.transposed else product
    batch = batch_of(model)
    expected = plain(input_ids=batch.tokens, attention_mask=batch.mask).logits
    torch.testing.assert_close(model.forward(batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_ffa_freezes_a_and_keeps_it_at_home(folder):
    plain = build(folder, "encoder", "bert", "lora")
    model = build(folder, "encoder", "bert", "lora", strategy={"kind": "mean", "space": "ffa"})
    assert {t.role for t in model.spec} == {"lora_b", "head"}
    assert {t.role for t in model.frozen.spec} == {"lora_a"}
    assert {t.pair for t in model.spec if t.role == "lora_b"} == set(model.frozen)
    for name, value in model.frozen.items():
        assert torch.equal(value, plain.initial_state()[name])
        assert torch.equal(value, dict(model.network.peft.named_parameters())[name[:-7] + ".default.weight"])
    assert len(plain.frozen) == 0


def test_an_adapter_kind_without_a_builder_is_refused_by_name(folder):
    """It must never become LoRA because nothing else fitted."""
    model = build(folder, "encoder", "bert", "lora")

    class Unknown(type(model.adapter)):
        """A kind that nobody entered in the table."""

    with pytest.raises(ConfigError, match="settings of class Unknown"):
        kind_of(Unknown(kind="lora"))


def test_golden_initial_values(folder):
    """A is PEFT's Kaiming-uniform in law; the draw itself is NumPy's, at the tensor's own key."""
    state = build(folder, "encoder", "bert", "lora").initial_state()
    for spec in state.spec:
        if spec.role == "lora_b":
            assert not state[spec.name].any()
            rng = Key.root(0).child("initial", spec.pair).numpy()
            expected = rng.uniform(-(32**-0.5), 32**-0.5, (2, 32)).astype(np.float32)
            assert np.array_equal(state[spec.pair].numpy(), expected)
    prompts = build(folder, "causal-lm", "llama", "prompt")
    table = prompts.network.peft.word_embeddings.weight.detach()
    for row in prompts.initial_state()["prompt_embeddings"]:
        assert bool((table == row).all(1).any())


def test_mean_pooling_by_hand(folder):
    model = build(folder, "encoder", "bert", "lora")
    plain = load_base(model.base.settings, folder, labels=federations.LABELS).model
    state = model.initial_state()
    for i, example in enumerate(federations.examples(3, language_model=False)):
        tokens = torch.from_numpy(example.tokens.astype(np.int64))[None]
        mean = plain(input_ids=tokens).last_hidden_state.mean(1)
        expected = mean @ state["head.weight"].T + state["head.bias"]
        torch.testing.assert_close(
            model.forward(batch_of(model)).logits[i], expected[0], rtol=1e-4, atol=1e-5
        )


def test_a_head_in_the_files_is_kept_and_another_size_replaced(folder):
    from transformers import AutoModelForSequenceClassification

    trained = AutoModelForSequenceClassification.from_pretrained(
        federations.tiny_bert(folder / "b2"), num_labels=3
    )
    trained.save_pretrained(folder / "b2")
    federations.TARGETS["b2"] = federations.TARGETS["bert"]
    trained.config.id2label = {0: "Positive", 1: "negative", 2: "neutral"}
    trained.save_pretrained(folder / "b2")
    model = build(folder, "sequence-classification", "b2", "lora")
    assert model.labels == ("negative", "neutral", "positive")
    state = model.initial_state()
    assert torch.equal(state["base_model.model.classifier.weight"], trained.classifier.weight[[1, 2, 0]])
    assert "'Positive', 'negative', 'neutral'" in model.notices[0]
    two = {
        "kind": "classification",
        "path": "x",
        "labels": ("a", "b"),
        "partition": {"kind": "iid", "clients": 2},
    }
    state = build(folder, "sequence-classification", "b2", "lora", data=two).initial_state()
    assert state["base_model.model.classifier.weight"].shape == (2, 32)
    assert not state["base_model.model.classifier.bias"].any()


def test_dropout_only_where_configured_and_only_in_training(folder):
    for rate in (0.0, 0.5):
        model = build(folder, "encoder", "bert", "lora", changes={"dropout": rate})
        model.load(model.initial_state().map(lambda v: v + 0.3))
        batch = batch_of(model)
        assert torch.equal(model.forward(batch).losses, model.forward(batch).losses)
        with model.training():
            repeated = torch.equal(model.forward(batch).losses, model.forward(batch).losses)
        assert repeated == (rate == 0.0)
        assert torch.equal(model.forward(batch).losses, model.forward(batch).losses)


@pytest.mark.parametrize("adapter", ["lora", "prompt", "ia3"])
def test_checkpointing_leaves_nothing_behind(folder, adapter):
    model = build(folder, "causal-lm", "llama", adapter)
    batch, parameters = batch_of(model), [p for _, p in model.parameters()]
    plain = torch.autograd.grad(model.forward(batch).loss, parameters)
    with model.training(checkpointing=True):
        checked = torch.autograd.grad(model.forward(batch).loss, parameters)
    for a, b in zip(plain, checked, strict=True):
        assert torch.equal(a, b)
    body = model.network.peft.get_base_model()
    assert not body.is_activation_checkpointing
    assert not any(m.training for m in model.network.modules())
    assert not body.get_input_embeddings()(torch.tensor([[1]])).requires_grad


def test_a_batch_without_targets_has_no_loss(folder):
    model = build(folder, "causal-lm", "llama", "lora")
    batch = batch_of(model)
    nothing = SimpleNamespace(
        tokens=batch.tokens, mask=batch.mask, targets=torch.full_like(batch.targets, -100)
    )
    assert model.forward(nothing).loss.item() == 0


def without_pooler(folder):
    """The base "bare": a BERT as masked-language pretraining leaves it."""
    path = federations.tiny_bert(folder / "bare") / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    federations.TARGETS["bare"], federations.FEEDFORWARD["bare"] = ("query", "value"), ("output.dense",)


class TestRefusals:
    def test_unknown_targets_list_what_exists(self, folder):
        with pytest.raises(ModelError, match=r"dense, key, query, value.*'q_proj'"):
            build(folder, "encoder", "bert", "lora", changes={"target_modules": ("query", "q_proj")})

    def test_all_linear(self, folder):
        model = build(folder, "causal-lm", "llama", "lora", changes={"target_modules": ("all-linear",)})
        adapted = {re.sub(r"\.lora_B.*", "", t.name) for t in model.spec if t.role == "lora_b"}
        assert len(adapted) == 14  # 7 in each of 2 layers; PEFT leaves the LM head out
        assert len(linear_modules(model.network.peft)) > 14

    @pytest.mark.parametrize(("kind", "base"), [("causal-lm", "llama"), ("encoder", "bert")])
    def test_all_linear_in_some_layers(self, folder, kind, base):
        everywhere = build(folder, kind, base, "lora", changes={"target_modules": ("all-linear",)})
        changes = {"target_modules": ("all-linear",), "layers": (1,)}
        names = [t.name for t in build(folder, kind, base, "lora", changes=changes).spec]
        layer = [t.name for t in everywhere.spec if re.search(r"layers?\.1\.", t.name) or t.role == "head"]
        assert names == layer

    def test_layers(self, folder):
        with pytest.raises(ModelError, match=r"between 0 and 1.*\[2\]"):
            build(folder, "encoder", "bert", "lora", changes={"layers": (1, 2)})
        model = build(folder, "encoder", "bert", "lora", changes={"layers": (1,)})
        assert all(".layer.1." in t.name for t in model.spec if t.role != "head")

    @pytest.mark.parametrize("adapter", ["prompt", "prefix"])
    def test_layers_that_the_files_lack_and_the_adapter_cannot_train(self, folder, adapter):
        without_pooler(folder)
        with pytest.raises(ModelError, match=rf"{adapter}.*lack.*trained.*got bert\.pooler\.dense frozen"):
            build(folder, "sequence-classification", "bare", adapter)
        assert build(folder, "encoder", "bare", adapter)  # mean pooling passes the pooler by

    @pytest.mark.parametrize("adapter", ["lora", "dora", "ia3"])
    def test_layers_that_the_files_lack_are_trained_or_refused(self, folder, adapter, monkeypatch):
        without_pooler(folder)
        spec = build(folder, "sequence-classification", "bare", adapter).spec
        assert "base_model.model.bert.pooler.dense.weight" in spec.by_name
        monkeypatch.setattr(room, "_fresh_modules", lambda base: [])
        with pytest.raises(ModelError, match=r"got bert\.pooler\.dense frozen"):
            build(folder, "sequence-classification", "bare", adapter)

    def test_a_foreign_state(self, folder):
        model = build(folder, "encoder", "bert", "lora")
        other = build(folder, "encoder", "bert", "prompt").initial_state()
        with pytest.raises(SpecMismatch):
            model.load(other)
        assert isinstance(other, AdapterState)
