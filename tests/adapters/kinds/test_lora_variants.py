"""LoRA's variants: PiSSA and OLoRA against PEFT's own, patterns, fused parameters, LoRA+."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError

from headwater.adapters.base import load_base
from headwater.adapters.export import export
from headwater.adapters.predict import Predictor
from headwater.config.training import BackpropTraining
from headwater.errors import ModelError
from headwater.training.backprop import optimiser_of
from tests.laws.adapter_kind_laws import batch_of, elsewhere
from tests.support import architectures, federations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def build(folder, base="llama", **table):
    return federations.adapted(federations.federation(folder, "causal-lm", base, table))


def products(model):
    """s·B·A of every layer, by its name."""
    state = model.initial_state()
    return {
        t.name.removesuffix(".lora_B.weight"): t.scaling * state[t.name] @ state[t.pair]
        for t in model.spec
        if t.role == "lora_b"
    }


# PEFT's OLoRA of GPT-2's transposed layers has the shapes of A and B exchanged
@pytest.mark.parametrize(("kind", "base"), [("pissa", "llama"), ("pissa", "gpt2"), ("olora", "llama")])
def test_it_starts_from_what_peft_takes_out_of_the_base(folder, kind, base):
    model = build(folder, base, **federations.adapter(kind, base))
    plain = load_base(model.base.settings, folder, labels=None).model
    targets = list(federations.TARGETS[base])
    before = copy.deepcopy(plain).state_dict()
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=targets, init_lora_weights=kind, fan_in_fan_out=base == "gpt2"
    )
    theirs = get_peft_model(plain, config)
    found = products(model)
    assert found
    for path, product in found.items():
        left = theirs.get_submodule(path).get_base_layer().weight.detach()
        taken = before[path.removeprefix("base_model.model.") + ".weight"] - left
        taken = taken.T if base == "gpt2" else taken
        torch.testing.assert_close(product, taken, rtol=0, atol=2e-3 * float(taken.abs().max()))


def test_a_base_that_is_adapted_so_keeps_its_weights(folder):
    model = build(folder, **federations.adapter("pissa", "llama"))
    plain = dict(load_base(model.base.settings, folder, labels=None).model.named_parameters())
    for name, parameter in model.network.peft.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, plain[name.replace(".base_layer", "")])


def test_a_rank_above_a_side_is_refused(folder):
    with pytest.raises(ModelError, match="rank of at most 16"):
        build(folder, **federations.adapter("olora", "llama", rank=17))


PATTERNS = {"rank_pattern": {"v_proj": 3, "layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"v_proj": 12.0}}


def test_patterns_give_layers_their_own_rank_and_alpha(folder, tmp_path):
    model = build(folder, **federations.adapter("lora", "llama", **PATTERNS))
    found = {
        ".".join(t.name.split(".")[4:7]): (t.shape[1], t.scaling) for t in model.spec if t.role == "lora_b"
    }
    assert found == {
        "0.self_attn.q_proj": (2, 2.0),
        "0.self_attn.v_proj": (3, 4.0),
        "1.self_attn.q_proj": (5, 0.8),
        "1.self_attn.v_proj": (3, 4.0),
    }
    assert model.adapter.factor_rank == 5
    require_same_elsewhere(model, folder, tmp_path)


def require_same_elsewhere(model, folder, tmp_path):
    """The export, loaded by PEFT, gives the same logits."""
    model.base.settings.__dict__["path"] = str(folder / model.base.settings.path)
    state = elsewhere(model)
    export(model, state, tmp_path / "out", card={})
    model.load(state)
    batch = batch_of(model)
    with torch.no_grad():
        ours, theirs = model.forward(batch).logits, Predictor.open(tmp_path / "out").forward(batch).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("table", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_nothing_is_refused(folder, table):
    with pytest.raises(ModelError, match=rf"{table}: expected the end of .* got 'k_proj'"):
        build(folder, **federations.adapter("lora", "llama", **{table: {"k_proj": 4}}))
    with pytest.raises(ValidationError, match="pattern"):
        build(folder, **federations.adapter("lora", "llama", **{table: {"(k_proj": 4}}))


def test_b_learns_faster_where_the_file_says_so(folder):
    model = build(folder, **federations.adapter("lora", "llama"))
    plus = BackpropTraining(kind="backprop", learning_rate=0.5, lora_b_rate=16.0)
    rates = {
        id(p): group["lr"]
        for group in optimiser_of(model.parameters(), plus, 0.5).param_groups
        for p in group["params"]
    }
    assert {spec.role: rates[id(p)] for spec, p in model.parameters()} == {"lora_a": 0.25, "lora_b": 4.0}


def test_a_rate_of_b_without_b_is_refused(folder):
    training = {"kind": "backprop", "lora_b_rate": 16.0}
    with pytest.raises(ValidationError, match="lora_b_rate"):
        federations.federation(
            folder, "encoder", "bert", federations.adapter("ia3", "bert"), training=training
        )


def test_parameters_of_fused_experts_can_be_named(folder, tmp_path):
    architectures.build("mixtral", folder / "mixtral")
    table = {"target_modules": ("q_proj",), "target_parameters": ("mlp.experts.gate_up_proj",)}
    model = build(folder, "mixtral", kind="lora", rank=2, alpha=4.0, **table)
    experts = [t for t in model.spec if t.experts > 1]
    assert {t.role for t in experts} == {"lora_a", "lora_b"}
    assert {t.experts for t in experts} == {4}
    require_same_elsewhere(model, folder, tmp_path)
    table["target_parameters"] = ("mlp.experts.w9",)
    with pytest.raises(ModelError, match=r"target_parameters .* such as experts\.down_proj"):
        build(folder, "mixtral", kind="lora", rank=2, **table)
