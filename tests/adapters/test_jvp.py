"""AdaptedModel.slope against backprop, and what it may not keep; AdaptedModel.loss against forward's."""

import gc
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from headwater.adapters.chunked_head import ChunkedHead
from headwater.errors import ModelError
from headwater.tasks.batches import collate
from tests.support import federations

CASES = [
    *[("encoder", "bert", kind) for kind in ("lora", "dora", "prompt", "prefix", "ia3")],
    *[("causal-lm", "llama", kind) for kind in ("lora", "dora", "prompt", "prefix", "ia3")],
    ("causal-lm", "gpt2", "lora"),
    ("sequence-classification", "llama", "lora"),
    ("sequence-classification", "roberta", "lora"),
]

CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noisy(tmp_path, kind, base, adapter):
    """A model away from its initial state, where B = 0 hides A; and a padded batch."""
    loaded = federations.federation(tmp_path, kind, base, federations.adapter(adapter, base))
    model = federations.adapted(loaded)
    model.write(model.read().vector() + 0.1 * normal(model.spec.numel, 3))
    examples = federations.examples(5, language_model=model.language_model)
    batch = collate(examples, 0)
    assert bool((batch.mask == 0).any())
    return model, batch


def normal(size, seed):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def gradient(model, batch):
    parameters = [p for _, p in model.parameters()]
    found = torch.autograd.grad(model.forward(batch).loss, parameters)
    return torch.cat([g.reshape(-1) for g in found]).double()


@pytest.mark.parametrize(("kind", "base", "adapter"), CASES)
def test_equals_backprops_directional_derivative(tmp_path, kind, base, adapter):
    model, batch = noisy(tmp_path, kind, base, adapter)
    before = model.read().tobytes()
    true = gradient(model, batch)
    assert any(spec.role == "head" for spec in model.spec) == (kind != "causal-lm")
    for seed in range(3):
        direction = normal(model.spec.numel, seed)
        loss, slope = model.slope(batch, direction)
        assert loss == pytest.approx(model.forward(batch).loss.item(), rel=1e-5)
        # the error of a sum of d products rounded to float32 scales with their norms, not with the sum
        assert slope == pytest.approx(
            float(true @ direction.double()), abs=3e-6 * float(true.norm() * direction.norm())
        )
    assert model.read().tobytes() == before


def test_single_tensors_and_scale(tmp_path):
    """A tangent on one tensor reads that tensor's gradient: no tangent lands on a neighbour."""
    model, batch = noisy(tmp_path, "encoder", "bert", "lora")
    true, start = gradient(model, batch), 0
    for spec in model.spec:
        direction = torch.zeros(model.spec.numel)
        part = slice(start, start + spec.numel)
        direction[part] = normal(spec.numel, 1)
        expected = float(true[part] @ direction[part].double())
        assert model.slope(batch, direction)[1] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        start += spec.numel
    assert model.slope(batch, torch.zeros(model.spec.numel))[1] == 0.0


@pytest.mark.parametrize(("kind", "base"), [("encoder", "bert"), ("causal-lm", "llama")])
def test_keeps_no_graph_and_no_tensor(tmp_path, kind, base):
    model, batch = noisy(tmp_path, kind, base, "lora")
    direction = normal(model.spec.numel, 0)
    model.slope(batch, direction)
    model.loss(batch)
    before = tensors()
    grads = torch.is_grad_enabled()
    for _ in range(3):
        model.slope(batch, direction)
    assert tensors() == before
    assert torch.is_grad_enabled() == grads
    assert all(p.requires_grad and p.grad is None for _, p in model.parameters())
    with forward_ad.dual_level():
        assert all(forward_ad.unpack_dual(p).tangent is None for _, p in model.parameters())


def tensors():
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_names_what_has_no_forward_mode(tmp_path):
    model, batch = noisy(tmp_path, "encoder", "bert", "lora")
    layer = model.network.peft.get_base_model().encoder.layer[0].attention
    handle = layer.register_forward_hook(lambda m, a, out: (NoForwardMode.apply(out[0]), *out[1:]))
    with pytest.raises(ModelError, match=r"adapter 'lora' on .*bert: expected .*forward-mode"):
        model.slope(batch, normal(model.spec.numel, 0))
    handle.remove()
    model.slope(batch, normal(model.spec.numel, 0))  # no dual level was left open


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    model, batch = noisy(tmp_path, "encoder", "bert", "lora")

    def short_of_memory(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.network, "forward", short_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.slope(batch, normal(model.spec.numel, 0))


@pytest.mark.parametrize("adapter", ["lora", "prompt", "prefix", "ia3"])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_the_chunked_heads_losses(tmp_path, base, adapter, monkeypatch):
    if (base, adapter) == ("gpt2", "prefix"):
        pytest.skip("transformers gives GPT-2 no cache of that form")
    monkeypatch.setattr("headwater.adapters.chunked_head._VALUES", 3 * 260)  # several parts
    model, batch = noisy(tmp_path, "causal-lm", base, adapter)
    chunked = ChunkedHead.of(model.network, CROSS_ENTROPY)
    assert chunked is not None
    expected = model.forward(batch).losses.detach()
    with torch.no_grad():
        torch.testing.assert_close(chunked.losses(batch.tokens, batch.mask, batch.targets)[0], expected)
        torch.testing.assert_close(model.loss(batch), model.forward(batch).loss.detach())
    assert not model.network.peft.get_base_model().get_output_embeddings()._forward_pre_hooks


def test_logits_that_are_changed_afterwards_have_no_chunked_head(tmp_path, monkeypatch):
    """A cap at 30 leaves small logits as they are: 30·tanh(x/30)."""
    model, batch = noisy(tmp_path, "causal-lm", "llama", "lora")
    body = model.network.peft.get_base_model()
    forward = body.forward

    def capped(**arguments):
        out = forward(**arguments)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out

    monkeypatch.setattr(body, "forward", capped)
    assert ChunkedHead.of(model.network, CROSS_ENTROPY) is None
    with torch.no_grad():
        assert model.loss(batch) == model.forward(batch).loss
    assert ChunkedHead.of(noisy(tmp_path, "encoder", "bert", "lora")[0].network, CROSS_ENTROPY) is None


def test_values_that_diverged_do_not_decide(tmp_path):
    model, batch = noisy(tmp_path, "causal-lm", "llama", "lora")
    kept = model.read().vector()
    model.write(torch.full_like(kept, float("nan")))
    assert not torch.isfinite(model.loss(batch))
    model.write(kept)
    model.loss(batch)
    assert model._chunked_head is not None


def test_a_batch_without_targets_has_no_loss(tmp_path):
    model, batch = noisy(tmp_path, "causal-lm", "llama", "lora")
    batch.targets.fill_(-100)
    assert model.slope(batch, normal(model.spec.numel, 0)) == (0.0, 0.0)
