"""``trainable_token_indices``: rows of an extended base's embedding, trained as PEFT does."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwater.adapters.export import export
from headwater.adapters.kinds.lora import LoraKind
from headwater.adapters.model import AdaptedModel
from headwater.config.load import federation_of
from headwater.errors import ModelError
from tests.laws import adapter_kind_laws
from tests.laws.adapter_kind_laws import AdapterKindLaws, batch_of, elsewhere
from tests.support import federations
from tests.support.command import headwater
from tests.support.tiny_models import tiny_llama, tiny_masked

folder = adapter_kind_laws.folder
ADDED = ("<tool>", "<answer>")
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


class TestLoraWithRows(AdapterKindLaws):
    kind, roles, starts_as_base = LoraKind, {"lora_a", "lora_b", "token_rows"}, True

    def table(self, base):
        return federations.adapter("lora", base, trainable_token_indices=(70, 9, 21))


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def models(request, tmp_path_factory):
    """A folder with ``llama``: two tokens added to its tokenizer, and its embedding resized."""
    return extended(tmp_path_factory.mktemp("extended"), tied=request.param)


def extended(folder, *, tied):
    tiny_llama(folder / "small")
    tokenizer = AutoTokenizer.from_pretrained(folder / "small")
    model = AutoModelForCausalLM.from_pretrained(folder / "small", dtype=torch.float32)
    tokenizer.add_tokens(list(ADDED))
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def ids(models):
    tokenizer = AutoTokenizer.from_pretrained(models / "llama")
    return [tokenizer.convert_tokens_to_ids(token) for token in ADDED]


def build(models, **table) -> AdaptedModel:
    table = {"trainable_token_indices": tuple(ids(models)), **table}
    return federations.adapted(
        federations.federation(models, "causal-lm", "llama", federations.adapter("lora", "llama", **table))
    )


def plain(models):
    return AutoModelForCausalLM.from_pretrained(models / "llama", dtype=torch.float32).eval()


def with_added(models):
    """A batch in which the added tokens stand, and are told."""
    batch = batch_of(federations.adapted(federations.federation(
        models, "causal-lm", "llama", federations.adapter("lora", "llama"))))  # fmt: skip
    for at, token in enumerate(ids(models)):
        batch.tokens[:, at + 1] = batch.targets[:, at + 1] = token
    return batch


def logits_of(model, batch):
    with torch.no_grad():
        return model(input_ids=batch.tokens, attention_mask=batch.mask).logits


def test_a_text_with_added_tokens_is_read_as_them(models):
    model = build(models)
    tokens = model.base.tokenizer.encode("a <tool> b<answer>", 32)
    assert set(ids(models)) <= set(map(int, tokens))
    assert model.spec.by_name[ROWS].shape == (2, 32)
    own = plain(models).get_input_embeddings().weight[ids(models)]
    assert torch.equal(model.initial_state()[ROWS], own)


@pytest.mark.parametrize("pads", [False, True], ids=["", "the padding's row"])
def test_values_and_gradients_are_pefts(models, pads):
    """PEFT's own layers, which copy the embedding; a tied output sees the rows too.

    A base whose end of a text is its padding (SmolLM2) learns nothing in the embedding of that row.
    """
    rows = [*ids(models), *([plain(models).config.pad_token_id] if pads else [])]
    ours, batch = build(models, trainable_token_indices=tuple(rows)), with_added(models)
    batch.tokens[0, 3] = rows[-1]
    ours.load(elsewhere(ours))
    theirs = get_peft_model(
        plain(models),
        LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
                   trainable_token_indices=rows),
    ).eval()  # fmt: skip
    named = {n.replace(".default", ""): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert named.keys() == ours.spec.by_name.keys()
    with torch.no_grad():
        for name, value in ours.read().items():
            named[name].copy_(value)
    found = theirs(input_ids=batch.tokens, attention_mask=batch.mask).logits
    torch.testing.assert_close(ours.forward(batch).logits, found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.loss(batch), ours.forward(batch).loss)  # in parts, as evaluation does
    wanted = torch.autograd.grad(ours.output(found, batch.targets).loss, [named[s.name] for s in ours.spec])
    got = torch.autograd.grad(ours.forward(batch).loss, [p for _, p in ours.parameters()])
    for spec, a, b in zip(ours.spec, got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=spec.name)
        assert a.abs().max() > 0, spec.name


def test_export_start_and_merged_model_say_the_same(models, tmp_path):
    model, batch = build(models), with_added(models)
    model.base.settings.__dict__["path"] = str(models / "llama")
    state = elsewhere(model)
    export(model, state, tmp_path / "out", card={})
    model.load(state)
    with torch.no_grad():
        ours = model.forward(batch).logits
    theirs = PeftModel.from_pretrained(plain(models), tmp_path / "out").eval()
    torch.testing.assert_close(logits_of(theirs, batch), ours, rtol=1e-4, atol=1e-5)
    assert torch.equal(load_file(tmp_path / "out/adapter_model.safetensors")[ROWS], state[ROWS])
    again = federations.adapted(starting(models, tmp_path / "out"), seed=5)
    assert again.initial_state().tobytes() == state.tobytes()
    done = headwater("export", tmp_path / "out", "--for", "merged", "--base", models / "llama",
                     "-o", tmp_path / "merged", "--json")  # fmt: skip
    assert done.code == 0, done.err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(logits_of(merged, batch), ours, rtol=1e-4, atol=1e-4)


def starting(models, start, **table):
    raw = federations.federation(models, "causal-lm", "llama", federations.adapter("lora", "llama"))
    tables = raw.settings.model_dump(mode="json", exclude_none=True)
    return federation_of(
        {**tables, "adapter": {"start": str(start), **table}}, folder=models, name="federation.toml"
    )


@pytest.mark.parametrize("by_module", [False, True])
def test_what_peft_trained_is_gone_on_with(models, tmp_path, by_module):
    """A list or a table in PEFT's file, in PEFT's order of the rows."""
    wanted = ids(models)[::-1]
    rows = {"embed_tokens": wanted} if by_module else wanted
    torch.manual_seed(0)
    theirs = get_peft_model(
        plain(models), LoraConfig(r=3, target_modules=["v_proj"], trainable_token_indices=rows)
    ).eval()
    with torch.no_grad():
        for parameter in (p for p in theirs.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "peft")
    model, batch = federations.adapted(starting(models, tmp_path / "peft")), with_added(models)
    with torch.no_grad():
        found = model.forward(batch).logits
    torch.testing.assert_close(found, logits_of(theirs, batch), rtol=1e-5, atol=1e-5)
    export(model, model.initial_state(), tmp_path / "out", card={})
    before, after = (
        load_file(f / "adapter_model.safetensors") for f in (tmp_path / "peft", tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    said = json.loads((tmp_path / "out/adapter_config.json").read_text())["trainable_token_indices"]
    assert said == rows
    with pytest.raises(ModelError, match="trainable_token_indices"):
        federations.adapted(starting(models, tmp_path / "peft", trainable_token_indices=wanted[:1]))


def test_whole_embeddings_in_a_start_say_to_save_the_base(models, tmp_path):
    """What PEFT writes of a model that was resized in memory only."""
    theirs = get_peft_model(
        plain(models), LoraConfig(r=2, target_modules=["v_proj"], trainable_token_indices=ids(models))
    )
    theirs.save_pretrained(tmp_path / "peft", save_embedding_layers=True)
    with pytest.raises(ModelError, match=r"whole embeddings.*Save the resized base"):
        federations.adapted(starting(models, tmp_path / "peft"))


def test_rows_that_mean_two_things_are_refused(models):
    last = ids(models)[-1]
    with pytest.raises(ModelError, match=rf"ids below {last + 1}.*got {last + 1}.*resize_token_embeddings"):
        build(models, trainable_token_indices=(last + 1,))
    with pytest.raises(ValidationError, match="twice"):
        build(models, trainable_token_indices=(3, 3))
    tied = plain(models).config.tie_word_embeddings
    two = {"embed_tokens": (5,), "lm_head": (6,)}
    for table in (two, {"lm_head": (5,)}):
        if tied:
            with pytest.raises(ModelError, match="Give the ids as a list"):
                build(models, trainable_token_indices=table)
        else:
            model = build(models, trainable_token_indices=table)
            assert sum(t.role == "token_rows" for t in model.spec) == len(table)


def test_an_output_layer_whose_bias_peft_drops_is_refused(tmp_path):
    """A masked language model's output is tied and has a bias."""
    tiny_masked(tmp_path / "bert")
    data = {"kind": "masked-lm", "path": "x", "partition": {"kind": "iid", "clients": 2}}
    table = federations.adapter("lora", "bert", trainable_token_indices=(7,))
    loaded = federations.federation(tmp_path, "masked-lm", "bert", table, data=data)
    with pytest.raises(ModelError, match="decoder: expected an output layer without a bias"):
        federations.adapted(loaded)
