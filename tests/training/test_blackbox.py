"""BlackboxTrainer: only losses are asked for, what is sent is what was measured, and it finds the optimum."""

from dataclasses import replace

import cma
import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import BlackboxTraining, NoopTraining
from headwater.errors import TrainingError
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedPlan, directions_of
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.state import AdapterState
from headwater.strategies.seeding import seed_plan
from headwater.training.blackbox import BlackboxTrainer, asking
from headwater.training.cohort import TrainTask
from tests.laws.trainer_laws import TrainerLaws
from tests.support import federations
from tests.support.quadratic import Quadratic, examples, flat

SIZE, DIMENSIONS = 40, 6
SPEC = flat(SIZE)
SEEDS = SeedPlan(0, DIMENSIONS, "gaussian", 13, DIMENSIONS, implied=True)


class Oracle:
    """A model behind a wall: one function of a prompt and a batch. Remembers what it was asked."""

    def __init__(self, model):
        self._inner, self.asked = asking(model), []

    def __call__(self, prompt, batch):
        loss = self._inner(prompt, batch)
        self.asked.append((prompt.clone(), batch, loss))
        return loss


class TestBlackbox(TrainerLaws):
    @pytest.fixture(autouse=True)
    def _model(self):
        self.model = Quadratic.random(SPEC, examples=5)

    def trainer(self):
        return BlackboxTrainer(asking(self.model), 0)

    def start(self):
        return AdapterState.from_vector(SPEC, torch.linspace(-0.1, 0.1, SIZE))

    def examples(self):
        return examples(5)

    def training(self, **changes):
        found = {"kind": "blackbox", "dimensions": DIMENSIONS, "population": 6, "generations": 5}
        return BlackboxTraining(**found | {"batch_size": 2, "sigma": 0.5, "scale": 0.3, **changes})

    def diverging(self):
        return self.training(sigma=1e200)

    def plan(self, training):
        return ClientPlan(training, DenseCodec(kind="dense"), seeds=SEEDS)

    def directions(self):
        return directions_of(SEEDS, Key.root(3), SIZE)

    def asked(self, model=None, seed=0, task=None, **changes):
        """The result, and all that the model was asked."""
        oracle = Oracle(model or self.model)
        task = task or self.task("a", plan=self.plan(self.training(**changes)))
        (result,) = BlackboxTrainer(oracle, 0).train([task], key=Key.root(seed))
        return result, oracle.asked

    @pytest.mark.parametrize("call", ["ask", "tell"])
    def test_what_the_library_raises_ends_the_task_as_a_divergence(self, call, monkeypatch):
        """pycma ends a search without bounds with a bare AssertionError."""

        def fail(*_, **__):
            raise AssertionError

        monkeypatch.setattr(cma.CMAEvolutionStrategy, call, fail)
        result, _ = self.asked()
        assert result.delta is None
        assert "generation 1" in str(result.error) or "step 1" in str(result.error)
        assert "AssertionError" in str(result.error)

    def test_it_asks_a_function_and_no_more(self):
        """Population × generations, and the start and the end: a function without any attribute is enough."""
        result, asked = self.asked()
        assert len(asked) == 5 * 6 + 2
        assert result.steps == 5
        assert all(prompt.dtype == torch.float32 and prompt.shape == (SIZE,) for prompt, _, _ in asked)
        assert torch.equal(asked[0][0], self.start().vector())
        assert result.metrics["first_loss"] == asked[0][2]

    def test_what_is_sent_is_what_was_measured(self):
        """Whoever replays the coefficients has, bit for bit, the prompt that ``last_loss`` is about."""
        result, asked = self.asked()
        seeded_state = SeededState(self.start(), self.directions(), SEEDS.unit_bits, result.delta.sums)
        prompt, _, loss = asked[-1]
        assert torch.equal(prompt, seeded_state.state().vector())
        assert result.metrics["last_loss"] == loss

    def test_sent_is_a_mean_and_none_of_the_candidates(self):
        """It lies among the last generation's: closer to their middle than any of them."""
        _, asked = self.asked()
        last, sent = torch.stack([p for p, _, _ in asked[-7:-1]]), asked[-1][0]
        away = (last - last.mean(0)).norm(dim=1)
        assert (sent - last.mean(0)).norm() < away.min()

    def test_every_candidate_could_have_been_sent(self):
        _, asked = self.asked()
        z = np.stack([self.directions().integers(s) for s in range(DIMENSIONS)]).astype(np.float64)
        for prompt, _, _ in asked[1:]:
            moved = prompt.double().numpy() - self.start().vector().double().numpy()
            q = np.linalg.lstsq(z.T * 2.0 ** -(12 + 13), moved, rcond=None)[0]
            np.testing.assert_allclose(q, np.rint(q), atol=0.02)
            assert np.abs(q).max() > 1

    def test_one_batch_for_a_generation(self):
        _, asked = self.asked()
        batches = [id(batch) for _, batch, _ in asked]
        assert len(set(batches)) == 5
        assert [len(set(batches[1 + 6 * g : 7 + 6 * g])) for g in range(5)] == [1] * 5

    def test_coordinates_beyond_the_range_are_clipped(self):
        result, asked = self.asked(sigma=1e4, generations=1)
        assert np.abs(result.delta.coefficients).max() <= 32767
        assert max(float(p.abs().max()) for p, _, _ in asked) <= 4 * 4.5 * DIMENSIONS

    def test_it_finds_the_optimum_of_the_subspace(self):
        """½‖w − t‖² over start + Zx: the known least-squares answer, within 1 % of what there is to gain."""
        model = Quadratic.random(SPEC)
        result, _ = self.asked(model, generations=60, population=10)
        z = np.stack([self.directions().values(s) for s in range(DIMENSIONS)]).astype(np.float64).T
        away = model.targets[0].numpy() - self.start().vector().double().numpy()
        rest = away - z @ np.linalg.lstsq(z, away, rcond=None)[0]
        best, start = 0.5 * rest @ rest, 0.5 * away @ away
        assert start - best > 1
        assert result.metrics["last_loss"] - best < 0.01 * (start - best)

    def test_the_mean_is_better_than_the_best_candidate_on_noisy_batches(self):
        """Paired over 12 draws; the mean gap, 0.6, is above 3 standard errors, so half of it would show."""
        gaps = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            noisy = rng.standard_normal((1, SIZE)) + rng.standard_normal((40, SIZE))
            model = Quadratic(SPEC, torch.from_numpy(noisy))
            task = self.task("a", examples=examples(40), plan=self.plan(self.training(generations=15)))
            _, asked = self.asked(model, seed, task)
            best = min(asked[1:-1], key=lambda entry: entry[2])[0]
            losses = [model.loss_of(AdapterState.from_vector(SPEC, p)) for p in (best, asked[-1][0])]
            gaps.append(losses[0] - losses[1])
        assert np.mean(gaps) > 3 * np.std(gaps, ddof=1) / np.sqrt(len(gaps))

    @pytest.mark.parametrize(("generations", "most"), [(1, 1.3), (3, 2), (10, 6)])
    def test_its_noise_is_at_least_what_the_result_varies_by_from_search_to_search(self, generations, most):
        """And not many times more: generations mend each other's chance, which it does not count."""
        model = Quadratic.random(SPEC, examples=1)
        results = [self.asked(model, seed, generations=generations)[0] for seed in range(60)]
        steps = np.stack([r.delta.expand(self.directions()) for r in results]).astype(np.float64)
        varies = steps.var(0, ddof=1).sum()
        claimed = np.mean([r.noise for r in results])
        assert 0.8 * varies < claimed < most * varies
        assert all(r.noise <= (1 + 1e-9) * r.delta.energy(self.directions()) for r in results)

    @pytest.mark.slow
    def test_its_noise_is_that_of_all_generations(self):
        """64 coordinates contract slowly: the last generation alone has a seventh of it."""
        training = BlackboxTraining(kind="blackbox", generations=10)
        seeds = seed_plan(training, 1)
        model = Quadratic.random(SPEC, examples=1)
        directions = directions_of(seeds, Key.root(1), SIZE)
        plan = ClientPlan(training, DenseCodec(kind="dense"), seeds=seeds)
        task = replace(self.task("a", plan=plan), directions=directions, state=self.start())
        trainer = BlackboxTrainer(model, 0)
        results = [next(iter(trainer.train([task], key=Key.root(k)))) for k in range(25)]
        steps = np.stack([r.delta.expand(directions) for r in results]).astype(np.float64)
        varies = steps.var(0, ddof=1).sum()
        assert 0.7 * varies < np.mean([r.noise for r in results]) < 3 * varies

    def test_numpys_global_generator_is_neither_read_nor_moved(self):
        np.random.seed(1)  # the global one on purpose
        before = np.random.get_state()[1].copy()
        first, _ = self.asked()
        assert np.array_equal(before, np.random.get_state()[1])
        np.random.seed(2)
        second, _ = self.asked()
        assert np.array_equal(first.delta.coefficients, second.delta.coefficients)

    def test_nothing_is_printed(self, capfd):
        self.asked(generations=40)
        assert capfd.readouterr() == ("", "")

    def test_a_model_in_this_process_is_asked_under_inference_mode(self):
        modes = []

        class Watched(Quadratic):
            def forward(self, batch):
                modes.append(torch.is_inference_mode_enabled())
                return super().forward(batch)

        model = Watched(SPEC, self.model.targets)
        (held,) = BlackboxTrainer(model, 0).train([self.task("a")], key=Key.root(0))
        assert modes
        assert all(modes)
        assert np.array_equal(held.delta.coefficients, self.run([self.task("a")])[0].delta.coefficients)

    def test_wrong_plans_are_refused(self):
        noop = ClientPlan(NoopTraining(kind="noop"), DenseCodec(kind="dense"), seeds=SEEDS)
        with pytest.raises(TrainingError, match="blackbox"):
            self.run([self.task("a", plan=noop)])
        with pytest.raises(TrainingError, match="seeds"):
            self.run([self.task("a", directions=None)])
        for seeds in (replace(SEEDS, implied=False), replace(SEEDS, count=5)):
            plan = replace(self.plan(self.training()), seeds=seeds)
            with pytest.raises(TrainingError, match="client a: expected a coefficient for each of 6 seeds"):
                self.run([self.task("a", plan=plan)])
        (empty,) = self.run([self.task("a", examples=[])])
        assert "at least one example" in str(empty.error)


def test_a_soft_prompt_learns_on_a_real_network(tmp_path):
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter("prompt", "bert"))
    model = federations.adapted(loaded)
    seeds = SeedPlan(0, 16, "gaussian", 12, 16, implied=True)
    training = BlackboxTraining(
        kind="blackbox", dimensions=16, population=12, generations=8, scale=0.5, sigma=0.5
    )
    task = TrainTask(
        "a",
        model.initial_state(),
        federations.examples(8, language_model=False),
        ClientPlan(training, DenseCodec(kind="dense"), seeds=seeds),
        directions_of(seeds, Key.root(0), model.spec.numel),
    )
    (result,) = BlackboxTrainer(model, 0).train([task], key=Key.root(0))
    assert result.metrics["last_loss"] < result.metrics["first_loss"] - 0.05
