"""Backprop on part of the adapter: what is outside neither moves nor costs activations."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from headwater.adapters.adamw8bit import adamw8bit
from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.errors import MissingDependency
from headwater.merging.coverage import covered, last_layers
from headwater.protocol.messages import ClientPlan, FisherPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import collate
from headwater.training.backprop import BackpropTrainer
from headwater.training.cohort import TrainTask
from headwater.training.minibatches import minibatches
from headwater.training.trainable_part import TrainablePart
from tests.support import federations
from tests.support.quadratic import PAIR, Quadratic, examples
from tests.training.on_bert import BackpropOnBert

DENSE = DenseCodec(kind="dense")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    table = federations.adapter("lora", "bert", dropout=0.1)
    return federations.adapted(federations.federation(tmp_path_factory.mktemp("b"), "encoder", "bert", table))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plans(spec):
    return {
        "none": {},
        "last": {"tensors": last_layers(spec, 1)},
        "rank": {"rank": 1},
        "both": {"tensors": last_layers(spec, 1), "rank": 1},
    }


class TestPart(BackpropOnBert):
    """The laws, with a plan of half of the adapter."""

    def examples(self):
        return federations.examples(6, language_model=False)

    def plan(self, training):
        return ClientPlan(training, DENSE, **plans(self.model.spec)["both"])

    def training(self):
        return BackpropTraining(kind="backprop", batch_size=4, learning_rate=1e-2)


def train(model, changes, plan, *, start=None, given=None):
    training = BackpropTraining(
        kind="backprop", **{"batch_size": 4, "learning_rate": 1e-2, "epochs": 3.0, **changes}
    )
    given = federations.examples(6, language_model=False) if given is None else given
    task = TrainTask("a", start or noisy(model), given, ClientPlan(training, DENSE, **plan))
    (result,) = BackpropTrainer(model, 0).train([task], key=Key.root(0))
    return result


def noisy(model):
    """A state without zeros, so that weight decay shows."""
    noise = torch.randn(model.spec.numel, generator=torch.Generator().manual_seed(3))
    return AdapterState.from_vector(model.spec, model.initial_state().vector() + 0.1 * noise)


@pytest.mark.parametrize("name", ["last", "rank", "both"])
@pytest.mark.parametrize(
    "changes", [{}, {"weight_decay": 0.5, "proximal_mu": 0.3}, {"gradient_checkpointing": True}], ids=str
)
def test_the_delta_is_exactly_zero_outside(bert, name, changes):
    plan = plans(bert.spec)[name]
    mask = covered(bert.spec, plan.get("tensors"), plan.get("rank"))
    result = train(bert, changes, plan | {"fisher": FisherPlan(4, 16.0)})
    for state in (result.delta, result.statistics["fisher"]):
        vector = state.vector()
        assert not bool(vector[~mask].any())
        assert bool(vector[mask].any())
    assert float((result.delta.vector()[mask] != 0).float().mean()) > 0.99
    assert all(p.requires_grad and p.grad is None for _, p in bert.parameters())
    assert torch.equal(bert.read().vector()[~mask], noisy(bert).vector()[~mask])


def test_a_plan_that_covers_everything_changes_no_bit(bert):
    everything = {"tensors": tuple(t.name for t in bert.spec), "rank": 2}
    full, plain = (train(bert, {"weight_decay": 0.1}, plan) for plan in (everything, {}))
    assert full.delta.tobytes() == plain.delta.tobytes()


def test_covered_values_move_as_if_the_others_were_constants():
    """On a separable quadratic without clipping, what is trained does not notice what is not."""
    model, changes = Quadratic.random(PAIR, examples=4), {"max_grad_norm": None, "proximal_mu": 0.1}
    plain = train(model, changes, {}, given=examples(4)).delta.vector()
    for plan in (plans(PAIR)["rank"], plans(PAIR)["last"]):
        mask = covered(PAIR, plan.get("tensors"), plan.get("rank"))
        part = train(model, changes, plan, given=examples(4)).delta.vector()
        assert torch.equal(part[mask], plain[mask])


def test_the_norm_is_that_of_the_covered_gradient():
    """One AdamW step forgets the gradient's scale, so a step of a clipped gradient 1e-6 long, beside ε."""
    model, mask = Quadratic.random(PAIR, examples=4), covered(PAIR, None, 1)
    result = train(model, {"max_grad_norm": 1e-6, "epochs": 0.1}, {"rank": 1}, given=examples(4))
    model.load(noisy(model))
    key = Key.root(0).child("client", "a")
    training = BackpropTraining(kind="backprop", batch_size=4)
    gradient = model.gradient(next(minibatches(examples(4), training, key, pad=0)))
    gradient[~mask] = 0
    gradient *= 1e-6 / gradient.norm()
    expected = -1e-2 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(result.delta.vector(), expected.float(), rtol=1e-3, atol=1e-6)


def test_last_layers_keep_no_activations_below(bert):
    counts = {}
    for name in ("none", "last"):
        kept = []

        def pack(tensor, kept=kept):
            kept.append(1)
            return tensor

        plan = ClientPlan(BackpropTraining(kind="backprop"), DENSE, **plans(bert.spec)[name])
        part = TrainablePart.of(bert, plan, who="a")
        batch = collate(federations.examples(4, language_model=False), 0)
        with part.alone(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = bert.forward(batch).loss
        counts[name] = len(kept)
        loss.backward()
        for _, parameter in bert.parameters():
            parameter.grad = None
    assert counts["last"] < 0.6 * counts["none"]


def test_gradients_are_needed_again_after_an_error(bert):
    part = TrainablePart.of(bert, ClientPlan(None, DENSE, tensors=last_layers(bert.spec, 1)), who="a")
    assert part.still

    def fails():
        with part.alone():
            assert not any(p.requires_grad for p in part.still)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert all(p.requires_grad for _, p in bert.parameters())


def test_a_plan_of_nothing_is_refused(bert):
    assert "values to train" in str(train(bert, {}, {"tensors": ()}).error)


class FakeAdamW(torch.optim.SGD):
    made: list = []  # noqa: RUF012  # what the tests look at

    def __init__(self, groups, **settings):
        FakeAdamW.made.append((groups, settings))
        super().__init__(groups, lr=settings.get("lr", 1e-3))


def bitsandbytes(monkeypatch, optimiser):
    library = ModuleType("bitsandbytes")
    library.__version__ = "0.49.2"
    library.optim = SimpleNamespace(AdamW8bit=optimiser)
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    FakeAdamW.made.clear()


def test_adamw8bit_is_given_groups_and_settings(bert, monkeypatch):
    bitsandbytes(monkeypatch, FakeAdamW)
    changes = {"optimizer": "adamw8bit", "weight_decay": 0.25, "head_learning_rate": 0.5}
    result = train(bert, changes, plans(bert.spec)["last"])
    assert result.error is None
    _probe, (groups, settings) = FakeAdamW.made
    assert settings == {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.25}
    assert [group["lr"] for group in groups] == [1e-2, 0.5]
    names = [t.name for t in bert.spec if t.name in last_layers(bert.spec, 1)]
    assert sum(len(group["params"]) for group in groups) == len(names)


class NeedsGpu(FakeAdamW):
    def step(self, closure=None):
        raise RuntimeError("All input tensors need to be on the same GPU")


class DoesNothing(FakeAdamW):
    def step(self, closure=None):
        pass


@pytest.mark.parametrize("optimiser", [NeedsGpu, DoesNothing])
def test_adamw8bit_says_what_the_device_lacks(bert, monkeypatch, optimiser):
    bitsandbytes(monkeypatch, optimiser)
    with pytest.raises(MissingDependency, match=r"device 'cpu', got bitsandbytes 0\.49\.2.*newer than 0\.49"):
        train(bert, {"optimizer": "adamw8bit"}, {})


def test_adamw8bit_without_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        MissingDependency, match=r"expected bitsandbytes, got .*pip install 'headwater\[gpu\]'"
    ):
        adamw8bit([], weight_decay=0.0, device=torch.device("cpu"))


def test_adamw8bit_for_real():
    pytest.importorskip("bitsandbytes")
    value = torch.nn.Parameter(torch.ones(8192))
    try:
        optimiser = adamw8bit([{"params": [value], "lr": 0.1}], weight_decay=0.0, device=value.device)
    except MissingDependency:
        pytest.skip("bitsandbytes has no 8-bit optimiser for the CPU, and says so")
    value.grad = torch.ones_like(value)
    optimiser.step()
    torch.testing.assert_close(value.detach(), torch.full((8192,), 0.9), rtol=1e-2, atol=1e-2)
