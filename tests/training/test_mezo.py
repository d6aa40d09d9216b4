"""MezoTrainer: its estimate's mean, second moment and noise on quadratics, masks, ranks, hygiene.

The statistical tests have fixed seeds; each says what it would notice.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import KseedTraining, MezoTraining
from headwater.errors import SpecMismatch, TrainingError
from headwater.merging.coverage import covered
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.tasks.batches import collate
from headwater.training.cohort import TrainTask
from headwater.training.mezo import MezoTrainer
from headwater.training.perturbations import Perturbations
from tests.support.quadratic import PAIR, Output, Quadratic, batches_seen, examples, flat
from tests.training.on_quadratic import OnQuadratic


def mezo(**changes):
    found = {"kind": "mezo", "epochs": 1e6, "max_steps": 12, "batch_size": 2, "learning_rate": 2e-3}
    return MezoTraining(**found | changes)


class TestMezo(OnQuadratic):
    options = {}  # noqa: RUF012 - a law class's settings, never changed

    def trainer(self):
        return MezoTrainer(self.model, 0)

    def start(self):
        values = np.random.default_rng(5).standard_normal(PAIR.numel).astype(np.float32)
        return AdapterState.from_vector(PAIR, torch.from_numpy(values))

    def training(self, **changes):
        return mezo(**self.options | changes)

    def diverging(self):
        return self.training(learning_rate=1e60, gradient_bound=1e9)

    def result(self, start=None, **changes):
        plan_changes = {k: changes.pop(k) for k in ("tensors", "rank") if k in changes}
        plan = ClientPlan(self.training(**changes), DenseCodec(kind="dense"), **plan_changes)
        (result,) = self.run([self.task("a", plan=plan, state=start or self.start())])
        return result

    def test_the_model_is_left_at_the_trained_weights(self):
        result = self.result()
        expected = self.start().vector() + result.delta.vector()
        torch.testing.assert_close(self.model.read().vector(), expected, rtol=0, atol=2e-7)

    def test_both_probes_see_the_same_batch_and_nothing_else(self):
        seen = batches_seen(self.model)
        self.result(directions=3)
        assert len(seen) == 12 * 6
        assert all(seen[i] == seen[i - i % 6] for i in range(len(seen)))
        assert len({tuple(batch) for batch in seen}) > 1

    def test_the_largest_magnitudes_stay(self):
        start = self.start()
        delta = self.result(start, sparsity=0.75).delta
        for name, value in start.items():
            moved = delta[name] != 0
            assert int(moved.sum()) == value.numel() - int(0.75 * value.numel())
            assert value[moved].abs().max() <= value[~moved].abs().min()

    def test_a_tensor_of_zeros_moves_whole(self):
        delta = self.result(AdapterState.zeros(PAIR), sparsity=0.75).delta
        assert bool((delta.vector() != 0).all())

    def test_what_the_plan_does_not_cover_stays(self):
        names = ("head.bias", "layer.1.lora_A.weight")
        for changes in ({"tensors": names}, {"rank": 2}, {"tensors": names, "rank": 1, "sparsity": 0.5}):
            delta = self.result(**changes).delta.vector()
            mask = covered(PAIR, changes.get("tensors"), changes.get("rank"))
            assert bool((delta[~mask] == 0).all())
            assert bool(((delta != 0) & mask).any())
            assert bool((delta[mask] != 0).all()) != ("sparsity" in changes)

    def test_a_plan_that_covers_nothing_is_an_error(self):
        result = self.result(tensors=())
        assert "a plan that covers none" in str(result.error)

    def test_a_steep_slope_counts_as_the_bound(self):
        result = self.result(max_steps=1, gradient_bound=1e-3)
        assert result.metrics["clipped"] == 1
        if "low_rank" not in self.options and self.options.get("distribution") != "gaussian":
            size = set(result.delta.vector().abs().tolist()) - {0.0}
            assert size == {float(np.float32(2e-3 * 1e-3))}

    def test_a_loss_that_is_not_finite_ends_the_task_and_names_the_step(self):
        forward, calls = self.model.forward, []

        def ill(batch):
            calls.append(1)
            found = forward(batch)
            return Output(found.losses * (np.nan if len(calls) == 6 else 1), found.counts)

        self.model.forward = ill
        result = self.result(directions=1)
        assert result.delta is None
        assert "client a, step 3: expected a finite loss" in str(result.error)

    def test_values_that_are_not_finite_after_the_last_step_are_an_error(self):
        result = self.result(max_steps=1, learning_rate=1e60, gradient_bound=1e9)
        assert "step 1: expected a finite adapter" in str(result.error)

    def test_foreign_tasks_are_refused(self):
        plan = ClientPlan(KseedTraining(kind="kseed"), DenseCodec(kind="dense"))
        with pytest.raises(TrainingError, match="mezo"):
            self.run([self.task("a", plan=plan)])
        with pytest.raises(SpecMismatch):
            self.run([self.task("a", state=AdapterState.zeros(flat(91)))])

    def test_it_converges(self):
        model = Quadratic.random(PAIR, condition=4.0)
        plan = ClientPlan(self.training(max_steps=1200, directions=1), DenseCodec(kind="dense"))
        task = self.task("a", plan=plan, state=AdapterState.zeros(PAIR))
        (result,) = MezoTrainer(model, 0).train([task], key=Key.root(0))
        assert result.metrics["last_loss"] < 0.05 * result.metrics["first_loss"]


class TestManyGaussian(TestMezo):
    options = {"distribution": "gaussian", "directions": 2}  # noqa: RUF012 - as above


class TestLowRank(TestMezo):
    options = {"low_rank": 2, "resample_every": 5}  # noqa: RUF012 - as above


WIDE = StateSpec.of([TensorSpec("a", (12, 20), "lora_a"), TensorSpec("b", (20, 8), "lora_b")])
BATCH = collate(examples(1), 0)


def deltas(spec, draws, start=None, **options):
    """float64 [draws, numel] deltas of clients that differ in their key only, their noise, and −∇."""
    rng = np.random.default_rng(9)
    model = Quadratic(spec, rng.standard_normal((1, spec.numel)))
    state = start or AdapterState.zeros(spec)
    training = mezo(**{"learning_rate": 1e-5, "epsilon": 1e-2, "gradient_bound": 1e9, **options})
    plan = ClientPlan(training, DenseCodec(kind="dense"))
    tasks = [TrainTask(str(i), state, examples(1), plan) for i in range(draws)]
    results = list(MezoTrainer(model, 0).train(tasks, key=Key.root(0)))
    model.load(state)
    gradient = model.gradient(BATCH).numpy()
    values = np.stack([r.delta.vector().double().numpy() for r in results])
    return values / training.learning_rate, np.array([r.noise for r in results]) / 1e-10, -gradient


@pytest.mark.parametrize(("distribution", "n"), [("rademacher", 1), ("rademacher", 4), ("gaussian", 2)])
def test_the_estimate_is_unbiased_with_the_known_second_moment(distribution, n):
    """E ĝ = ∇ and E‖ĝ‖²/‖∇‖² = (d + n − 1)/n for ±1, (d + n + 1)/n for Gaussian directions; d = 10.

    2,000 draws: the component along ∇ has a standard error of at most √(2/2000) = 3 %, so that a bias of
    15 % would be seen; across ∇ χ² of 9 degrees below 27.9 (99.9 %). The second moment's standard error
    is below 2.5 % (±1: 1 %); the two formulas are 2/n : (d + n − 1)/n ≈ 18 % apart.
    """
    found, _, wanted = deltas(flat(10), 2000, max_steps=1, directions=n, distribution=distribution)
    square = float(wanted @ wanted)
    assert found.mean(0) @ wanted / square == pytest.approx(1, abs=0.15)
    axes = np.linalg.svd(wanted[None])[2][1:]  # orthonormal, across ∇
    across = found @ axes.T
    assert np.sum(across.mean(0) ** 2 / (across.var(0) / 2000)) < 27.9
    ratio = float((found**2).sum(1).mean()) / square
    extra = 1 if distribution == "gaussian" else -1
    assert ratio == pytest.approx((10 + n + extra) / n, rel=0.07)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distribution": "gaussian", "directions": 3},
        {"sparsity": 0.9},
        {"low_rank": 2, "resample_every": 50},
        {"low_rank": 3, "resample_every": 4, "directions": 2, "distribution": "gaussian"},
        {"low_rank": 2, "resample_every": 50, "sparsity": 0.5},
    ],
    ids=str,
)
def test_the_noise_is_the_variance_over_the_directions(options):
    """v, a mean over 300 clients, against the sum of 400 values' variances: within 10 %.

    A client's ‖δ − mean‖² has a relative deviation of at most 0.5, the mean of 300 one of 3 %. Without
    the term for what shares V, low rank at T = 10, r = 2 would be 17 % short.
    """
    start = None
    if "sparsity" in options:
        values = np.random.default_rng(2).standard_normal(WIDE.numel).astype(np.float32)
        start = AdapterState.from_vector(WIDE, torch.from_numpy(values))
    found, noise, _ = deltas(WIDE, 300, start, max_steps=10, **options)
    empirical = float(found.var(0, ddof=1).sum())
    assert noise.mean() == pytest.approx(empirical, rel=0.1)


def drawn(spec, **options):
    state = AdapterState.zeros(spec)
    training = mezo(**options)
    plan = ClientPlan(training, DenseCodec(kind="dense"))
    return Perturbations.of(state, plan, training, Key.root(4))


def test_low_rank_directions_are_products_whose_right_factor_stays():
    spec = StateSpec.of([*WIDE, TensorSpec("c", (7,), "head")])
    found = drawn(spec, low_rank=3, resample_every=4, directions=2)
    states = {
        (step, i): AdapterState.from_vector(spec, torch.from_numpy(found.values(step, i)))
        for step in range(8)
        for i in range(2)
    }
    for state in states.values():
        assert torch.linalg.matrix_rank(state["a"]) == 3
        assert torch.linalg.matrix_rank(state["b"]) == 3
        assert set(state["c"].abs().tolist()) == {1.0}
    for i in range(2):
        same = torch.cat([states[step, i]["a"] for step in range(4)])
        later = torch.cat([same, *(states[step, i]["a"] for step in range(4, 8))])
        assert torch.linalg.matrix_rank(same) == 3  # one row space
        assert torch.linalg.matrix_rank(later) == 6
    assert torch.linalg.matrix_rank(torch.cat([states[0, 0]["a"], states[0, 1]["a"]])) == 6


@pytest.mark.parametrize("options", [{}, {"low_rank": 2, "resample_every": 1}], ids=str)
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_directions_are_white(options, distribution):
    """E zzᵀ = 1: the mean of (z·x)² over 3,000 draws, for 8 unit vectors x.

    (z·x)² has variance 2, and 2 + 12/r = 8 for products of two: a standard error of 5 %.
    """
    found = drawn(WIDE, distribution=distribution, **options)
    x = np.random.default_rng(1).standard_normal((8, WIDE.numel))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    z = np.stack([found.values(s, 0) for s in range(3000)]).astype(np.float64)
    np.testing.assert_allclose(((z @ x.T) ** 2).mean(0), 1, atol=0.2)
    assert abs((z @ x.T).mean()) < 0.03  # of 24,000: a standard error of 0.65 %


def test_a_share_by_hand():
    assert drawn(flat(10)).noise_share(1) == pytest.approx(9 / 10)
    assert drawn(flat(10), directions=3).noise_share(1) == pytest.approx(1 - 3 / 12)
    assert drawn(flat(10), distribution="gaussian").noise_share(50) == pytest.approx(11 / 12)
    assert drawn(flat(1)).noise_share(1) == 0  # ±∇·±1 is ∇
    matrix = StateSpec((TensorSpec("a", (4, 5), "lora_a"),))
    low = drawn(matrix, low_rank=2, resample_every=9)
    assert low.noise_share(9) == pytest.approx(1 - 1 / 20 + 1 / 20 * (4 / 2) * 8)
    assert replace(low, mask=np.arange(20) % 5 < 2).noise_share(2) == pytest.approx(1 - 1 / 8 + 1 / 8 * 0.5)
