"""The global states that clients hold: the last ones stay, and damage is as if they had never been there."""

from __future__ import annotations

import pytest
import torch

from headwater.client.execution import held_states
from headwater.client.execution.held_states import StatesInFolder
from headwater.client.execution.store import DirectoryStore, MemoryStore, SharedStore
from headwater.compression.since import name_of
from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec.of([TensorSpec("v", (20,), "vector"), TensorSpec("w", (2, 3), "head")])


def state(number: int) -> AdapterState:
    return AdapterState.from_vector(SPEC, torch.arange(26.0) + number)


def name(number: int) -> str:
    return name_of(state(number).sha256())


def put(held, number: int, base: int | None = None) -> None:
    held.put(state(number), state(number).sha256(), "" if base is None else name(base))


@pytest.fixture(params=["memory", "folder", "shared"])
def open_store(request, tmp_path):
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    return lambda: DirectoryStore(tmp_path) if request.param == "folder" else SharedStore(tmp_path)


def test_a_state_comes_back_with_its_bits_in_a_later_process(open_store):
    put(open_store().states, 1)
    put(open_store().states, 2, base=1)
    for number in (1, 2):
        assert open_store().states.get(name(number), SPEC).sha256() == state(number).sha256()
    assert open_store().states.get(name(3), SPEC) is None
    other = StateSpec.of([TensorSpec("v", (26,), "vector")])
    assert open_store().states.get(name(1), other) is None


def test_a_device_keeps_two_and_among_them_the_base(tmp_path):
    held = StatesInFolder(tmp_path, durable=True)
    put(held, 1)
    for number in (2, 3, 4):  # the answers do not arrive: the server goes on from the first
        put(held, number, base=1)
        assert len(list(tmp_path.iterdir())) == 2
    assert [number for number in range(1, 5) if held.get(name(number), SPEC)] == [1, 4]
    put(held, 5, base=4)
    put(held, 6)  # whole
    assert [number for number in range(1, 7) if held.get(name(number), SPEC)] == [5, 6]


def test_a_simulations_clients_share_one_copy_and_the_oldest_give_way(tmp_path, monkeypatch):
    monkeypatch.setattr(held_states, "MOST", 3)
    first, second = SharedStore(tmp_path), SharedStore(tmp_path)
    for number in range(6):
        put(first.states, number)
        put(second.states, number)
    assert [number for number in range(6) if second.states.get(name(number), SPEC)] == [3, 4, 5]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"\1", lambda b: b"x" + b[1:]])
def test_a_damaged_file_is_as_if_it_were_not_there_and_is_written_again(tmp_path, damage):
    held = StatesInFolder(tmp_path, durable=False)
    put(held, 1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert held.get(name(1), SPEC) is None
    put(held, 1)
    assert held.get(name(1), SPEC) == state(1)


def test_a_damaged_shared_file_is_as_if_nothing_were_there(tmp_path):
    store = SharedStore(tmp_path)
    (tmp_path / "store.sqlite").write_bytes(b"x" * 5000)
    assert store.states.get(name(1), SPEC) is None
