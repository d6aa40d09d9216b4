"""mezo, kseed and decomfl on real models: no autograd graph, the base untouched, replay exact."""

import hashlib
from dataclasses import replace

import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import DecomflTraining, KseedTraining, MezoTraining
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan, directions_of
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import shifted
from headwater.training.cohort import TrainTask
from headwater.training.context import TrainingContext
from tests.support import federations

TRAININGS = {
    "mezo": MezoTraining(kind="mezo", max_steps=4, epochs=9.0, learning_rate=1e-3, directions=2),
    "kseed": KseedTraining(kind="kseed", max_steps=4, learning_rate=1e-3),
    "decomfl": DecomflTraining(kind="decomfl", max_steps=2, directions=2, learning_rate=1e-3),
}
SEEDS = {
    "kseed": SeedPlan(0, 4096, "rademacher", 15, 4),
    "decomfl": SeedPlan(8, 4, "rademacher", 15, 4, implied=True),
}


@pytest.fixture(scope="module", params=["bert", "llama"])
def context(request, tmp_path_factory):
    kind = "encoder" if request.param == "bert" else "causal-lm"
    table = federations.adapter("lora", request.param, dropout=0.3)
    before = torch.get_num_threads()
    yield TrainingContext.open(
        federations.federation(tmp_path_factory.mktemp("z"), kind, request.param, table)
    )
    torch.set_num_threads(before)


def frozen(model):
    trained = {id(p) for _, p in model.parameters()}
    digest = hashlib.sha256()
    for name, p in model.network.named_parameters():
        if id(p) not in trained:
            digest.update(name.encode() + p.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", TRAININGS)
def test_on_a_real_model(context, kind):
    model, before = context.model, frozen(context.model)
    rows = federations.examples(6, language_model=context.model.language_model)
    plan = ClientPlan(TRAININGS[kind], DenseCodec(kind="dense"), seeds=SEEDS.get(kind))
    directions = directions_of(plan.seeds, Key.root(7), model.spec.numel) if plan.seeds else None
    task = TrainTask("a", model.initial_state(), rows, plan, directions)
    trainer = context.trainer(plan.training)

    def saved(_):
        raise AssertionError("a tensor was saved for backward")

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        (result,) = trainer.train([task], key=Key.root(0))
    assert result.error is None
    assert result.metrics["first_loss"] > 0
    assert all(p.grad is None for p in model.network.parameters())
    assert frozen(model) == before
    trained = model.read()
    assert trained.sha256() != model.initial_state().sha256()
    if isinstance(result.delta, SeedCoefficients):
        exact = directions.combine(result.delta.seeds, result.delta.coefficients)
        assert trained.sha256() == shifted(model.initial_state(), exact, plan.seeds.unit_bits).sha256()
    else:
        assert result.noise > 0
        moved = model.initial_state().vector() + result.delta.vector()
        torch.testing.assert_close(trained.vector(), moved, rtol=0, atol=2e-7)
    still = replace(plan, learning_rate_factor=0.0)
    (result,) = trainer.train([replace(task, plan=still)], key=Key.root(0))
    assert result.error is None
    assert model.read().sha256() == model.initial_state().sha256()  # many probes, no step: not a bit moved
