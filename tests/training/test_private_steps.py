"""DP-SGD: each example is clipped by itself for every kind of adapter, and the noise is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.privacy.events import Everyone, PoissonSample
from headwater.privacy.noise import ReproducibleRandomness, SystemRandomness
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import by_row, collate
from headwater.training.backprop import BackpropTrainer
from headwater.training.cohort import TrainTask
from headwater.training.example_gradients import UNITS, ExampleGradients
from headwater.training.private_steps import StepPlan, randomness_of
from headwater.training.trainable_part import TrainablePart
from tests.laws.trainer_laws import TrainerLaws
from tests.support.federations import adapted, adapter, examples, federation

BERT, LLAMA, GPT2 = ("encoder", "bert"), ("causal-lm", "llama"), ("causal-lm", "gpt2")
STACKED = {
    "lora": (BERT, LLAMA),
    "dora": (BERT, GPT2),
    "lora-sb": (BERT,),
    "ia3": (BERT, LLAMA, GPT2),
    "vera": (BERT,),
    "prompt": (BERT, LLAMA),
    "prefix": (BERT, LLAMA),
    "p-tuning": (BERT,),
    "pissa": (BERT,),
    "ln-tuning": (BERT,),
    "bitfit": (BERT,),
}
"""Kinds of which one pass gives all gradients."""
ONE_BY_ONE = {"oft": (BERT,), "loha": (BERT,), "fourierft": (BERT,)}
CELLS = [(kind, *base) for cells in (STACKED, ONE_BY_ONE) for kind in cells for base in cells[kind]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=CELLS, ids=" ".join)
def cell(request, folder):
    kind, task, base = request.param
    return kind, moved(adapted(federation(folder, task, base, adapter(kind, base)))), task == "causal-lm"


@pytest.fixture(scope="module")
def bert(folder):
    return moved(adapted(federation(folder, *BERT, adapter("lora", "bert"))))


def moved(model):
    """Away from the start, where half of the gradients are zero."""
    start = model.initial_state()
    draw = torch.from_numpy(np.random.default_rng(1).standard_normal(start.spec.numel, np.float32))
    model.load(AdapterState.from_vector(start.spec, start.vector() + 0.05 * draw))
    return model


def plan(**settings):
    return ClientPlan(training(**settings), DenseCodec(kind="dense"), 1.0)


def training(*, z=1.0, noise="reproducible", **settings):
    given = {"kind": "backprop", "optimizer": "sgd", "learning_rate": 0.5, "batch_size": 4}
    privacy = {"noise_multiplier": z, "delta": 1e-3, "noise": noise}
    return BackpropTraining.model_validate(given | {"privacy": privacy} | settings)


def gradients(model, *, bound, micro_batch_size=None, of=None):
    part = TrainablePart.of(model, of or plan(), who="test")
    return ExampleGradients.of(
        model, part, bound, pad=0, micro_batch_size=micro_batch_size, checkpointing=False
    )


def one_by_one(model, units, bound):
    """The oracle: each unit's own gradient by autograd in a pass of its own, clipped in float64."""
    parameters = [p for _, p in model.parameters()]
    total, norms = torch.zeros(model.spec.numel, dtype=torch.float64), []
    for unit in units:
        loss = model.forward(collate(unit, 0)).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        vector = torch.cat([g.double().flatten() for g in found])
        norms.append(float(vector.norm()))
        total += vector * min(1.0, bound / norms[-1])
    return total, norms


def flat(sums):
    return torch.cat([s.flatten() for s in sums])


def test_each_example_is_clipped_by_itself_whatever_the_adapter(cell):
    """Opacus 1.6 clips a batch of PEFT prompts as one example, and fails on IA3, DoRA and embeddings."""
    kind, model, language_model = cell
    units = by_row(examples(7, language_model=language_model))
    _, norms = one_by_one(model, units, 1.0)
    bound = float(np.median(norms))  # some are clipped, some are not
    expected, _ = one_by_one(model, units, bound)
    ours = gradients(model, bound=bound, micro_batch_size=3)
    assert ours.stacks == (kind in STACKED)
    found = flat(ours.sums(dict(enumerate(units)), Key.root(0))) * ours.unit
    assert float((found - expected).norm()) < 2e-4 * bound
    together = sum(norms)
    assert float(expected.norm()) < 0.999 * together  # clipping the batch as one would give another sum


def test_no_example_is_longer_than_the_bound_to_the_unit(bert):
    """In integers, so that no rounding counts: what σ is a multiple of."""
    for unit in by_row(examples(5, language_model=False)):
        _, (norm,) = one_by_one(bert, [unit], 1.0)
        for bound in (norm * 1e-3, norm * 0.9999999, norm, norm * 1.0000001):
            sums = flat(gradients(bert, bound=bound).sums({0: unit}, Key.root(0)))
            assert torch.equal(sums, sums.round())
            length = sum(int(value) ** 2 for value in sums)
            assert 0.99 * UNITS**2 < length <= UNITS**2


def test_parts_of_one_row_are_one_example(bert):
    rows, row = examples(4, language_model=False), object()
    parts = [replace(rows[0], row=row), rows[1], replace(rows[2], row=row), rows[3]]
    units = by_row(parts)
    assert [len(unit) for unit in units] == [2, 1, 1]
    expected, _ = one_by_one(bert, units, 0.1)
    for at_once in (1, 3, None):  # of a row that does not fit one pass, too
        ours = gradients(bert, bound=0.1, micro_batch_size=at_once)
        found = flat(ours.sums(dict(enumerate(units)), Key.root(0))) * ours.unit
        assert float((found - expected).norm()) < 1e-5
    of = plan(max_grad_norm=0.1)
    (result,) = BackpropTrainer(bert, 0).train([TrainTask("a", bert.read(), parts, of)], key=Key.root(1))
    assert result.examples == 3  # of how many parts a row is hangs on what it says


@pytest.mark.parametrize("at_once", [0, 1, 3, 9])
def test_what_is_dropped_of_an_example_does_not_hang_on_the_others(folder, at_once):
    """The seed is known: if one more moved what is dropped of the others, it would move the sum by 2·B·C."""
    settings = adapter("lora", "bert") | {"dropout": 0.5}
    model = moved(adapted(federation(folder, *BERT, settings)))
    units = by_row(examples(9, language_model=False))
    longest = max(range(9), key=lambda at: len(units[at][0].tokens))
    ours = replace(gradients(model, bound=1e-3, micro_batch_size=at_once), stacks=at_once > 0)
    with model.training():
        whole = dict(enumerate(units))
        others = {number: unit for number, unit in whole.items() if number != longest}
        one = flat(ours.sums(whole, Key.root(0))) - flat(ours.sums(others, Key.root(0)))
        again = flat(ours.sums({longest: units[longest]}, Key.root(0)))
        moved_by = float((one - again).norm()) / UNITS
        assert moved_by < (1e-3 if at_once > 1 else 1e-9)  # rows of one pass share its rounding
        other = flat(ours.sums({longest: units[longest]}, Key.root(1)))
    assert float((other - again).norm()) / UNITS > 0.02  # or nothing is dropped


def test_the_sum_does_not_hang_on_micro_batches(bert):
    units = by_row(examples(9, language_model=False))
    one, other = (
        flat(gradients(bert, bound=0.5, micro_batch_size=rows).sums(dict(enumerate(units)), Key.root(0)))
        for rows in (2, 9)
    )
    assert float((one - other).abs().max()) < 1e-4 * UNITS


def test_an_example_that_goes_wrong_counts_as_nothing(bert, monkeypatch):
    units = by_row(examples(3, language_model=False))
    ours = gradients(bert, bound=0.5)
    whole = ours._means(list(enumerate(units)), Key.root(0))
    clean, broken = ours.sums(dict(enumerate(units[1:])), Key.root(0)), [g.clone() for g in whole]
    broken[0][0] = torch.nan
    broken[1][0] = torch.inf
    totals = [torch.zeros_like(t) for t in clean]
    ours._add(totals, broken)
    assert all(bool(total.isfinite().all()) for total in totals)
    # the others' parts are those that they have without it, up to what a batch of another width rounds
    assert float((flat(totals) - flat(clean)).abs().max()) < 1e-4 * UNITS


def test_a_plan_of_fewer_ranks_clips_what_it_trains(bert):
    of = replace(plan(), rank=1)
    ours = gradients(bert, bound=1e-3, of=of)
    sums = ours.sums({0: examples(1, language_model=False)}, Key.root(0))
    for (_, parameter), total in zip(ours.part.trained, sums, strict=True):
        for masked, outside, _ in ours.part.masked:
            assert masked is not parameter or not bool(total[outside].any())
    assert float(flat(sums).norm()) == pytest.approx(UNITS, rel=1e-3)


def test_every_example_is_drawn_by_itself():
    rows = examples(40, language_model=False)
    steps = StepPlan.of(rows, training(batch_size=8, epochs=400.0))
    assert (steps.steps, steps.expected, steps.sampling) == (2000, 8, PoissonSample(0.2))
    sizes = [len(units) for units in steps.draws(ReproducibleRandomness(Key.root(3)))]
    assert np.mean(sizes) == pytest.approx(8, abs=0.25)  # 4 standard errors
    assert np.var(sizes) == pytest.approx(40 * 0.2 * 0.8, rel=0.15)  # binomial; of fixed batches 0
    few = StepPlan.of(rows[:3], training(batch_size=8))
    assert few.sampling == Everyone()
    assert [len(units) for units in few.draws(SystemRandomness())] == [3]


def test_a_step_is_the_noised_sum_over_the_expected_number(bert):
    """Of SGD at rate 1 the change is the gradient: its mean is the oracle's, its deviation z·C/B."""
    rows, state = examples(6, language_model=False), bert.read()
    expected, _ = one_by_one(bert, by_row(rows), 0.05)

    def change(z, **settings):
        of = plan(z=z, learning_rate=1.0, batch_size=6, max_grad_norm=0.05, **settings)
        (result,) = BackpropTrainer(bert, 0).train([TrainTask("a", state, rows, of)], key=Key.root(1))
        assert result.error is None
        assert (result.steps, dict(result.metrics)) == (1, {})  # no loss is told
        return -result.delta.vector().double()

    assert float((change(1e-6) - expected / 6).norm()) < 1e-5
    noise = (change(2.0) - expected / 6) / (2.0 * 0.05 / 6)
    assert float(noise.std()) == pytest.approx(1.0, rel=0.1)
    assert float(noise.mean()) == pytest.approx(0.0, abs=4 / len(noise) ** 0.5)
    assert torch.equal(change(2.0), change(2.0))
    assert not torch.equal(change(2.0, privacy=system(2.0)), change(2.0, privacy=system(2.0)))


def system(z):
    return {"noise_multiplier": z, "delta": 1e-3}


def test_dropout_and_a_part_that_stands_still_leave_the_faster_way(folder, monkeypatch):
    """Whether a model can be stacked is tried before dropout is on, and before anything stands still."""
    model, passes = adapted(federation(folder, *BERT, adapter("lora", "bert") | {"dropout": 0.5})), []
    together = ExampleGradients._together
    monkeypatch.setattr(
        ExampleGradients, "_together", lambda own, rows: passes.append(len(rows)) or together(own, rows)
    )
    of = replace(
        plan(batch_size=4), tensors=tuple(spec.name for spec in model.spec if ".layer.1." in spec.name)
    )
    rows = examples(4, language_model=False)
    (result,) = BackpropTrainer(model, 0).train([TrainTask("a", model.read(), rows, of)], key=Key.root(0))
    assert result.error is None
    assert passes == [4]


def test_a_step_that_draws_nobody_is_noise(bert):
    rows = examples(50, language_model=False)
    of = plan(batch_size=1, epochs=0.2, max_grad_norm=0.5)
    steps = StepPlan.of(rows, of.training)
    drawn = [len(u) for u in steps.draws(randomness_of(of.training.privacy, Key.root(0)))]
    assert 0 in drawn
    (result,) = BackpropTrainer(bert, 0).train([TrainTask("a", bert.read(), rows, of)], key=Key.root(0))
    assert result.error is None
    assert result.steps == 10


def test_noise_comes_from_the_operating_system_unless_the_file_says_so():
    default = BackpropTraining.model_validate({"kind": "backprop", "privacy": system(1.0)}).privacy
    assert isinstance(randomness_of(default, Key.root(0)), SystemRandomness)
    assert isinstance(randomness_of(training().privacy, Key.root(0)), ReproducibleRandomness)


@pytest.mark.parametrize("wrong", [{"max_grad_norm": None}, {"max_grad_norm": 1e-20}, {"trunk_cache_mb": 1}])
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValidationError, match=r"training\.privacy"):
        training(**wrong)


class TestPrivateTraining(TrainerLaws):
    """The laws of every trainer hold, with noise that can be drawn again."""

    tells_losses = False

    @pytest.fixture(autouse=True)
    def _model(self, bert):
        self.model = bert

    def trainer(self):
        return BackpropTrainer(self.model, 0)

    def start(self):
        return self.model.initial_state()

    def examples(self):
        return examples(6, language_model=False)

    def training(self):
        return training()

    def diverging(self):
        return training(learning_rate=1e38, max_grad_norm=1e6, epochs=4.0)
