"""What a client keeps of the adapter to itself, until the server says whether its update counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwater.client.execution.own_part import keep_own, own_spec, trained_with_own, with_own
from headwater.client.execution.store import DirectoryStore, MemoryStore
from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.errors import SpecMismatch, StorageError
from headwater.merging.pairs import shared_tensors
from headwater.protocol.messages import ClientPlan, EvaluateRequest, Payload, TrainRequest
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.aggregator_laws import lora_spec

SPEC = lora_spec(3, 4, 2, head=3)
A, OWN = "q.lora_A", "all but A"


def state(value: float) -> AdapterState:
    return AdapterState(SPEC, {t.name: torch.full(t.shape, value) for t in SPEC})


def request(number: int, accepted: int) -> TrainRequest:
    """Only what is looked at."""
    made = TrainRequest.__new__(TrainRequest)
    for name, value in {"client": "ann", "round": number, "accepted_round": accepted}.items():
        object.__setattr__(made, name, value)
    return made


def evaluation(number: int) -> EvaluateRequest:
    return EvaluateRequest("r" * 32, number, "ann", SPEC.fingerprint(), "", Payload("dense-fp32.v1", b""))


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path / "kept")


def test_all_but_a_is_a_clients_own():
    assert {t.role for t in SPEC} > {"lora_a", "lora_b"}
    assert {t.name for t in own_spec(SPEC, OWN)} == {t.name for t in SPEC} - {A}


def test_own_heads_are_trained_beside_what_the_plan_shares_and_are_not_sent(store):
    heads = {t.name for t in SPEC if t.role == "head"}
    assert heads
    assert set(own_spec(SPEC, "head").by_name) == heads
    assert not len(own_spec(SPEC, "nothing"))
    shared = shared_tensors(SPEC, "head")
    plan = ClientPlan(BackpropTraining(kind="backprop"), DenseCodec(kind="dense"), tensors=shared)
    assert trained_with_own(plan, SPEC, "head").tensors is None
    one = trained_with_own(replace(plan, tensors=(A,)), SPEC, "head")  # B stands still, as in rolora
    assert set(one.tensors) == {A, *heads}
    sent = keep_own(request(1, 0), state(1.0), state(0.5), store, "head")
    assert {name for name in sent if sent[name].any()} == set(shared)
    after = with_own(request(2, 1), state(9.0), store, "head")
    assert all((value == (1.5 if name in heads else 9.0)).all() for name, value in after.items())


def test_the_server_gets_the_change_of_a_and_nothing_of_the_rest(store):
    sent = keep_own(request(1, 0), state(1.0), state(0.5), store, OWN)
    assert (sent[A] == 0.5).all()
    assert not any(sent[name].any() for name in own_spec(SPEC, OWN).by_name)


def test_a_new_client_starts_as_everybody_and_goes_on_with_what_it_learned(store):
    assert with_own(request(1, 0), state(1.0), store, OWN).tobytes() == state(1.0).tobytes()
    keep_own(request(1, 0), state(1.0), state(0.5), store, OWN)
    after = with_own(request(2, 1), state(9.0), store, OWN)
    assert (after[A] == 9.0).all()
    assert all((after[name] == 1.5).all() for name in own_spec(SPEC, OWN).by_name)


def test_an_update_that_was_not_accepted_leaves_the_own_part_as_it_was(store):
    keep_own(request(1, 0), state(1.0), state(0.5), store, OWN)
    started = with_own(request(2, 1), state(1.0), store, OWN)
    keep_own(request(2, 1), started, state(0.25), store, OWN)
    for again in (request(3, 1), request(2, 1)):  # round 2 came to nothing, or is asked again
        found = with_own(again, state(1.0), store, OWN)
        assert all((found[name] == 1.5).all() for name in own_spec(SPEC, OWN).by_name)
    found = with_own(request(3, 2), state(1.0), store, OWN)
    assert all((found[name] == 1.75).all() for name in own_spec(SPEC, OWN).by_name)


def test_an_evaluation_is_with_what_the_client_made_of_that_round(store):
    keep_own(request(4, 0), state(1.0), state(0.5), store, OWN)
    for number, expected in ((3, 1.0), (4, 1.5), (5, 1.5)):
        found = with_own(evaluation(number), state(1.0), store, OWN)
        assert all((found[name] == expected).all() for name in own_spec(SPEC, OWN).by_name)


def test_a_damaged_file_and_one_of_another_adapter_are_refused(tmp_path):
    store = DirectoryStore(tmp_path)
    keep_own(request(1, 0), state(1.0), state(0.5), store, OWN)
    other = StateSpec.of([TensorSpec("b", (2,), "vector")])
    with pytest.raises(SpecMismatch, match=r"remove the client's \.own file"):
        store.load_own("ann", other)
    (path,) = tmp_path.glob("*.own")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="own part"):
        with_own(request(2, 1), state(1.0), store, OWN)
