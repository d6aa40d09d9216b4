"""Quantised bases on a CPU, against the same base with its weights written out in float32."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from headwater.adapters.export import export
from headwater.adapters.model import AdaptedModel
from headwater.adapters.quantised import compute_as_in_training, quantised
from headwater.adapters.trial import try_model
from headwater.config.model import CausalLMModel
from headwater.errors import ModelError
from headwater.tasks.batches import Batch, collate
from tests.support import federations

BASES = [("4bit", "causal-lm", "llama"), ("8bit", "causal-lm", "llama"), ("4bit", "encoder", "bert")]


@pytest.fixture(scope="module")
def library():
    if torch.cuda.is_available():
        pytest.skip("says what a CPU computes")
    return pytest.importorskip("bitsandbytes", reason="is in the extra 'gpu', not in 'dev'")


def build(folder, bits: str, task: str, base: str, adapter: str = "lora") -> AdaptedModel:
    table = federations.adapter(adapter, base)
    loaded = federations.federation(folder, task, base, table)
    model = loaded.settings.model.model_copy(update={"quantization": bits, "path": str(folder / base)})
    return federations.adapted(type(loaded)(loaded.settings.model_copy(update={"model": model}), folder))


def batch_of(model: AdaptedModel) -> Batch:
    return collate(federations.examples(3, language_model=model.language_model), 0)


def gradients(model: AdaptedModel, batch: Batch) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model.loss(batch), [p for _, p in model.parameters()]))


@pytest.mark.parametrize(("bits", "task", "base"), BASES)
def test_it_trains_as_the_dequantised_base_also_after_an_evaluation(library, tmp_path, bits, task, base):
    model, exact = build(tmp_path, bits, task, base), build(tmp_path, "none", task, base)
    weights = dict(exact.network.named_modules())
    kinds = (library.nn.Linear4bit, library.nn.Linear8bitLt)
    layers = {n: m for n, m in model.network.named_modules() if isinstance(m, kinds)}
    assert layers
    apart = 0.0
    for name, layer in layers.items():
        with torch.no_grad():
            written = dequantize_module_weight(layer).float()
            apart = max(apart, float((weights[name].weight - written).abs().max()))
            weights[name].weight.copy_(written)
    assert apart > 1e-4, "the oracle would be the base as it was"
    noise = torch.Generator().manual_seed(3)
    state = exact.initial_state().map(lambda v: v + 0.05 * torch.randn(v.shape, generator=noise))
    model.load(state)
    exact.load(state)
    batch = batch_of(model)
    for _ in range(2):
        torch.testing.assert_close(gradients(model, batch), gradients(exact, batch), rtol=1e-3, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(model.losses(batch)[0], exact.losses(batch)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_plain_peft_on_the_same_quantised_base_says_the_same(library, tmp_path, bits):
    model = build(tmp_path, bits, "causal-lm", "llama")
    try_model(model, max_tokens=32)
    state = model.initial_state().map(lambda v: v + 0.05)
    model.load(state)
    export(model, state, tmp_path / "out", card={})
    config = BitsAndBytesConfig(**quantised(bits, "float32"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", quantization_config=config)
    plain = PeftModel.from_pretrained(base, tmp_path / "out").train()
    batch = batch_of(model)
    with torch.no_grad():
        told = plain(input_ids=batch.tokens, attention_mask=batch.mask).logits
        ours = model.forward(batch).logits
    at = batch.mask.bool()
    torch.testing.assert_close(ours[at], told[at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_dora_starts_from_the_norms_of_the_dequantised_weights(library, tmp_path, bits):
    model = build(tmp_path, bits, "causal-lm", "llama", "dora")
    start, modules = model.initial_state(), dict(model.network.named_modules())
    names = [spec.name for spec in start.spec if spec.role == "dora_magnitude"]
    assert names
    for name in names:
        layer = modules[f"peft.{name.partition('.lora_magnitude_vector')[0]}"].get_base_layer()
        norms = dequantize_module_weight(layer).float().norm(dim=1)
        torch.testing.assert_close(start[name].flatten(), norms, rtol=1e-5, atol=1e-6)


class Packing(nn.Linear):
    """A layer that lets no gradient through once it has computed in evaluation mode, as 0.50.2's do."""

    packs, packed = True, False

    def forward(self, x):
        self.packed |= self.packs and not self.training
        return super().forward(x.detach() if self.packed else x)


class Never(Packing):
    """One that does not ask for its mode."""

    def forward(self, x):
        return nn.Linear.forward(self, x.detach())


def compute(monkeypatch, layer):
    library = ModuleType("bitsandbytes")
    library.nn = SimpleNamespace(Linear4bit=Packing, Linear8bitLt=Packing)
    library.__version__ = "0.99"
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    settings = CausalLMModel(kind="causal-lm", path="x", quantization="4bit")
    model = nn.Sequential(layer)
    compute_as_in_training(model, settings)
    return model


def test_a_layer_that_packs_its_weights_in_evaluation_is_kept_from_it(monkeypatch):
    model = compute(monkeypatch, Packing(4, 3)).eval()
    with torch.no_grad():
        model(torch.ones(1, 4))
    x = torch.ones(1, 4, requires_grad=True)
    model.eval()(x).sum().backward()
    torch.testing.assert_close(x.grad[0], model[0].weight.sum(0))


def test_a_layer_without_gradients_is_refused(monkeypatch):
    with pytest.raises(ModelError, match=r"got none with bitsandbytes 0\.99 on this CPU"):
        compute(monkeypatch, Never(4, 3))


def test_a_base_of_which_nothing_is_quantised_is_refused(monkeypatch):
    with pytest.raises(ModelError, match="expected a base with linear layers"):
        compute(monkeypatch, nn.Linear(4, 3))
