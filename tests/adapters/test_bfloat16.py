"""A base in bfloat16: half the size, and beside it all that is trained is float32."""

import pytest
import torch

from headwater.adapters.export import export
from headwater.adapters.predict import Predictor
from headwater.adapters.trial import try_model
from headwater.seeds.keys import Key
from headwater.tasks.batches import collate
from headwater.training.backprop import BackpropTrainer
from headwater.training.batched.trainer import BatchedBackpropTrainer
from tests.support.federations import adapted, adapter, examples, federation
from tests.training.batched.test_trainer import tasks_of

KINDS = ["lora", "rslora", "dora", "prompt", "prefix", "ia3", "vera", "p-tuning"]
BASES = [("encoder", "bert"), ("causal-lm", "llama")]


def built(folder, kind, base, name, dtype):
    table = adapter(name, base)
    return adapted(federation(folder, kind, base, table, model={"kind": kind, "path": base, "dtype": dtype}))


def started(model):
    """Initial values with every tensor away from zero."""
    noise = torch.Generator().manual_seed(5)
    return model.initial_state().map(lambda v: v + 0.2 * torch.randn(v.shape, generator=noise))


def gradient(model, state, batch):
    model.load(state)
    with model.training():
        loss = model.forward(batch).loss
        found = torch.autograd.grad(loss, [p for _, p in model.parameters()], allow_unused=True)
    return float(loss.detach()), torch.cat([g.reshape(-1).double() for g in found if g is not None])


@pytest.mark.parametrize(("kind", "base"), BASES)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_trained_is_float32_and_its_gradient_that_beside_a_float32_base(tmp_path, kind, base, name):
    models = {dtype: built(tmp_path, kind, base, name, dtype) for dtype in ("float32", "bfloat16")}
    half = models["bfloat16"]
    try_model(half, max_tokens=16, slopes=True)
    assert {p.dtype for _, p in half.parameters()} == {torch.float32}
    frozen = {p.dtype for p in half.network.peft.get_base_model().parameters() if not p.requires_grad}
    assert torch.bfloat16 in frozen
    rows = examples(6, language_model=kind == "causal-lm")
    batch, state = collate(rows, pad=half.base.tokenizer.pad), started(half)
    (loss, whole), (near, rounded) = (gradient(m, state, batch) for m in models.values())
    assert near == pytest.approx(loss, rel=0.02)
    assert float(torch.nn.functional.cosine_similarity(whole, rounded, dim=0)) > 0.98
    assert half.forward(batch).logits.dtype == torch.float32
    losses, counts = half.losses(batch)
    assert losses.dtype == torch.float32
    assert float(losses.sum() / counts.sum()) == pytest.approx(near, rel=1e-3)
    slope = half.slope(batch, torch.ones(half.spec.numel))[1]
    assert slope == pytest.approx(float(rounded.sum()), rel=0.1, abs=0.05 * float(rounded.norm()))


@pytest.mark.parametrize(("kind", "base"), BASES)
def test_predict_reads_it_as_training_did(tmp_path, kind, base):
    model = built(tmp_path, kind, base, "lora", "bfloat16")
    state = started(model)
    export(model, state, tmp_path / "out", card={})
    predictor = Predictor.open(tmp_path / "out", base=str(tmp_path / base))
    assert predictor.base.settings.dtype == "bfloat16"
    batch = collate(examples(3, language_model=kind == "causal-lm"), pad=model.base.tokenizer.pad)
    model.load(state)
    with torch.no_grad():
        expected = model.forward(batch).logits
        assert torch.equal(predictor.network(batch.tokens, batch.mask), expected)


@pytest.mark.parametrize(("kind", "base"), BASES)
def test_clients_that_are_one_batch_learn_what_they_learn_alone(tmp_path, kind, base):
    model = built(tmp_path, kind, base, "lora", "bfloat16")
    tasks, pad = tasks_of(model, clients=3), model.base.tokenizer.pad
    trainers = BatchedBackpropTrainer(model, pad, 8), BackpropTrainer(model, pad)
    together, alone = (list(trainer.train(tasks, key=Key.root(1))) for trainer in trainers)
    for one, other in zip(together, alone, strict=True):
        assert one.delta is not None
        assert other.delta is not None
        cosine = torch.nn.functional.cosine_similarity(one.delta.vector(), other.delta.vector(), dim=0)
        assert float(cosine) > 0.95, one.client


def test_a_head_of_the_base_s_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use kind = 'encoder'"):
        built(tmp_path, "sequence-classification", "bert", "lora", "bfloat16")
