"""Canaries in our own mechanisms: the bound stays under the price, and breaks it where noise is broken.

Owners' canaries go through :class:`NoisedSum`, rows' through :class:`PrivateSteps`, as they run. Each says
something in a value of its own, as loud as the clip allows, so that trials are independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from headwater.config.privacy import ExamplePrivacy
from headwater.errors import ConfigError
from headwater.merging.plan import MergePlan, PrivateSum, Update
from headwater.privacy.accounting import price
from headwater.privacy.audit.canaries import audit_canaries
from headwater.privacy.events import Everyone, PoissonSample, StepsReleased, SumReleased
from headwater.privacy.noise import ReproducibleRandomness
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies import private_sum
from headwater.strategies.private_sum import NoisedSum, independent
from headwater.tasks.batches import Example
from headwater.training.example_gradients import ExampleGradients
from headwater.training.private_steps import PrivateSteps, StepPlan
from headwater.training.trainable_part import TrainablePart

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
DELTA, CLIP, CANARIES = 1e-5, 0.5, 1200
SPEC = StateSpec([TensorSpec("a", (CANARIES,), "other")])
COINS = np.random.default_rng(7).random(CANARIES) < 0.5


def noise(seed):
    return independent(ReproducibleRandomness(Key.root(seed)))


def silent(what, multiplier, longest, size):
    return np.zeros(size, np.int64), 1


def owners(rounds, multiplier, draw, loud=CLIP, rate=1.0):
    """How much of each canary all rounds' sums hold, by the auditor that is asked."""
    drawn, total = np.random.default_rng(8), np.zeros(CANARIES)
    rule = NoisedSum(draw)
    for _ in range(rounds):
        names = {f"c{i}": 1 for i in range(CANARIES)}
        acc = rule.init(MergePlan(SPEC, names, 1e6, private=PrivateSum(CLIP, multiplier, 1.0)))
        for number in np.flatnonzero(COINS & (drawn.random(CANARIES) < rate)):
            values = torch.zeros(CANARIES)
            values[number] = loud
            acc = rule.add(acc, Update(f"c{number}", 1, AdapterState.from_vector(SPEC, values), 1, 1, {}, {}))
        total += rule.finalize(acc).delta.vector().double().numpy()
    return audit_canaries(total, COINS, DELTA)


def priced(rounds, multiplier, sampling=None):
    sampling = sampling or Everyone()
    events = [SumReleased(n + 1, f"{n}", CLIP, multiplier, sampling) for n in range(rounds)]
    return price(events, DELTA, "add-or-remove").epsilon


@pytest.mark.parametrize(("rounds", "multiplier"), [(1, 1.0), (2, 1.0)])
def test_a_sound_sum_is_not_refuted(rounds, multiplier):
    found, bound = owners(rounds, multiplier, noise(1)), priced(rounds, multiplier)
    assert 0.15 * bound < found.epsilon < found.gaussian < bound
    assert found.estimate == pytest.approx(bound, rel=0.15)
    assert (found.canaries, found.confidence, found.delta) == (CANARIES, 0.95, DELTA)


def test_drawn_cohorts_are_not_refuted():
    found = owners(2, 1.0, noise(2), rate=0.5)
    assert 0 < found.epsilon < priced(2, 1.0, PoissonSample(0.5))


def test_a_sum_without_noise_is_caught():
    found = owners(1, 1.0, silent)
    assert found.epsilon > priced(1, 1.0)
    assert found.right == found.guesses == CANARIES // 2


def test_twice_the_sensitivity_is_caught(monkeypatch):
    """A server that forgets to clip, and owners that are twice as loud as the noise is for."""
    monkeypatch.setattr(private_sum, "clip_l2", lambda values, bound: (values, values.norm()))
    found = owners(1, 1.0, noise(3), loud=2 * CLIP)
    assert found.gaussian > priced(1, 1.0)
    monkeypatch.undo()
    held = owners(1, 1.0, noise(3), loud=2 * CLIP)  # the same with the clip
    assert held.gaussian < priced(1, 1.0)


def test_half_of_the_noise_is_caught():
    draw = noise(4)
    found = owners(1, 1.0, lambda what, z, longest, size: draw(what, z / 2, longest, size))
    assert found.gaussian > priced(1, 1.0)


@dataclass(frozen=True)
class Canaries(ExampleGradients):
    """Rows whose gradient is one value, far longer than the clip; the clipping is what is audited."""

    def _alone(self, key, row):
        gradient = torch.zeros(1, CANARIES)
        gradient[0, int(row.tokens[0])] = 1000.0
        return [gradient], torch.ones(1)


def rows(multiplier, steps, sigma_factor=1.0):
    """As :func:`owners`, of one client's noised gradients."""
    parameter = torch.nn.Parameter(torch.zeros(CANARIES))
    part = TrainablePart([(SPEC.tensors[0], parameter)], [], [], None)
    inside = [Example(np.array([i], np.int32), np.array([0])) for i in np.flatnonzero(COINS)]
    gradients = Canaries(None, part, 1.0, 0, 1, stacks=False)
    privacy = ExamplePrivacy(noise_multiplier=multiplier * sigma_factor, delta=DELTA, noise="reproducible")
    total = np.zeros(CANARIES)
    units = [[row] for row in inside]
    for _ in PrivateSteps(StepPlan(units, steps, len(units)), gradients, privacy, Key.root(5)):
        total += parameter.grad.double().numpy()
    return audit_canaries(total, COINS, DELTA)


def test_rows_of_private_steps_are_not_refuted_and_too_little_noise_is():
    bound = price([StepsReleased(1, "r", 2, 1.0, 2.0, Everyone())], DELTA, "add-or-remove").epsilon
    found = rows(2.0, steps=2)
    assert 0.15 * bound < found.epsilon < found.gaussian < bound
    assert rows(2.0, steps=2, sigma_factor=0.5).gaussian > bound


def test_a_bound_is_wrong_no_more_often_than_it_says():
    """Forty runs of a mechanism whose ε is known: one Gaussian of μ = 1."""
    rng = np.random.default_rng(9)
    truth = priced(1, 1.0)
    wrong = 0
    for _ in range(40):
        coins = rng.random(300) < 0.5
        found = audit_canaries(coins + rng.normal(size=300), coins, DELTA, confidence=0.8)
        wrong += found.epsilon > truth or found.gaussian > truth
    assert wrong <= 0.2 * 40


def test_scores_without_a_signal_bound_nothing():
    rng = np.random.default_rng(10)
    found = audit_canaries(rng.normal(size=500), rng.random(500) < 0.5, DELTA)
    assert found.epsilon == 0
    assert found.gaussian < 0.3


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan], [[1.0, 2.0]]])
def test_what_is_no_score_is_refused(scores):
    with pytest.raises(ConfigError, match="canaries"):
        audit_canaries(scores, np.ones(len(scores), bool), DELTA)
