"""States and specs: strict arithmetic, stable hashes, values that pickle."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from headwater.errors import SpecMismatch
from headwater.state import AdapterState, SparseState, StateSpec, TensorSpec, sparse_state

SPEC = StateSpec.of(
    [TensorSpec("b", (2, 3), "lora_b", pair="a", scaling=2.0), TensorSpec("a", (3,), "lora_a")]
)


def state(start=0.0):
    return AdapterState.from_vector(SPEC, torch.arange(9, dtype=torch.float32) + start)


def test_golden_hashes():
    """What rides in every message must not change silently."""
    assert SPEC.fingerprint() == "ba52c723557177971724973eddb3238cae575424b9c827b2f46c43d449d3453b"
    assert state().sha256() == "20cace9a7624ca40bb734fa67aa75adbf792d8e43f15881199d0d61c5b32bcaf"


def test_flat_copies_only_what_does_not_lie_together():
    together, whole = state(), state().vector()
    assert torch.equal(together.flat(), whole)
    assert together.flat().data_ptr() == together["a"].data_ptr()
    apart = AdapterState(SPEC, {"a": whole[6:], "b": whole[:6].reshape(2, 3)})
    turned = AdapterState(SPEC, {"a": whole[:3], "b": whole[3:].reshape(3, 2).T})
    for other in (apart, turned, AdapterState.zeros(SPEC), AdapterState.zeros(StateSpec(()))):
        assert torch.equal(other.flat(), other.vector())


def test_order_is_by_name_and_vector_is_its_inverse():
    assert list(state()) == ["a", "b"]
    assert torch.equal(state().vector(), torch.arange(9, dtype=torch.float32))
    assert SPEC.numel == 9
    assert SPEC.nbytes == len(state().tobytes()) == 36


def test_arithmetic():
    assert (state(2.0) - state(1.0)).vector().tolist() == [1.0] * 9
    assert state() + AdapterState.zeros(SPEC) == state()
    assert (state() * 2.0)["a"].tolist() == [0.0, 2.0, 4.0]
    assert state(1.0).max_abs() == 9.0
    assert AdapterState.zeros(SPEC).norm() == 0.0
    assert state() != state(1.0)
    assert state() != "state"


@pytest.mark.parametrize(
    "other",
    [
        StateSpec.of([TensorSpec("a", (3,), "lora_a"), TensorSpec("b", (2, 3), "lora_b")]),  # other meaning
        StateSpec.of([TensorSpec("a", (3,), "lora_a")]),
        StateSpec.of(
            [TensorSpec("a", (1,), "lora_a"), TensorSpec("b", (2, 3), "lora_b", "float32", "a", 2.0)]
        ),
    ],
)
def test_other_specs_are_never_broadcast(other):
    with pytest.raises(SpecMismatch):
        state() + AdapterState.zeros(other)
    assert other.fingerprint() != SPEC.fingerprint()


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(3)},
        {"a": torch.zeros(3), "b": torch.zeros(2, 3), "c": torch.zeros(1)},
        {"a": torch.zeros(3), "b": torch.zeros(3, 2)},
        {"a": torch.zeros(3), "b": torch.zeros(2, 3, dtype=torch.float64)},
    ],
)
def test_tensors_must_fit_the_spec(tensors):
    with pytest.raises(SpecMismatch):
        AdapterState(SPEC, tensors)


def test_names_must_be_unique():
    with pytest.raises(SpecMismatch, match="unique"):
        StateSpec.of([TensorSpec("a", (1,), "head"), TensorSpec("a", (1,), "head")])


def test_states_and_specs_pickle():
    assert SPEC.by_name["b"].pair == "a"  # fills the cache
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC
    assert pickle.loads(pickle.dumps(state())) == state()
    assert pickle.loads(pickle.dumps(AdapterState.zeros(StateSpec(())))) == AdapterState.zeros(StateSpec(()))


def test_a_state_pickles_its_values_once():
    """By themselves, 64 parts of one vector would bring it 64 times."""
    spec = StateSpec.of([TensorSpec(f"t{i}", (100,), "head") for i in range(64)])
    whole = AdapterState.from_vector(spec, torch.arange(6400, dtype=torch.float32))
    before = len(pickle.dumps(whole))
    assert whole["t0"][5] == 5.0  # its tensors are made
    assert len(pickle.dumps(whole)) == before < 6400 * 4 + 8000
    few = SparseState(spec, np.array([5, 700]), np.array([1.0, -0.0], np.float32))
    again = pickle.loads(pickle.dumps(few))
    assert isinstance(again, SparseState)
    assert len(pickle.dumps(few)) < 8000
    assert torch.equal(again.vector().view(torch.int32), few.vector().view(torch.int32))


def test_finite():
    assert state().isfinite()
    assert not state().map(lambda v: v / 0).isfinite()


@pytest.mark.parametrize("seed", range(6))
def test_no_number_of_threads_changes_the_norm(seed):
    """Added by torch, two of these six change their last bit."""
    spec = StateSpec((TensorSpec("v", (300_007,), "vector"),))
    values = np.random.default_rng(seed).standard_normal(spec.numel, np.float32)
    state, before, found = (
        AdapterState.from_vector(spec, torch.from_numpy(values)),
        torch.get_num_threads(),
        [],
    )
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(state.norm().hex())
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1
    assert state.norm() == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-13)


def sparse_and_dense(places, entries):
    flat = torch.zeros(9)
    flat[places] = torch.tensor(entries)
    sparse = SparseState(SPEC, np.array(places, np.int64), np.array(entries, np.float32))
    return sparse, AdapterState.from_vector(SPEC, flat)


def test_a_sparse_state_is_the_dense_one_to_whoever_reads_it():
    sparse, dense = sparse_and_dense([1, 5], [2.0, -0.5])
    assert (sparse, sparse.sha256(), list(sparse), len(sparse)) == (dense, dense.sha256(), list(dense), 2)
    sparse, _ = sparse_and_dense([1, 5], [2.0, -0.5])
    assert torch.equal(sparse.flat(), dense.flat())
    assert pickle.loads(pickle.dumps(sparse)) == dense
    assert state() + sparse == state() + dense


@pytest.mark.parametrize("count", [0, 2, 3, 9])
def test_few_values_stay_sparse(count):
    """At most a quarter of the values is held by place; others would take more room so."""
    places = [np.arange(min(count, 3)), np.arange(max(0, count - 3))]
    made = sparse_state(SPEC, places, [np.ones(len(at), np.float32) for at in places])
    assert isinstance(made, SparseState) == (count <= 2)
    assert [float(value.sum()) for value in made.values()] == [min(count, 3), max(0, count - 3)]
