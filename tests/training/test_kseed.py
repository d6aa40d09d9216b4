"""KseedTrainer: golden vectors of FedKSeed, replay, sampling, hygiene."""

import hashlib
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config.codec import DenseCodec
from headwater.config.training import KseedTraining, MezoTraining
from headwater.errors import SpecMismatch, TrainingError
from headwater.merging.mean import MeanAggregator
from headwater.merging.plan import MergePlan, Update
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedPlan, directions_of
from headwater.seeds.directions import Directions
from headwater.seeds.draw_weights import odds_of, weights_of
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import shifted
from headwater.state import AdapterState
from headwater.training import kseed
from headwater.training.cohort import TrainTask
from headwater.training.kseed import KseedTrainer
from tests.support.processes import in_another
from tests.support.quadratic import PAIR, Output, Quadratic, batches_seen, examples, flat
from tests.training.on_quadratic import OnQuadratic

SEEDS = SeedPlan(0, 64, "rademacher", 15, 40)


def directions(plan=SEEDS, size=PAIR.numel):
    return directions_of(plan, Key.root(3), size)


def replayed(result, state, of):
    """The weights that a stranger gets from the scalars."""
    scalars = result.delta
    exact = of.combine(scalars.seeds, scalars.coefficients)
    return shifted(state, exact, scalars.plan.unit_bits + of.unit_bits)


class TestKseed(OnQuadratic):
    pro = False
    seeds = SEEDS

    def trainer(self):
        return KseedTrainer(self.model, 0)

    def training(self, **changes):
        found = {"kind": "kseed", "max_steps": 40, "batch_size": 2, "learning_rate": 2e-3, "seeds": 64}
        return KseedTraining(**found | {"epsilon": 1e-3, "pro": self.pro, **changes})

    def plan(self, training):
        return ClientPlan(training, DenseCodec(kind="dense"), seeds=self.seeds)

    def directions(self):
        return directions(self.seeds)

    def result(self, **changes):
        (result,) = self.run([self.task("a", plan=self.plan(self.training(**changes)))])
        return result

    def test_rebuilt_from_scalars_is_stepped(self):
        state = AdapterState.from_vector(PAIR, torch.linspace(-1, 1, PAIR.numel))
        (result,) = self.run([self.task("a", state=state)])
        assert self.model.read().sha256() == replayed(result, state, self.directions()).sha256()
        assert result.steps == len(result.delta.seeds) == 40

    def test_it_converges(self):
        """512 seeds span all 91 dimensions, so nothing is out of reach."""
        model = Quadratic.random(PAIR, condition=4.0)
        plan = replace(self.seeds, count=512, entries=1200, odds=b"")
        training = self.training(max_steps=1200, seeds=512)
        task = self.task("a", plan=replace(self.plan(training), seeds=plan))
        (result,) = KseedTrainer(model, 0).train([task], key=Key.root(0))
        assert result.metrics["last_loss"] < 0.05 * result.metrics["first_loss"]
        assert model.loss_of(model.read()) == pytest.approx(result.metrics["last_loss"], rel=0.2)

    def test_learning_rate_factor_scales_the_steps_not_their_unit(self):
        training = self.training(max_steps=1)
        half = replace(self.plan(training), learning_rate_factor=0.5)
        (less,) = self.run([self.task("a", plan=half)])
        (more,) = self.run([self.task("a", plan=self.plan(training))])
        assert less.delta.plan == more.delta.plan
        assert abs(2 * less.delta.coefficients[0] - more.delta.coefficients[0]) <= 1

    def test_a_steep_slope_counts_as_the_bound(self):
        result = self.result(gradient_bound=1e-3)
        assert set(np.abs(result.delta.coefficients)) == {round(2e-3 * 1e-3 * 2**15)}
        assert result.metrics["clipped"] > 0.9
        assert self.result(gradient_bound=1e9).metrics["clipped"] == 0

    def test_no_coefficient_is_beyond_16_bits(self):
        result = self.result(learning_rate=1e6, max_steps=1, gradient_bound=1e9)
        assert np.abs(result.delta.coefficients).tolist() == [32767]

    def test_a_loss_that_is_not_finite_ends_the_task_and_names_the_step(self):
        forward, calls = self.model.forward, []

        def ill(batch):
            calls.append(1)
            found = forward(batch)
            return Output(found.losses * (np.inf if len(calls) == 5 else 1), found.counts)

        self.model.forward = ill
        (result,) = self.run([self.task("a")])
        assert result.delta is None
        assert "client a, step 3: expected a finite loss" in str(result.error)
        assert "learning_rate" in str(result.error)

    def test_both_probes_see_the_same_batch_and_nothing_else(self):
        seen = batches_seen(self.model)
        self.result(max_steps=6)
        assert len(seen) == 12
        assert seen[::2] == seen[1::2]
        assert seen[0] != seen[2]

    def test_foreign_tasks_are_refused(self):
        with pytest.raises(TrainingError, match="kseed"):
            self.run([self.task("a", plan=self.plan(MezoTraining(kind="mezo")))])
        with pytest.raises(TrainingError, match="seeds"):
            self.run([self.task("a", directions=None)])
        with pytest.raises(TrainingError, match="whole adapter"):
            self.run([self.task("a", plan=replace(self.plan(self.training()), rank=1))])
        with pytest.raises(TrainingError, match="of 91 values"):
            self.run([self.task("a", directions=directions(self.seeds, 90))])
        other = {"rademacher": "gaussian", "gaussian": "rademacher"}[self.seeds.distribution]
        plan = replace(self.plan(self.training()), seeds=replace(self.seeds, distribution=other))
        with pytest.raises(TrainingError, match=f"{other} directions"):
            self.run([self.task("a", plan=plan)])
        with pytest.raises(SpecMismatch):
            self.run([self.task("a", state=AdapterState.zeros(flat(91)))])
        (empty,) = self.run([self.task("a", examples=[])])
        assert "at least one example" in str(empty.error)


class TestPro(TestKseed):
    """With odds in the plan; the trainer's laws hold as without."""

    pro = True
    seeds = replace(SEEDS, odds=odds_of(np.linspace(0, 1, 64)))


class TestGaussian(TestKseed):
    seeds = replace(SEEDS, distribution="gaussian")


def test_the_plans_odds_are_followed():
    """5,000 steps: chi² of 7 degrees against the weights, 99.9 %: 24.3. Uniform draws miss it by far."""
    model = Quadratic.random(PAIR, examples=5, condition=4.0)
    odds = odds_of(np.array([0.0, 3, 3, 1, 2, 3, 0, 0]))
    seeds = replace(SEEDS, count=8, entries=5_000, odds=odds)
    training = TestKseed().training(max_steps=5_000, learning_rate=1e-12, seeds=8)
    plan = ClientPlan(training, DenseCodec(kind="dense"), seeds=seeds)
    task = TrainTask("a", AdapterState.zeros(PAIR), examples(1), plan, directions(seeds))
    (result,) = KseedTrainer(model, 0).train([task], key=Key.root(0))
    taken = np.bincount(result.delta.seeds, minlength=8)
    weights = weights_of(odds, 8)
    wanted = 5_000 * weights / weights.sum()
    assert np.sum((taken - wanted) ** 2 / wanted) < 24.3
    assert np.sum((taken - 625) ** 2 / 625) > 24.3


@dataclass(frozen=True)
class Given:
    """Directions that are written down: F5's."""

    rows: tuple[tuple[int, ...], ...] = ((1, 0, -1, 2), (0, 1, 1, 0), (2, -1, 0, 1))
    distribution: str = "rademacher"
    size: int = 4
    unit_bits: int = 0

    def integers(self, seed, start=0, stop=None):
        return np.array(self.rows[seed], np.int8)[start:stop]

    def values(self, seed, start=0, stop=None):
        return self.integers(seed, start, stop).astype(np.float32)

    def combine(self, seeds, coefficients, start=0, stop=None):
        return np.asarray(coefficients) @ np.array(self.rows, np.int64)[np.asarray(seeds)][:, start:stop]


F5 = [
    ((1, 0, 0, 1), (0, 2, 0), (-3, -1.8, -0.48), (-3.48, 0, -1.8), (0.708, -0.18, -0.348, 0.876)),
    ((0, 2, -1, 0), (1, 0, 1), (-1, -1.1, -0.91), (-1.1, -1.91, 0), (0.11, 0.191, 0.081, 0.22)),
]


def in_fractions(target, seeds, unit_bits):
    """FedKSeed in exact arithmetic, the steps quantised: slopes, coefficients, weights."""
    w, slopes, coefficients = [Fraction(0)] * 4, [], []
    for s in seeds:
        z = Given().rows[s]
        slopes.append(sum(v * (x - t) for v, x, t in zip(z, w, target, strict=True)))
        coefficients.append(round(-slopes[-1] / 10 * 2**unit_bits))
        w = [x + Fraction(coefficients[-1], 2**unit_bits) * v for x, v in zip(w, z, strict=True)]
    return slopes, coefficients, w


def test_golden_rounds(monkeypatch):
    """F5: two clients, three steps each, and their merged state; coefficients exactly as in fractions."""
    bits = 16
    plan = SeedPlan(0, 3, "rademacher", bits, 3)
    training = KseedTraining(
        kind="kseed", max_steps=3, learning_rate=0.1, epsilon=2.0**-4, batch_size=1, seeds=8
    )
    start = AdapterState.zeros(flat(4))
    merge = MergePlan(flat(4), {"1": 1, "2": 1}, 2.0, seeds=plan, directions=Given())
    rule = MeanAggregator()
    sums = rule.init(merge)
    for name, (target, seeds, slopes, accumulated, weights) in zip("12", F5, strict=True):
        order = iter(seeds)
        monkeypatch.setattr(kseed._Draw, "next", lambda self, order=order: next(order))
        model = Quadratic(flat(4), [target])
        task = TrainTask(
            name,
            start,
            examples(1),
            ClientPlan(training, DenseCodec(kind="dense"), seeds=plan),
            Given(),
        )
        (result,) = KseedTrainer(model, 0).train([task], key=Key.root(0))
        exact, coefficients, stepped = in_fractions(target, seeds, bits)
        assert [float(g) for g in exact] == pytest.approx(slopes, abs=1e-4)
        entries = sorted(zip(seeds, coefficients, strict=True))
        assert list(zip(result.delta.seeds, result.delta.coefficients, strict=True)) == entries
        assert model.read().vector().tolist() == [float(np.float32(float(x))) for x in stepped]
        assert model.read().vector().tolist() == pytest.approx(weights, abs=3e-5)
        assert -10 * result.delta.sums / 2**bits == pytest.approx(accumulated, abs=2e-4)
        sums = rule.add(sums, Update(name, 1, result.delta, 1))
    merged = rule.finalize(sums).delta.vector().tolist()
    assert merged == pytest.approx([0.409, 0.0055, -0.1335, 0.548], abs=3e-5)


@settings(max_examples=15)
@given(
    st.integers(0, 2**40),
    st.integers(1, 40),
    st.sampled_from(["rademacher", "gaussian"]),
    st.integers(4, 18),
    st.integers(1, 30),
    st.booleans(),
)
def test_any_plan_is_replayed(first, count, distribution, bits, steps, pro):
    plan = SeedPlan(first, count, distribution, bits, steps)
    training = KseedTraining(kind="kseed", max_steps=steps, learning_rate=1e-3, seeds=8, pro=pro)
    model, of = Quadratic.random(PAIR, examples=3), directions(plan)
    state = AdapterState.from_vector(PAIR, torch.linspace(-1, 1, PAIR.numel))
    plan_of = ClientPlan(training, DenseCodec(kind="dense"), seeds=plan)
    task = TrainTask("a", state, examples(3), plan_of, of)
    (result,) = KseedTrainer(model, 0).train([task], key=Key.root(first))
    result.delta.require(plan, "client a")
    assert len(result.delta.seeds) == steps
    assert model.read().sha256() == replayed(result, state, of).sha256()


class Plain(Quadratic):
    """The same losses whatever the threads: NumPy's sums are sequential."""

    def forward(self, batch):
        vector = self.read().vector().numpy().astype(np.float64)
        rows = self.targets.numpy()[batch.tokens[:, 0].numpy() % len(self.targets)]
        losses = np.array([np.sum((vector - t) ** 2) / 2 for t in rows])
        return Output(torch.from_numpy(losses), torch.ones(len(rows), dtype=torch.int64))


def walked(threads):
    """Hashes of what a client sends and holds, and of what a stranger rebuilds."""
    torch.set_num_threads(threads)
    found = []
    for distribution in ("rademacher", "gaussian"):
        spec, plan = flat(70_001), SeedPlan(0, 64, distribution, 22, 12)
        model = Plain(spec, Quadratic.random(spec, examples=3).targets)
        of = Directions.of(Key.root(5), distribution, spec.numel)
        training = KseedTraining(kind="kseed", max_steps=12, batch_size=2, learning_rate=1e-5, seeds=64)
        state = AdapterState.from_vector(spec, torch.linspace(-1, 1, spec.numel))
        plan_of = ClientPlan(training, DenseCodec(kind="dense"), seeds=plan)
        task = TrainTask("a", state, examples(3), plan_of, of)
        trainer = KseedTrainer(model, 0)
        (result,) = trainer.train([task], key=Key.root(0))
        sent = result.delta.seeds.tobytes() + result.delta.coefficients.tobytes()
        found += [hashlib.sha256(sent).hexdigest(), model.read().sha256()]
        found.append(replayed(result, state, of).sha256())
    return found


def test_another_process_with_other_threads_has_the_same_bits():
    before = torch.get_num_threads()
    try:
        here = walked(1)
    finally:
        torch.set_num_threads(before)
    assert here[1] == here[2]
    assert here[4] == here[5]
    assert in_another(walked, 2) == here
