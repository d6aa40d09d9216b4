"""Every kind of adapter, every kind of plan: a cohort learns what its clients learn alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config.training import BackpropTraining
from headwater.errors import ModelError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.training.batched.trainer import BatchedBackpropTrainer
from tests.docs.test_how_to import blocks
from tests.laws.cohort_laws import DOUBLE, SINGLE, cohort, corrected, parts, require_alike, trainings
from tests.laws.trainer_laws import bits, same
from tests.support import federations
from tests.support.plugins import installed_in, write_package

TRAINING = BackpropTraining(
    kind="backprop", epochs=2.0, max_steps=4, batch_size=4, learning_rate=1e-2, weight_decay=0.1
)
ROWS = (3, 9, 1, 6)
BERT, ROBERTA = ("encoder", "bert"), ("sequence-classification", "roberta")
LLAMA, GPT2 = ("causal-lm", "llama"), ("causal-lm", "gpt2")
CELLS = {
    "lora": (BERT, LLAMA),
    "rslora": (BERT,),
    "dora": (BERT, GPT2),
    "lora-sb": (BERT, GPT2),
    "ia3": (BERT, ROBERTA, LLAMA, GPT2),
    "vera": (BERT, LLAMA, GPT2),
    "prompt": (BERT, ROBERTA, LLAMA),
    "prefix": (BERT, LLAMA),
    "p-tuning": (BERT, LLAMA),
    "p-tuning-lstm": (BERT,),
    "pissa": (BERT,),
    "ln-tuning": (BERT,),
}
DROPPING = ("dora", "lora-sb", "vera")
ROUNDED = 2e-7
"""Of deltas in float32 of equal values."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(
    scope="module", params=[(kind, *base) for kind in CELLS for base in CELLS[kind]], ids=" ".join
)
def model(request, folder):
    kind, task, base = request.param
    return adapted(folder, kind, task, base)


def adapted(folder, kind, task, base):
    table = federations.adapter(kind, base, **({"dropout": 0.3} if kind in DROPPING else {}))
    return federations.adapted(federations.federation(folder, task, base, table))


@pytest.fixture(scope="module")
def lora(folder):
    table = federations.adapter("lora", "bert", dropout=0.2)
    return federations.adapted(federations.federation(folder, "encoder", "bert", table))


@pytest.fixture
def double(lora):
    lora.network.double()
    yield lora
    lora.network.float()


def together(model, tasks):
    return list(BatchedBackpropTrainer(model, 0, 8).train(tasks, key=Key.root(3)))


def test_every_kind_learns_what_it_learns_alone(model):
    require_alike(model, cohort(model, TRAINING, ROWS), SINGLE)
    model.network.double()
    try:
        require_alike(model, cohort(model, TRAINING, ROWS), DOUBLE, values=ROUNDED)
    finally:
        model.network.float()


@pytest.mark.parametrize("kind", CELLS)
def test_what_is_not_a_number_stays_at_home_and_bits_are_the_same_again(kind, folder):
    model = adapted(folder, kind, *BERT)
    tasks = cohort(model, TRAINING, ROWS)
    first, second = together(model, tasks), together(model, tasks)
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    nothing = AdapterState.from_vector(model.spec, torch.full((model.spec.numel,), torch.nan))
    tasks[1] = replace(tasks[1], state=nothing)
    found = together(model, tasks)
    assert found[1].delta is None
    assert "c1" in str(found[1].error)
    assert [bits(found[n].delta) for n in (0, 2, 3)] == [bits(first[n].delta) for n in (0, 2, 3)]


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_cohort_of_any_plans(double, data):
    training = data.draw(trainings)
    rows = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    plans = [data.draw(st.sampled_from(sorted(parts(double)))) for _ in rows]
    who = [data.draw(st.booleans()) for _ in rows]
    tasks = corrected(cohort(double, training, rows, plans, seed=data.draw(st.integers(0, 99))), who)
    require_alike(double, tasks, DOUBLE, values=1e-6)


def test_what_all_leave_alone_needs_no_gradient(lora):
    """Gradients end at the lowest tensor that somebody trains."""
    tasks = cohort(lora, TRAINING, ROWS, ["last layer"] * len(ROWS))
    trainer, seen = BatchedBackpropTrainer(lora, 0, 8), []
    inner = trainer._gradients
    trainer._gradients = lambda *given: seen.append(inner(*given)) or seen[-1]
    list(trainer.train(tasks, key=Key.root(0)))
    last = set(parts(lora)["last layer"]["tensors"])
    assert all(set(gradients) == last for _, gradients in seen)
    assert last < {spec.name for spec in lora.spec}


def test_what_is_computed_again_is_the_same(folder):
    table = federations.adapter("lora", "llama")
    llama = federations.adapted(federations.federation(folder, "causal-lm", "llama", table))
    training = TRAINING.model_copy(update={"gradient_checkpointing": True})
    require_alike(llama, cohort(llama, training, ROWS), SINGLE)


def test_what_lies_below_all_is_kept_for_all(folder, monkeypatch):
    table = federations.adapter("lora", "llama", layers=(1,))
    llama = federations.adapted(federations.federation(folder, "causal-lm", "llama", table))
    require_alike(llama, cohort(llama, TRAINING, ROWS), SINGLE)
    training = TRAINING.model_copy(update={"trunk_cache_mb": 1})
    require_alike(llama, cohort(llama, training, ROWS), SINGLE)
    assert llama.kept_bytes > 0


class ByTheLargest(torch.optim.SGD):
    """Like 8-bit moments its steps depend on all values of a block."""

    def __init__(self, groups, *, lr=1e-3, **settings):
        super().__init__(groups, lr=lr)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad / p.grad.abs().max().clamp(min=1e-9), alpha=group["lr"])


def test_blocks_of_an_optimiser_are_never_two_clients(double, monkeypatch):
    library = ModuleType("bitsandbytes")
    library.optim = SimpleNamespace(AdamW8bit=ByTheLargest)
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    training = TRAINING.model_copy(update={"optimizer": "adamw8bit"})
    require_alike(double, cohort(double, training, ROWS), DOUBLE, values=ROUNDED)


@pytest.fixture
def package(tmp_path):
    """The kind that a page of the documentation brings, installed."""
    source = blocks("add-an-adapter-kind")["headwater_ln.py"]
    points = {"adapter_kinds": {"norms": "headwater_ln:LnAdapter"}}
    write_package(tmp_path / "packages", "headwater_ln", source, points)
    with installed_in(tmp_path / "packages"):
        yield


def tuned_norms(folder, task, base, *norms):
    table = {"kind": "norms", "target_modules": norms}
    return federations.adapted(federations.federation(folder, task, base, table))


@pytest.mark.usefixtures("package")
def test_a_kind_of_a_package_is_stacked_where_its_layers_are_known(folder):
    model = tuned_norms(folder, "encoder", "bert", "LayerNorm")
    require_alike(model, cohort(model, TRAINING, ROWS), SINGLE)


def test_biases_are_stacked_too(folder):
    """By SGD: a key's bias has no effect, and AdamW walks there wherever rounding leads it."""
    model = adapted(folder, "bitfit", *BERT)
    training = TRAINING.model_copy(update={"optimizer": "sgd", "learning_rate": 0.1})
    require_alike(model, cohort(model, training, ROWS), SINGLE)


@pytest.mark.parametrize("kind", ["hira", "oft", "randlora", "shira", "vblora"])
def test_kinds_whose_layers_have_no_stack_are_trained_one_by_one(kind, folder):
    with pytest.raises(ModelError, match="in no layer of which a stack can be made"):
        BatchedBackpropTrainer(adapted(folder, kind, *BERT), 0, 8)


@pytest.mark.usefixtures("package")
def test_a_kind_of_a_package_is_refused_where_they_are_not(folder):
    """LlamaRMSNorm is no layer norm of torch's."""
    model = tuned_norms(folder, "causal-lm", "llama", "input_layernorm")
    with pytest.raises(ModelError, match=r"got adapter.kind 'norms', a trained tensor .*input_layernorm"):
        BatchedBackpropTrainer(model, 0, 8)
