"""A user's own Trainer as a client: the same numbers as by hand, and in a simulation."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback, set_seed

import headwater
from headwater.adapters.given import GivenModel
from headwater.config import load_federation
from headwater.config.codec import DenseCodec
from headwater.config.script import ScriptTraining
from headwater.config.training import BackpropTraining
from headwater.errors import ConfigError, HeadwaterError, ModelError, TrainingError
from headwater.hf.learner import TrainerLearner
from headwater.hf.refused import REFUSED, require_federable, require_rows
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.training.cohort import TrainTask
from headwater.training.context import TrainingContext
from headwater.training.script import LocalPlan, ScriptTrainer
from tests.hf.scripts import model, script_federation, trainer
from tests.laws.trainer_laws import TrainerLaws
from tests.support.federations import examples
from tests.support.runs import rows

ROWS = rows("ann", 10)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Each ``train()`` collects all garbage: what the tests before left is kept out of it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("script")
    script_federation(found)
    return found


@pytest.fixture(scope="module")
def context(folder):
    return TrainingContext.open(load_federation(folder / "federation.toml"))


@pytest.fixture(scope="module")
def peft(folder):
    return model(folder)


def learner(folder, context, peft, **more):
    return TrainerLearner(lambda client, found: trainer(folder, found, peft, **more), context.model)


def plan(training=None, **changes):
    settings = ScriptTraining(kind="script", **(training or {}))
    return ClientPlan(settings, DenseCodec(kind="dense"), **changes)


def task(context, client="ann", **changes):
    drawn = examples(len(ROWS), language_model=False)
    return replace(TrainTask(client, context.initial_state(), drawn, plan()), **changes)


def train(learns, *tasks, tick=lambda: None, seed=0):
    return list(ScriptTrainer(learns, lambda client: ROWS, tick).train(tasks, key=Key.root(seed)))


class TestTrainerLaws(TrainerLaws):
    """Those that make up many cohorts take a while; in CI the function's laws stand for them."""

    @pytest.mark.slow
    def test_one_result_per_task_in_order(self):
        super().test_one_result_per_task_in_order()

    @pytest.mark.slow
    def test_a_result_depends_on_its_task_and_key_only(self):
        super().test_a_result_depends_on_its_task_and_key_only()

    @pytest.fixture(autouse=True)
    def _made(self, folder, context, peft):
        self.context, self.learns = context, learner(folder, context, peft)

    def trainer(self):
        return ScriptTrainer(self.learns, lambda client: ROWS)

    def start(self):
        return self.context.initial_state()

    def examples(self):
        return examples(len(ROWS), language_model=False)

    def training(self):
        return ScriptTraining(kind="script", max_steps=1)

    def diverging(self):
        return ScriptTraining(kind="script", max_steps=2, learning_rate=1e38)


def test_a_round_is_what_the_trainer_does_by_hand(folder, context):
    """The oracle is a Trainer that Headwater never sees: same start, same seed, the same bits."""
    (result,) = train(learner(folder, context, model(folder)), task(context))
    theirs = model(folder)
    given = GivenModel.of(theirs, context.model, who="by hand")
    given.load(context.initial_state())
    asked = LocalPlan.of(task(context), Key.root(0).child("client", "ann"))
    set_seed(asked.seed)
    alone = trainer(folder, ROWS, theirs, seed=asked.seed, save_strategy="no")
    output = alone.train()
    assert result.delta.tobytes() == (given.read("by hand") - context.initial_state()).tobytes()
    assert (result.steps, result.metrics["loss"]) == (output.global_step, output.training_loss)
    assert result.delta.norm() > 0


def test_rounds_leave_nothing_behind_in_a_trainer(folder, context):
    """Optimiser, schedule and seed are the round's: a second task is as if it were the first."""
    peft = model(folder)
    one = trainer(folder, ROWS, peft, weight_decay=0.1, lr_scheduler_type="cosine", data_seed=3)
    before = vars(one.args).copy()
    learns = TrainerLearner(lambda client, found: one, context.model)
    first, second = train(learns, task(context), task(context))
    assert first.delta.tobytes() == second.delta.tobytes()
    assert vars(one.args) == before
    (other,) = train(learns, task(context), seed=1)
    assert other.delta.tobytes() != first.delta.tobytes(), "data_seed does not fix the order for ever"


def test_gradient_checkpointing_leaves_no_hooks_behind(folder, context):
    """transformers adds one to the embeddings in every ``train()``, and forgets those before."""
    peft = model(folder)
    one = trainer(folder, ROWS, peft, gradient_checkpointing=True, max_steps=1)
    first, second = train(TrainerLearner(lambda *of: one, context.model), task(context), task(context))
    assert first.delta.norm() > 0
    assert first.delta.tobytes() == second.delta.tobytes()
    assert not any(module._forward_hooks for module in peft.modules())


@pytest.mark.parametrize(
    ("training", "factor", "steps"),
    [
        ({}, 1.0, 2),
        ({"epochs": 2.0}, 1.0, 4),
        ({"max_steps": 3}, 1.0, 3),
        ({"epochs": 3.0, "max_steps": 5}, 1.0, 5),
    ],
)
def test_the_plan_says_how_long(folder, context, peft, training, factor, steps):
    (result,) = train(learner(folder, context, peft), task(context, plan=plan(training)))
    assert result.steps == steps


def test_the_files_rate_and_the_rounds_factor_reach_any_optimiser(folder, context, peft):
    def norm(training=None, factor=1.0, **more):
        wanted = plan({**(training or {}), "max_steps": 1}, learning_rate_factor=factor)
        (result,) = train(learner(folder, context, peft, **more), task(context, plan=wanted))
        return result.delta.norm()

    sgd = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.5})}
    for more in ({"lr_scheduler_type": "constant"}, {"lr_scheduler_type": "constant", **sgd}):
        whole = norm(**more)
        assert norm(factor=0.25, **more) == pytest.approx(whole / 4, rel=0.05)
        rate = 0.5 if len(more) > 1 else 5e-3
        assert norm({"learning_rate": rate / 2}, **more) == pytest.approx(whole / 2, rel=0.05)


def test_own_callbacks_hear_of_it_and_the_rounds_own_is_gone_afterwards(folder, context, peft):
    class Heard(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **more):
            Heard.steps += 1

    one = trainer(folder, ROWS, peft, callbacks=[Heard])
    count = len(one.callback_handler.callbacks)
    train(TrainerLearner(lambda client, found: one, context.model), task(context), task(context))
    assert Heard.steps == 4
    assert len(one.callback_handler.callbacks) == count
    assert not list((folder / "out").glob("checkpoint-*")), "a round leaves no checkpoint"


def test_only_what_the_plan_covers_is_trained(folder, context, peft):
    spec = context.model.spec
    some = tuple(t.name for t in spec if "layer.1" in t.name)
    (result,) = train(
        learner(folder, context, peft, weight_decay=0.5), task(context, plan=plan(tensors=some))
    )
    assert {name for name, value in result.delta.items() if value.any()} <= set(some)
    assert result.delta.norm() > 0
    (thin,) = train(learner(folder, context, peft, weight_decay=0.5), task(context, plan=plan(rank=1)))
    name = next(t.name for t in spec if t.role == "lora_b")
    assert thin.delta[name][:, 0].any()
    assert not thin.delta[name][:, 1].any()
    (whole,) = train(learner(folder, context, peft), task(context))
    assert all(value.any() for name, value in whole.delta.items() if "lora_B" in name)


@pytest.mark.parametrize("name", [name for name, _, _ in REFUSED])
def test_what_no_round_can_have_is_refused_by_its_argument(folder, peft, name, monkeypatch):
    one = trainer(folder, ROWS, peft)
    assert require_federable(one) is one
    value = 2 if name in ("world_size", "n_gpu") else "on"
    monkeypatch.setattr(type(one.args), name, value, raising=False)
    one.args.__dict__.pop(name, None)
    with pytest.raises(ConfigError, match=rf"Trainer, args\.{name}: expected it off") as raised:
        require_federable(one)
    assert raised.value.hint


def test_a_trainer_with_a_model_of_its_own_making_or_an_optimiser_is_refused(folder, peft):
    optimiser = torch.optim.SGD(peft.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"optimizers: expected an optimizer that the Trainer makes"):
        require_federable(trainer(folder, ROWS, peft, optimizers=(optimiser, None)))
    with pytest.raises(ConfigError, match=r"model_init"):
        require_federable(trainer(folder, ROWS, None, model_init=lambda: peft))
    with pytest.raises(ConfigError, match=r"expected a transformers.Trainer"):
        require_federable(peft)
    with pytest.raises(ConfigError, match=r"train_dataset: expected a dataset with a length"):
        require_rows(trainer(folder, [], peft))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 3}, r"lora_A.weight: expected shape \[2, 32\], scaling 1, role lora_a, got shape \[3, 32\]"),
        ({"lora_alpha": 16}, "scaling 2, role lora_b, got shape .* scaling 8"),
        ({"use_rslora": True}, "lora_B.weight: expected .* scaling 2, .* scaling 2.82"),
        ({"use_dora": True}, "lora_magnitude_vector: expected no trained tensor but the federation's"),
        ({"bias": "all"}, "expected PEFT to save every trained tensor|expected no trained tensor but"),
        ({"target_modules": ["query"]}, "value.lora_A.weight: expected a tensor that is trained, got none"),
        ({"init_lora_weights": "pissa"}, "expected the value of base model bert, got other values"),
        ({"task_type": "FEATURE_EXTRACTION"}, "expected a tensor that is trained, got none"),
    ],
)
def test_another_adapter_is_refused_by_tensor(folder, context, changes, said):
    with pytest.raises(ModelError, match=said):
        GivenModel.of(model(folder, **changes), context.model, who="mine")


def test_another_base_or_none_is_refused(folder, context):
    with pytest.raises(ModelError, match=r"expected a model that peft.get_peft_model made"):
        GivenModel.of(model(folder).get_base_model(), context.model, who="mine")
    other = model(folder)
    with torch.no_grad():
        other.get_base_model().bert.embeddings.word_embeddings.weight[3, 4] += 1
    with pytest.raises(ModelError, match=r"mine: .*word_embeddings.weight: expected the value of base"):
        GivenModel.of(other, context.model, who="mine")
    other = model(folder)
    other.add_adapter("second", other.peft_config["default"])
    with pytest.raises(ModelError, match=r"expected one adapter, named 'default', got default, second"):
        GivenModel.of(other, context.model, who="mine")


def test_a_callback_that_writes_to_the_base_is_caught_and_the_base_put_back(folder, context):
    peft = model(folder)

    class Writes(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **more):
            model.get_base_model().bert.pooler.dense.bias.data.add_(1)  # no version counter sees it

    (bad,) = train(learner(folder, context, peft, callbacks=[Writes]), task(context))
    assert bad.delta is None
    assert "pooler.dense.bias: expected a weight of the base that the training leaves alone" in str(bad.error)
    (good,) = train(learner(folder, context, peft), task(context))
    (fresh,) = train(learner(folder, context, model(folder)), task(context))
    assert good.delta.tobytes() == fresh.delta.tobytes()


def test_a_plan_of_another_method_is_refused(folder, context, peft):
    other = ClientPlan(BackpropTraining(kind="backprop"), DenseCodec(kind="dense"))
    with pytest.raises(TrainingError, match=r"expected training.kind 'script', got backprop"):
        train(learner(folder, context, peft), task(context, plan=other))


def test_two_simulations_give_the_same_adapter(folder, tmp_path, peft):
    def run(name):
        file = load_federation(
            folder / "federation.toml", ["federation.rounds=2", "cohort.clients_per_round=2"]
        )
        return headwater.hf.simulate(
            file, lambda c, found: trainer(folder, found, peft), tmp_path / name
        ).summary

    first, second = run("a"), run("b")
    assert first["adapter_sha256"] == second["adapter_sha256"]
    assert first["failures_total"] == 0
    assert first["bytes"]["up"] > 0


def test_without_a_script_nothing_begins(folder, tmp_path, peft):
    loaded = load_federation(folder / "federation.toml")
    with pytest.raises(ConfigError, match=r"training.kind: expected a method of Headwater's"):
        headwater.simulate(loaded, tmp_path / "run")
    plain = load_federation(folder / "federation.toml", ["training={kind='backprop'}"])
    with pytest.raises(ConfigError, match=r"expected 'script'"):
        headwater.hf.simulate(plain, lambda client, found: None, tmp_path / "other")
    asks = load_federation(folder / "federation.toml", ["baselines.alone=true"])
    with pytest.raises(ConfigError, match=r"no script trains there"):
        headwater.hf.simulate(asks, lambda client, found: None, tmp_path / "third")
    with pytest.raises(HeadwaterError, match=r"strategy 'fisher' asks for what"):
        load_federation(folder / "federation.toml", ["strategy.kind=fisher"])
