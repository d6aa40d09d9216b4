"""ParameterWalk: probes leave no trace, and steps are exact sums of integers in any order."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import SpecMismatch
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState, shifted
from headwater.state import AdapterState
from headwater.tasks.batches import collate
from headwater.training.parameter_walk import ParameterWalk
from tests.support import federations
from tests.support.quadratic import PAIR, Quadratic, examples, flat

BATCH = collate(examples(2), 0)
distributions = st.sampled_from(["rademacher", "gaussian"])
steps = st.lists(st.tuples(st.integers(0, 2**40), st.integers(-32767, 32767)), max_size=12)


def start(seed, scale=1.0):
    values = np.random.default_rng(seed).standard_normal(PAIR.numel) * scale
    values[::7] = -0.0
    return AdapterState.from_vector(PAIR, torch.from_numpy(values.astype(np.float32)))


def family(distribution, size=PAIR.numel, name="test"):
    return Directions.of(Key.root(1).child(name), distribution, size)


@settings(max_examples=40)
@given(distributions, steps, st.integers(0, 99), st.sampled_from([1e-6, 1e-3, 1.0, 1e6]))
def test_a_probe_leaves_no_trace(distribution, taken, seed, scale):
    model, directions, origin = Quadratic.random(PAIR), family(distribution), start(seed, scale)
    walk = ParameterWalk(model, origin, unit_bits=20 + directions.unit_bits)
    assert model.read().sha256() == origin.sha256()
    for s, c in taken:
        walk.step(directions.integers(s), c)
    walk.weights()
    before = model.read().sha256()
    for s in range(3):
        walk.central(BATCH, directions.integers(s), 1e-3 * 2.0**-directions.unit_bits)
    assert model.read().sha256() != before
    walk.weights()
    assert model.read().sha256() == before


@settings(max_examples=40)
@given(distributions, steps, st.integers(0, 99), st.integers(0, 30), st.randoms(use_true_random=False))
def test_stepping_is_replaying_in_any_order(distribution, taken, seed, unit_bits, random):
    model, directions, origin = Quadratic.random(PAIR), family(distribution), start(seed)
    bits = unit_bits + directions.unit_bits
    walk = ParameterWalk(model, origin, unit_bits=bits)
    for s, c in taken:
        walk.step(directions.integers(s), c)
    random.shuffle(taken)
    entries = np.array(taken, np.int64).reshape(-1, 2)
    replayed = shifted(origin, directions.combine(entries[:, 0], entries[:, 1]), bits)
    assert walk.weights().numpy().tobytes() == replayed.tobytes()
    assert model.read().sha256() == replayed.sha256()


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_a_probe_is_at_the_weights_and_a_reach_away(distribution):
    """Against exact fractions: start + Σ c·z + ε·z, rounded to float64 and then to float32."""
    model, directions, origin = Quadratic.random(PAIR), family(distribution), start(3)
    bits = 13 + directions.unit_bits
    walk = ParameterWalk(model, origin, unit_bits=bits)
    walk.step(directions.integers(5), -321)
    z, other = directions.integers(9).tolist(), directions.integers(5).tolist()
    epsilon = 2.0**-10 * 2.0**-directions.unit_bits
    loss = walk.loss(BATCH, directions.integers(9), epsilon)
    wanted = [
        np.float32(float(Fraction(w) + Fraction(-321 * o, 2**bits) + Fraction(epsilon) * v))
        for w, o, v in zip(origin.vector().tolist(), other, z, strict=True)
    ]
    assert model.read().vector().tolist() == [float(w) for w in wanted]
    away = model.read().vector().double() - model.targets[0]
    assert loss == pytest.approx(float((away**2).sum() / 2), rel=1e-12)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_a_thousand_rounds_do_not_drift(distribution):
    """The server's span, round by round, a walk of every step, and the exact sum: the same bits."""
    size, rng = 300, np.random.default_rng(0)
    model, directions = Quadratic.random(flat(size)), family(distribution, size)
    origin = AdapterState.from_vector(model.spec, torch.linspace(-1, 1, size))
    bits = 20 + directions.unit_bits
    walk = ParameterWalk(model, origin, unit_bits=bits)
    seeded_state = SeededState(origin, directions, 20, np.zeros(64, np.int64))
    exact = [0] * size
    columns = [directions.integers(s).tolist() for s in range(64)]
    for _ in range(1000):
        change = np.zeros(64, np.int64)
        for s in rng.integers(0, 64, 3).tolist():
            c = int(rng.integers(-32767, 32768))
            change[s] += c
            walk.step(directions.integers(s), c)
            exact = [e + c * z for e, z in zip(exact, columns[s], strict=True)]
        seeded_state = seeded_state.plus(0, change)
    assert walk.offset.tolist() == exact
    assert seeded_state.total.tolist() == exact
    assert walk.weights().numpy().tobytes() == seeded_state.state().tobytes()
    wanted = [
        Fraction(w) + Fraction(e, 2**bits) for w, e in zip(origin.vector().tolist(), exact, strict=True)
    ]
    assert walk.weights().tolist() == [float(np.float32(float(w))) for w in wanted]


def test_no_forward_pass_leaves_a_graph(tmp_path):
    """A real model with parameters that require gradients: nothing is saved, no output has a history."""
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter("lora", "bert"))
    model = federations.adapted(loaded)
    rows = federations.examples(4, language_model=False)
    batch, outputs = collate(rows, 0), []

    class Watched:
        spec, load, write = model.spec, model.load, model.write

        def losses(self, batch):
            outputs.append(model.losses(batch)[0])
            return model.losses(batch)

    def saved(_):
        raise AssertionError("a tensor was saved for backward")

    walk = ParameterWalk(Watched(), model.initial_state(), unit_bits=12)
    z = family("rademacher", model.spec.numel).integers(0)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        with pytest.raises(AssertionError, match="backward"):
            model.forward(batch)  # the hook does fire where there is a graph
        ahead, behind = walk.central(batch, z, 1e-3)
    assert ahead != behind
    assert all(o.grad_fn is None and not o.requires_grad for o in outputs)
    assert not any(m.training for m in model.network.modules())
    walk.weights()
    assert model.read().sha256() == model.initial_state().sha256()
    assert all(p.grad is None for _, p in model.parameters())


def test_a_probe_needs_blocks_not_copies():
    class Nothing:
        spec = flat(4_000_000)
        base = Quadratic(flat(1), [[0.0]])

        def load(self, state):
            pass

        write = load

        def losses(self, batch):
            return self.base.losses(batch)

    walk = ParameterWalk(Nothing(), AdapterState.zeros(Nothing.spec), unit_bits=12)
    z = np.ones(4_000_000, np.int8)
    tracemalloc.start()
    walk.central(BATCH, z, 1e-3)
    walk.step(z, 7)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000  # a byte a value would already be a copy of z


def test_another_spec_is_refused():
    with pytest.raises(SpecMismatch):
        ParameterWalk(Quadratic.random(PAIR), AdapterState.zeros(flat(3)))
