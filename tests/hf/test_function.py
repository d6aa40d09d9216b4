"""A function of the owner's as local training: laws, an oracle, and what it may not do, by name."""

from __future__ import annotations

import pytest
import torch

import headwater
from headwater.config import load_federation
from headwater.config.codec import DenseCodec
from headwater.config.script import ScriptTraining
from headwater.hf.function import FunctionLearner
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.training.cohort import TrainTask
from headwater.training.context import TrainingContext
from headwater.training.script import LocalPlan, ScriptTrainer
from tests.hf.scripts import LABELS, TABLES, script_federation, tokenizer
from tests.laws.trainer_laws import TrainerLaws
from tests.support.federations import examples
from tests.support.runs import rows

ROWS = rows("ann", 10)


def descend(folder, model, found, plan: LocalPlan):
    """Plain PyTorch, as an owner writes it."""
    reads, rate = tokenizer(folder), plan.learning_rate or 0.05
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(plan.max_steps or 2):
        some = [found[i] for i in torch.randperm(len(found))[:4]]
        batch = reads([row["text"] for row in some], padding=True, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor([LABELS.index(row["label"]) for row in some])).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return {"loss": sum(losses) / len(losses), "steps": len(losses)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("function")
    script_federation(found)
    return found


@pytest.fixture(scope="module")
def context(folder):
    return TrainingContext.open(load_federation(folder / "federation.toml"))


def plan(**training):
    return ClientPlan(ScriptTraining(kind="script", **training), DenseCodec(kind="dense"))


def task(context, client="ann", **training):
    drawn = examples(len(ROWS), language_model=False)
    return TrainTask(client, context.initial_state(), drawn, plan(**training))


def train(context, function, *tasks):
    learner = FunctionLearner(function, context.model)
    return list(ScriptTrainer(learner, lambda client: ROWS).train(tasks or [task(context)], key=Key.root(0)))


class TestFunctionLaws(TrainerLaws):
    @pytest.fixture(autouse=True)
    def _made(self, folder, context):
        self.context = context
        self.learner = FunctionLearner(lambda *given: descend(folder, *given), context.model)

    def trainer(self):
        return ScriptTrainer(self.learner, lambda client: ROWS)

    def start(self):
        return self.context.initial_state()

    def examples(self):
        return examples(len(ROWS), language_model=False)

    def training(self):
        return ScriptTraining(kind="script", max_steps=2)

    def diverging(self):
        return ScriptTraining(kind="script", max_steps=3, learning_rate=1e38)


def refused(context, function) -> str:
    (result,) = train(context, function)
    assert result.delta is None
    return str(result.error)


def adapter_of(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_what_is_in_the_adapters_tensors_is_the_update(context):
    def adds_one(model, found, plan):
        assert found == ROWS
        assert model.training
        with torch.no_grad():
            for parameter in adapter_of(model):
                parameter.add_(1)
        return {"loss": torch.tensor(0.5), "seen": 3}

    (result,) = train(context, adds_one)
    assert result.metrics == {"loss": 0.5, "seen": 3.0}
    state = context.initial_state()
    for name, value in result.delta.items():
        assert torch.equal(value, (state[name] + 1) - state[name])


def test_the_base_is_out_of_reach(context):
    def writes(model, found, plan):
        model.get_base_model().bert.pooler.dense.bias.data.add_(1)
        return {"loss": 0.0}

    said = refused(context, writes)
    assert "client ann: peft.base_model.model.bert.pooler.dense.bias: expected a weight of the base" in said
    (result,) = train(context, lambda *given: {"loss": 0.0})
    assert not result.delta.vector().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(context, value):
    def breaks(model, found, plan):
        next(iter(adapter_of(model))).data[0, 1] = value
        return {"loss": 0.0}

    assert "finite value everywhere in base_model.model.bert" in refused(context, breaks)
    assert "got 1 of 64 values that are not" in refused(context, breaks)
    assert "a finite metric loss, got " in refused(context, lambda *given: {"loss": value})


def test_a_tensor_of_another_shape_or_none_is_named(context):
    def layer(model):
        return model.get_base_model().bert.encoder.layer[0].attention.self.query

    def widens(model, found, plan):
        layer(model).lora_A["default"].weight = torch.nn.Parameter(torch.zeros(3, 32))
        return {"loss": 0.0}

    def merges(model, found, plan):
        del layer(model).lora_A["default"]
        return {"loss": 0.0}

    said = refused(context, widens)
    assert (
        "query.lora_A.weight: expected a tensor of shape [2, 32] after the training, got shape [3, 32]"
        in said
    )
    assert "query.lora_A.weight: expected a tensor of shape [2, 32] after the training, got none" in refused(
        context, merges
    )


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "got NoneType"),
        ({}, "got 0: []"),
        ({"accuracy": 1.0}, "got 1: ['accuracy']"),
        ({"loss": "low"}, "metric 'loss': expected a number, got 'low'"),
        ({"loss": torch.zeros(2)}, "metric 'loss': expected a number, got tensor"),
        ({"loss": 0.0, 3: 1.0}, "metric 3: expected a number"),
        ({"loss": 0.0, **{f"m{i}": 0.0 for i in range(40)}}, "and at most 32, got 41"),
    ],
)
def test_it_must_say_its_loss(context, returned, said):
    assert said in refused(context, lambda *given: returned)


def test_it_sees_the_files_rate_with_the_rounds_factor(context):
    seen = []

    def looks(model, found, plan):
        seen.append(plan)
        return {"loss": 0.0}

    training = ScriptTraining(kind="script", learning_rate=0.5, epochs=2.0, max_steps=9)
    asked = ClientPlan(training, DenseCodec(kind="dense"), learning_rate_factor=0.5, rows=4)
    one = TrainTask("ann", context.initial_state(), examples(10, language_model=False), asked)
    train(context, looks, one)
    found = seen[0]
    assert (found.client, found.epochs, found.max_steps) == ("ann", 2.0, 9)
    assert (found.learning_rate, found.learning_rate_factor) == (0.25, 0.5)
    assert 0 <= found.seed < 2**31


def test_an_exception_of_its_own_is_its_clients_failure(folder, tmp_path):
    @headwater.local_training
    def picky(model, found, plan):
        if plan.client == "ben":
            raise KeyError("colour")
        return descend(folder, model, found, plan)

    loaded = load_federation(folder / "federation.toml", ["federation.rounds=1"])
    run = picky.simulate(loaded, tmp_path / "run")
    assert run.summary["failures_total"] == 1
    assert "KeyError: 'colour' (test_function.py, line" in run.summary["failures"][0]["reason"]


def test_an_encoder_comes_with_its_head(tmp_path):
    script_federation(tmp_path, model={"kind": "encoder"}, training=TABLES["training"])
    context = TrainingContext.open(load_federation(tmp_path / "federation.toml"))

    def learns(model, found, plan):
        reads = tokenizer(tmp_path)
        batch = reads([row["text"] for row in found], padding=True, return_tensors="pt")
        logits = model(batch["input_ids"], batch["attention_mask"])
        targets = torch.tensor([LABELS.index(row["label"]) for row in found])
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        with torch.no_grad():
            for parameter in adapter_of(model):
                parameter.sub_(parameter.grad)
        return {"loss": loss}

    (result,) = train(context, learns)
    assert result.delta["head.weight"].any()
    assert result.metrics["loss"] == pytest.approx(0.69, abs=0.1)
