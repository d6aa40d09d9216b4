"""DecomflTrainer: exact against fractions, replay, the mean of its step, hygiene."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config.codec import DenseCodec
from headwater.config.training import DecomflTraining, MezoTraining
from headwater.errors import SpecMismatch, TrainingError
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedPlan, directions_of
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import shifted
from headwater.state import AdapterState
from headwater.training.cohort import TrainTask
from headwater.training.decomfl import DecomflTrainer
from tests.support.quadratic import PAIR, Output, Quadratic, batches_seen, examples, flat
from tests.training.on_quadratic import OnQuadratic

SEEDS = SeedPlan(72, 24, "rademacher", 15, 24, implied=True)


class TestDecomfl(OnQuadratic):
    seeds = SEEDS

    def trainer(self):
        return DecomflTrainer(self.model, 0)

    def training(self, **changes):
        found = {"kind": "decomfl", "max_steps": 8, "directions": 3, "batch_size": 2, "learning_rate": 2e-3}
        return DecomflTraining(**found | {"epsilon": 1e-4, **changes})

    def plan(self, training):
        return ClientPlan(training, DenseCodec(kind="dense"), seeds=self.seeds)

    def directions(self):
        return directions_of(self.seeds, Key.root(3), PAIR.numel)

    def result(self, **changes):
        (result,) = self.run([self.task("a", plan=self.plan(self.training(**changes)))])
        return result

    def test_one_coefficient_for_each_seed_in_order(self):
        result = self.result()
        assert result.delta.seeds.tolist() == list(range(72, 96))
        assert result.steps == 8
        few = self.result(epochs=0.1)
        assert len(few.delta.seeds) == 24
        assert few.steps == 8

    def test_rebuilt_from_scalars_is_stepped(self):
        state = AdapterState.from_vector(PAIR, torch.linspace(-1, 1, PAIR.numel))
        (result,) = self.run([self.task("a", state=state)])
        of, bits = self.directions(), self.seeds.unit_bits + self.directions().unit_bits
        exact = of.combine(result.delta.seeds, result.delta.coefficients)
        assert self.model.read().sha256() == shifted(state, exact, bits).sha256()

    def test_one_base_loss_a_step_and_one_batch(self):
        seen = batches_seen(self.model)
        self.result()
        assert len(seen) == 8 * (1 + 3)
        assert all(seen[i] == seen[i - i % 4] for i in range(len(seen)))
        assert len({tuple(batch) for batch in seen}) > 1

    def test_it_converges(self):
        model = Quadratic.random(PAIR, condition=4.0)
        plan = replace(self.seeds, count=2400, entries=2400)
        training = self.training(max_steps=300, directions=8, learning_rate=1.5e-2)
        task = self.task("a", plan=replace(self.plan(training), seeds=plan))
        (result,) = DecomflTrainer(model, 0).train([task], key=Key.root(0))
        assert result.metrics["last_loss"] < 0.01 * result.metrics["first_loss"]
        assert model.loss_of(model.read()) == pytest.approx(result.metrics["last_loss"], rel=0.5)

    def test_slopes_and_coefficients_are_bounded(self):
        result = self.result(gradient_bound=1e-1)
        assert np.abs(result.delta.coefficients).max() == round(2e-3 / 3 * 1e-1 * 2**15)
        assert result.metrics["clipped"] > 0.9
        wild = self.result(learning_rate=1e6, gradient_bound=1e9)
        assert np.abs(wild.delta.coefficients).max() == 32767

    @pytest.mark.parametrize("call", [9, 10, 12])
    def test_a_loss_that_is_not_finite_ends_the_task_and_names_the_step(self, call):
        forward, calls = self.model.forward, []

        def ill(batch):
            calls.append(1)
            found = forward(batch)
            return Output(found.losses * (np.nan if len(calls) == call else 1), found.counts)

        self.model.forward = ill
        (result,) = self.run([self.task("a")])
        assert result.delta is None
        assert "client a, step 3: expected a finite loss" in str(result.error)

    def test_foreign_tasks_are_refused(self):
        with pytest.raises(TrainingError, match="decomfl"):
            self.run([self.task("a", plan=self.plan(MezoTraining(kind="mezo")))])
        with pytest.raises(TrainingError, match="expected 27 seeds, got 24"):
            self.run([self.task("a", plan=self.plan(self.training(max_steps=9)))])
        with pytest.raises(TrainingError, match="seeds"):
            self.run([self.task("a", directions=None)])
        with pytest.raises(SpecMismatch):
            self.run([self.task("a", state=AdapterState.zeros(flat(91)))])


class TestGaussian(TestDecomfl):
    seeds = replace(SEEDS, distribution="gaussian", unit_bits=17)

    def test_slopes_and_coefficients_are_bounded(self):
        result = self.result(gradient_bound=1e-1)
        assert np.abs(result.delta.coefficients).max() == round(2e-3 / 3 * 1e-1 * 2**17)


@settings(max_examples=20)
@given(
    st.integers(0, 2**40),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.integers(-4, 4), min_size=4, max_size=4),
)
def test_every_coefficient_is_that_of_exact_arithmetic(first, steps, width, target):
    """½‖w − t‖² in fractions, forward difference at ε = 2^-6: zᵀ(w − t) + ε‖z‖²/2; η = 1/10."""
    bits, epsilon = 14, Fraction(1, 64)
    plan = SeedPlan(first, steps * width, "rademacher", bits, steps * width, implied=True)
    of = directions_of(plan, Key.root(3), 4)
    training = DecomflTraining(
        kind="decomfl", max_steps=steps, directions=width, learning_rate=0.1, epsilon=float(epsilon)
    )
    plan_of = ClientPlan(training, DenseCodec(kind="dense"), seeds=plan)
    task = TrainTask("a", AdapterState.zeros(flat(4)), examples(1), plan_of, of)
    model = Quadratic(flat(4), [[float(t) for t in target]])
    (result,) = DecomflTrainer(model, 0).train([task], key=Key.root(0))
    w, found = [Fraction(0)] * 4, iter(result.delta.coefficients.tolist())
    for step in range(steps):
        here = list(w)
        for i in range(width):
            z = of.integers(first + step * width + i).tolist()
            slope = sum(v * (x - t) for v, x, t in zip(z, here, target, strict=True)) + epsilon * 2
            exact, c = -slope / 10 / width * 2**bits, next(found)
            assert abs(c - exact) <= Fraction(1, 2) + Fraction(1, 1000)  # a loss is rounded, too
            w = [x + Fraction(c, 2**bits) * v for x, v in zip(w, z, strict=True)]
    assert model.read().vector().tolist() == [float(x) for x in w]
