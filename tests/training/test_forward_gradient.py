import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import ForwardGradientTraining, NoopTraining, SpryTraining
from headwater.errors import SpecMismatch, TrainingError
from headwater.merging.coverage import covered
from headwater.protocol.messages import ClientPlan
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.training.cohort import TrainTask
from headwater.training.forward_gradient import ForwardGradientTrainer, Sampler, noise_share
from headwater.training.minibatches import minibatches
from tests.laws.trainer_laws import TrainerLaws
from tests.support import federations
from tests.support.quadratic import PAIR, Quadratic, examples, flat

DENSE = DenseCodec(kind="dense")


def forward(**changes):
    return ForwardGradientTraining(
        kind="forward_gradient", **{"batch_size": 4, "learning_rate": 1e-3, **changes}
    )


class Recorded(Quadratic):
    """Keeps every direction and its slope."""

    def slope(self, batch, direction):
        loss, slope = super().slope(batch, direction)
        self.seen = [*getattr(self, "seen", []), (direction.double(), slope)]
        return loss, slope


def recorded(spec, **options):
    model = Quadratic.random(spec, **options)
    return Recorded(spec, model.targets, model.curvature)


def train(model, training, *, seed=0, start=None, count=4, **plan):
    task = TrainTask(
        "a", start or model.initial_state(), examples(count), ClientPlan(training, DENSE, **plan)
    )
    (result,) = ForwardGradientTrainer(model, 0).train([task], key=Key.root(seed))
    return result


def first_batch(training, *, seed=0, count=4):
    key = Key.root(seed).child("client", "a")
    return next(minibatches(examples(count), training, key, pad=0))


def family(distribution, size, *, seed=0):
    return Directions.of(Key.root(seed).child("client", "a", "directions"), distribution, size)


class TestForwardGradient(TrainerLaws):
    def trainer(self):
        return ForwardGradientTrainer(Quadratic.random(PAIR, examples=10), 0)

    def start(self):
        return AdapterState.zeros(PAIR)

    def examples(self):
        return examples(10)

    def training(self):
        return forward(epochs=1.5, directions=2, candidates=3, momentum=0.5)

    def diverging(self):
        return forward(learning_rate=1e38, epochs=4.0)


class TestPaced(TestForwardGradient):
    def training(self):
        return forward(variance_target=0.95, max_directions=6, distribution="gaussian", optimizer="adamw")

    def diverging(self):
        return forward(learning_rate=1e39, epochs=4.0, optimizer="adamw")


class TestSpry(TestForwardGradient):
    names = ("layer.1.lora_A.weight", "layer.1.lora_B.weight")

    def plan(self, training):
        return ClientPlan(training, DENSE, tensors=self.names)

    def training(self):
        return SpryTraining(kind="spry", epochs=1.5, batch_size=4)

    def diverging(self):
        return SpryTraining(kind="spry", epochs=4.0, batch_size=4, learning_rate=1e38)

    def test_other_tensors_stand_still(self):
        (result,) = self.run([self.task("a")])
        assert {name for name, value in result.delta.items() if bool(value.any())} == set(self.names)


class TestOnBert(TrainerLaws):
    """The laws hold with a real model too, which has dropout that must be off."""

    @pytest.fixture(scope="class")
    def bert(self, tmp_path_factory):
        table = federations.adapter("lora", "bert", dropout=0.5)
        return federations.adapted(
            federations.federation(tmp_path_factory.mktemp("b"), "encoder", "bert", table)
        )

    @pytest.fixture(autouse=True)
    def _model(self, bert):
        self.model = bert

    def trainer(self):
        return ForwardGradientTrainer(self.model, 0)

    def start(self):
        return self.model.initial_state()

    def examples(self):
        return federations.examples(4, language_model=False)

    def training(self):
        return forward()

    def diverging(self):
        return forward(learning_rate=1e38, epochs=4.0)

    def test_a_step_is_backprops_slope_along_the_direction(self):
        (result,) = self.run([self.task("a")])
        self.model.load(self.start())
        key = Key.root(0).child("client", "a")
        (batch,) = minibatches(self.examples(), self.training(), key, pad=0)
        loss = self.model.forward(batch).loss  # without dropout
        gradients = torch.autograd.grad(loss, [p for _, p in self.model.parameters()])
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        v = torch.from_numpy(family("rademacher", len(gradient)).values(0))
        assert result.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(result.delta.vector(), -1e-3 * (gradient @ v) * v, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_a_step_by_hand(distribution):
    model = Quadratic.random(PAIR, examples=4)
    result = train(model, forward(directions=3, distribution=distribution), learning_rate_factor=0.5)
    model.load(model.initial_state())
    gradient = model.gradient(first_batch(forward()))
    drawn = [torch.from_numpy(family(distribution, 91).values(seed)).double() for seed in range(3)]
    estimate = sum((gradient @ v) * v for v in drawn) / 3
    torch.testing.assert_close(result.delta.vector(), (-0.5e-3 * estimate).float(), rtol=1e-5, atol=1e-9)
    share = noise_share(distribution, 91, 3)
    assert result.noise == pytest.approx(0.25e-6 * share * float(estimate @ estimate), rel=1e-5)
    assert (result.steps, result.metrics["directions"]) == (1, 3)


def test_shares_of_noise():
    assert noise_share("rademacher", 1, 1) == 0  # v² = 1: the estimate is the derivative
    assert noise_share("rademacher", 91, 10) == 90 / 100
    assert noise_share("gaussian", 89, 10) == 90 / 100


def estimates(distribution, size, directions, draws):
    """float64 [draws, size] estimates, and the true gradient."""
    model = Quadratic.random(flat(size), seed=5)
    training = forward(learning_rate=1.0, directions=directions, distribution=distribution)
    found = [-train(model, training, seed=seed, count=1).delta["vector"].double() for seed in range(draws)]
    return torch.stack(found), -model.targets[0]


@pytest.mark.parametrize(
    ("distribution", "sign", "directions"), [("rademacher", -1, 1), ("gaussian", 1, 1), ("rademacher", -1, 4)]
)
def test_mean_and_second_moment(distribution, sign, directions):
    """2,000 estimates of 3 values. The mean's distance from ∇L is a χ²-like sum with mean 1 in the units
    below: 5 is beyond its 99.9 % point, and a bias of 8 % of ‖∇L‖ (2000·0.08²/2 = 6 at K = 1, ±1) is over it.
    The second moment's standard error is at most 4 %; with the other distribution's formula it differs by
    25 % or more.
    """
    found, true = estimates(distribution, 3, directions, 2000)
    energy = float(true @ true)
    variance = (3 + sign) / directions * energy
    error = found.mean(0) - true
    assert float(error @ error) / (variance / 2000) < 5
    second = float((found**2).sum(1).mean())
    assert second == pytest.approx(energy + variance, rel=0.12)


@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.8}, {"directions": 4, "distribution": "gaussian"}], ids=str
)
def test_noise_is_the_variance_of_deltas(changes):
    """400 trainings of 6 steps: the variance's standard error is some 400^-½·√2 ≈ 7 %; forgetting what
    momentum repeats makes it wrong by a factor of 6, one step too many or too few by 17 % or more."""
    model = Quadratic.random(flat(20), seed=1)
    training = forward(learning_rate=1e-4, epochs=6.0, **changes)
    results = [train(model, training, seed=seed) for seed in range(400)]
    deltas = torch.stack([r.delta["vector"].double() for r in results])
    variance = float(deltas.var(0).sum())
    assert np.mean([r.noise for r in results]) == pytest.approx(variance, rel=0.16)


@pytest.mark.parametrize("changes", [{"optimizer": "adamw"}, {"candidates": 6}], ids=str)
def test_noise_is_a_bound_where_it_is_not_exact(changes):
    model = Quadratic.random(flat(20), seed=1)
    training = forward(learning_rate=1e-4, epochs=6.0, **changes)
    results = [train(model, training, seed=seed) for seed in range(100)]
    deltas = torch.stack([r.delta["vector"].double() for r in results])
    assert np.mean([r.noise for r in results]) > 0.95 * float(deltas.var(0).sum())


def test_candidates_are_compared_with_the_mean_of_earlier_estimates():
    model = recorded(PAIR, examples=4)
    train(model, forward(directions=2, candidates=5, epochs=3.0))
    drawn = family("rademacher", 91)
    mean = torch.zeros(91).double()
    for step in range(3):
        chosen = model.seen[2 * step : 2 * step + 2]
        for i, (v, _) in enumerate(chosen):
            seeds = range((2 * step + i) * 5, (2 * step + i) * 5 + 5)
            candidates = [torch.from_numpy(drawn.values(s)).double() for s in seeds]
            cosines = torch.tensor([abs(float(c @ mean)) for c in candidates])
            assert torch.equal(v, candidates[int(cosines.argmax())])  # the first while the mean is 0
        mean += sum(slope * v for v, slope in chosen) / 2


def test_pacing_stops_where_the_variance_is_low_enough():
    model = recorded(flat(6), seed=2)
    training = forward(variance_target=0.5, max_directions=30, distribution="gaussian", epochs=8.0)
    result = train(model, training)
    counts, k = [], 0
    parts = [slope * v for v, slope in model.seen]
    while k < len(parts):
        n = 1
        while n < 30:
            n += 1
            each = torch.stack(parts[k : k + n])
            if float(each.var(0).sum()) / n <= 0.5 * float(each.mean(0).square().sum()):
                break
        counts.append(n)
        k += n
    assert len(counts) == 8
    assert result.metrics["directions"] == sum(counts) / 8
    assert len(set(counts)) > 2
    assert train(model, forward(variance_target=1e9)).metrics["directions"] == 2
    assert train(model, forward(variance_target=1e9, directions=5)).metrics["directions"] == 5
    assert train(model, forward(variance_target=1e-9, max_directions=7)).metrics["directions"] == 7


def test_steps_never_share_a_seed():
    sampler = Sampler.of(forward(variance_target=1.0, max_directions=4, candidates=3), Key.root(0), 64)
    sampler.learn(torch.ones(64).double())
    drawn = {sampler.draw(step, i).numpy().tobytes() for step in range(5) for i in range(4)}
    assert len(drawn) == 20


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "plan", [{"tensors": ("head.bias", "layer.0.lora_B.weight")}, {"rank": 1}], ids=["tensors", "rank"]
)
def test_uncovered_values_are_neither_perturbed_nor_moved(optimizer, plan):
    model = recorded(PAIR, examples=4)
    start = AdapterState.from_vector(PAIR, torch.arange(91.0))
    training = forward(optimizer=optimizer, epochs=4.0, momentum=0.5)
    result = train(model, training, start=start, **plan)
    mask = covered(PAIR, plan.get("tensors"), plan.get("rank"))
    size = int(mask.sum())
    assert all(not bool(v[~mask].any()) and bool(v[mask].all()) for v, _ in model.seen)
    assert torch.equal(model.seen[2][0][mask].float(), torch.from_numpy(family("rademacher", size).values(2)))
    change = result.delta.vector()
    assert not bool(change[~mask].any())
    assert bool(change[mask].all())
    if optimizer == "sgd":
        one = train(model, forward(), start=start, **plan)
        rate_and_share = 1e-6 * noise_share("rademacher", size, 1)
        slope = model.seen[-1][1]
        assert one.noise == pytest.approx(rate_and_share * slope**2 * size, rel=1e-5)


def test_spry_is_a_forward_gradient_of_its_tensors():
    model, names = Quadratic.random(PAIR, examples=4), ("layer.0.lora_A.weight",)
    spry = SpryTraining(kind="spry", batch_size=4, learning_rate=1e-3, directions=2, epochs=3.0)
    one = train(model, spry, tensors=names)
    other = train(model, forward(directions=2, epochs=3.0), tensors=names)
    assert one.delta.tobytes() == other.delta.tobytes()
    assert one.noise == other.noise > 0


def test_momentum_is_torchs():
    """Two steps along recorded estimates: m₁ = g₁, m₂ = μm₁ + g₂."""
    model = recorded(PAIR, examples=4)
    result = train(model, forward(momentum=0.5, epochs=2.0))
    (v1, s1), (v2, s2) = model.seen
    expected = -1e-3 * (1.5 * s1 * v1 + s2 * v2)
    torch.testing.assert_close(result.delta.vector(), expected.float(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "learning_rate": 0.1}], ids=str)
def test_it_descends(changes):
    model = Quadratic.random(flat(10), seed=3)
    training = forward(**{"learning_rate": 0.08, "directions": 2, "epochs": 60.0, **changes})
    metrics = train(model, training).metrics
    assert metrics["last_loss"] < 0.05 * metrics["first_loss"]


def test_foreign_tasks_are_refused():
    model = Quadratic.random(PAIR)
    with pytest.raises(TrainingError, match="'forward_gradient' or 'spry', got noop"):
        train(model, NoopTraining(kind="noop"))
    with pytest.raises(SpecMismatch):
        train(model, forward(), start=AdapterState.zeros(flat(3)))
    assert "at least one example" in str(train(model, forward(), count=0).error)
    assert "covers none" in str(train(model, forward(), tensors=()).error)
    error = train(model, forward(learning_rate=1e38, epochs=9.0)).error
    assert "client a, step" in str(error)
    assert "learning_rate" in str(error)
