import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining, NoopTraining
from headwater.errors import ModelError, SpecMismatch, TrainingError
from headwater.protocol.messages import ClientPlan, FisherPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.training.backprop import BackpropTrainer
from headwater.training.cohort import TrainTask
from headwater.training.minibatches import minibatches
from headwater.training.noop import NoopTrainer
from tests.laws.trainer_laws import TrainerLaws
from tests.support import federations
from tests.training.on_bert import BackpropOnBert

VECTOR = StateSpec((TensorSpec("vector", (50,), "vector"),))


class TestNoop(TrainerLaws):
    def trainer(self):
        return NoopTrainer()

    def start(self):
        return AdapterState.zeros(VECTOR)

    def examples(self):
        return federations.examples(3, language_model=False)

    def training(self):
        return NoopTraining(kind="noop", scale=0.5)

    def diverging(self):
        return NoopTraining(kind="noop", scale=1e39)

    def test_golden_draw(self):
        (result,) = self.run([self.task("a")])
        draw = Key.root(0).child("client", "a").numpy().standard_normal(50, dtype=np.float32)
        assert np.array_equal(result.delta["vector"].numpy(), np.float32(0.5) * draw)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    loaded = federations.federation(
        tmp_path_factory.mktemp("b"), "encoder", "bert", federations.adapter("lora", "bert", dropout=0.1)
    )
    return federations.adapted(loaded)


class TestBackprop(BackpropOnBert):
    def examples(self):
        return federations.examples(10, language_model=False)

    def training(self):
        return BackpropTraining(kind="backprop", epochs=1.5, batch_size=4, learning_rate=1e-2)

    def result(self, **changes):
        plan_changes = {k: changes.pop(k) for k in ("fisher", "learning_rate_factor") if k in changes}
        training = self.training().model_copy(update=changes)
        plan = ClientPlan(training, DenseCodec(kind="dense"), **plan_changes)
        (result,) = self.run([self.task("a", plan=plan)])
        return result

    def test_steps_are_whole_passes_cut_at_the_end(self):
        assert self.result().steps == 5  # 1.5 passes of 3 batches, rounded up
        assert self.result(epochs=0.1).steps == 1
        assert self.result(max_steps=2).steps == 2

    def test_the_loss_falls(self):
        metrics = self.result(epochs=20.0).metrics
        assert metrics["last_loss"] < 0.7 * metrics["first_loss"]

    def test_error_names_client_and_step(self):
        error = self.result(learning_rate=1e38, max_grad_norm=None).error
        assert "client a, step 2: expected a finite loss" in str(error)
        assert "learning_rate" in str(error)

    def test_a_nan_gradient_is_caught_by_the_final_check(self):
        # one step: the loss before it is finite, the values after it are not
        result = self.result(learning_rate=3e38, epochs=0.1, learning_rate_factor=10.0)
        assert result.delta is None
        assert "step 1" in str(result.error)

    def test_want_of_memory_ends_one_client_not_the_cohort(self, monkeypatch):
        forward, calls = type(self.model).forward, []

        def short_of_memory(model, batch):
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("out of memory\nby 3 GiB")
            return forward(model, batch)

        monkeypatch.setattr(type(self.model), "forward", short_of_memory)
        first, second = self.run([self.task("a"), self.task("b")])
        assert first.delta is None
        assert "client a: " in str(first.error)
        assert "out of memory" in str(first.error)
        assert second.delta is not None

    def test_heads_have_their_own_rate(self):
        delta = self.result(head_learning_rate=1e-9).delta
        assert delta["head.weight"].abs().max() < 1e-7
        assert max(delta[n].abs().max() for n in delta if "lora_B" in n) > 1e-3

    def test_learning_rate_factor_scales_every_rate(self):
        half, plain = self.result(epochs=0.1, learning_rate_factor=0.5), self.result(epochs=0.1)
        torch.testing.assert_close(half.delta.vector(), 0.5 * plain.delta.vector(), rtol=1e-3, atol=1e-7)

    def test_proximal_term_holds_back(self):
        free, held = self.result(epochs=10.0), self.result(epochs=10.0, proximal_mu=10.0)
        assert held.delta.norm() < 0.8 * free.delta.norm()

    def test_one_step_of_adamw_by_hand(self):
        """The first AdamW step is −lr·(g/(|g|+ε) + wd·w), whatever the betas: no torch.optim needed."""
        result = self.result(epochs=0.1, max_grad_norm=None, weight_decay=0.1)
        self.model.load(self.start())
        key = Key.root(0).child("client", "a")
        training = self.training().model_copy(update={"epochs": 0.1})
        (batch,) = minibatches(self.examples(), training, key, pad=0)
        with torch.random.fork_rng():
            torch.manual_seed(key.child("dropout").seed())
            with self.model.training():
                loss = self.model.forward(batch).loss
        gradients = torch.autograd.grad(loss, [p for _, p in self.model.parameters()])
        for (spec, p), g in zip(self.model.parameters(), gradients, strict=True):
            expected = -1e-2 * (g / (g.abs() + 1e-8) + 0.1 * p.detach())
            torch.testing.assert_close(result.delta[spec.name], expected, rtol=1e-4, atol=1e-7)

    def test_checkpointing_changes_no_bit_and_recomputes(self):
        calls = []
        layer = self.model.network.peft.get_base_model().encoder.layer[0].attention
        handle = layer.register_forward_hook(lambda *_: calls.append(1))
        plain, first = self.result(), len(calls)
        checked = self.result(gradient_checkpointing=True)
        handle.remove()
        assert len(calls) - first == 2 * first
        assert checked.delta.tobytes() == plain.delta.tobytes()

    def test_fisher_rides_along(self):
        result = self.result(fisher=FisherPlan(8, 16.0))
        fisher = result.statistics["fisher"]
        assert fisher.spec == self.model.spec
        assert min(v.min() for v in fisher.values()) >= 0
        assert fisher.max_abs() <= 16.0
        assert result.metrics["fisher_seconds"] > 0
        assert result.delta.tobytes() == self.result().delta.tobytes()

    def test_foreign_tasks_are_refused(self):
        with pytest.raises(TrainingError, match="backprop"):
            self.run([self.task("a", plan=ClientPlan(NoopTraining(kind="noop"), DenseCodec(kind="dense")))])
        with pytest.raises(SpecMismatch):
            self.run([self.task("a", state=AdapterState.zeros(VECTOR))])
        (empty,) = self.run([self.task("a", examples=[])])
        assert "at least one example" in str(empty.error)


def test_prefix_with_checkpointing_is_refused(tmp_path):
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter("prefix", "bert"))
    model = federations.adapted(loaded)
    training = BackpropTraining(kind="backprop", gradient_checkpointing=True)
    plan = ClientPlan(training, DenseCodec(kind="dense"))
    task = TrainTask("a", model.initial_state(), federations.examples(2, language_model=False), plan)
    trainer = BackpropTrainer(model, 0)
    with pytest.raises(ModelError, match="prefix"):
        next(trainer.train([task], key=Key.root(0)))


@pytest.mark.parametrize("kind", ["lora", "dora", "prompt", "prefix", "ia3"])
def test_every_adapter_learns_a_language_model(tmp_path, kind):
    loaded = federations.federation(tmp_path, "causal-lm", "llama", federations.adapter(kind, "llama"))
    model = federations.adapted(loaded)
    training = BackpropTraining(kind="backprop", epochs=12.0, batch_size=4, learning_rate=3e-2)
    plan = ClientPlan(training, DenseCodec(kind="dense"))
    task = TrainTask("a", model.initial_state(), federations.examples(8, language_model=True), plan)
    (result,) = BackpropTrainer(model, 0).train([task], key=Key.root(0))
    assert result.error is None
    assert result.metrics["last_loss"] < result.metrics["first_loss"] - 0.02
    assert all(bool(v.any()) for v in result.delta.values())
