"""SGD, FedProx and SCAFFOLD's correction, step by step against their formulas on a quadratic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.training.backprop import BackpropTrainer
from headwater.training.cohort import TrainTask
from tests.support.quadratic import Quadratic, examples

SPEC = StateSpec.of([TensorSpec("body", (3,), "vector"), TensorSpec("head", (2,), "head")])
TARGET, CURVATURE = np.array([1.0, -2.0, 0.5, 3.0, -1.0]), np.array([1.0, 0.5, 2.0, 1.0, 3.0])
START = np.array([0.2, 0.1, -0.3, 0.0, 0.5])
RATES, STEPS = np.array([0.1, 0.1, 0.1, 0.02, 0.02]), 7


def state(values):
    return AdapterState.from_vector(SPEC, torch.tensor(np.asarray(values), dtype=torch.float32))


def trained(correction=None, factor=1.0, **settings):
    training = {"kind": "backprop", "optimizer": "sgd", "learning_rate": 0.1, "head_learning_rate": 0.02}
    training |= {"epochs": STEPS, "batch_size": 1, "max_grad_norm": None}
    plan = ClientPlan(BackpropTraining(**training | settings), DenseCodec(kind="dense"), factor)
    model = Quadratic(SPEC, TARGET[None], torch.from_numpy(CURVATURE))
    task = TrainTask("a", state(START), examples(1), plan, correction=correction)
    (result,) = BackpropTrainer(model, 0).train([task], key=Key.root(0))
    assert result.error is None
    return START + result.delta.vector().numpy()


def by_hand(change=lambda gradient, w: gradient, factor=1.0):
    w = START.copy()
    for _ in range(STEPS):
        w = w - factor * RATES * change(CURVATURE * (w - TARGET), w)
    return w


def cut(gradient, w):
    return gradient * min(1.0, 0.5 / np.linalg.norm(gradient))


def test_sgd_follows_the_gradient_at_one_rate_for_each_role():
    assert trained() == pytest.approx(by_hand(), abs=1e-6)
    assert trained(factor=0.25) == pytest.approx(by_hand(factor=0.25), abs=1e-6)
    assert trained(weight_decay=0.3) == pytest.approx(by_hand(lambda g, w: g + 0.3 * w), abs=1e-6)
    assert trained(max_grad_norm=0.5) == pytest.approx(by_hand(cut), abs=1e-5)


def test_fedprox_adds_mu_times_the_way_from_the_start():
    """Eq. 2 of arXiv 1812.06127: the loss has ½μ‖w − w₀‖² more."""
    pulled = by_hand(lambda g, w: g + 0.7 * (w - START))
    assert trained(proximal_mu=0.7) == pytest.approx(pulled, abs=1e-6)
    assert np.abs(pulled - by_hand()).max() > 0.05


def test_a_correction_is_added_to_the_gradient_after_it_is_cut():
    more = np.array([0.3, -0.1, 0.0, 0.5, -0.2])
    assert trained(state(more)) == pytest.approx(by_hand(lambda g, w: g + more), abs=1e-6)
    both = by_hand(lambda g, w: cut(g, w) + more)
    assert trained(state(more), max_grad_norm=0.5) == pytest.approx(both, abs=1e-5)
