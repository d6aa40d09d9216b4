"""States made of coefficients: drawn as far as they changed, whole after any restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.client.execution.execute import evaluate, execute
from headwater.client.execution.store import DirectoryStore, MemoryStore, SharedStore
from headwater.errors import ConfigError
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import ClientFailure, EncodedUpdate, EvaluateRequest, Payload
from headwater.seeds.directions import Directions
from headwater.seeds.seeded_state import SeededState
from tests.client.execution.seed_requests import fresh, moved, one, request, sent


def stores(tmp_path):
    return [MemoryStore(), DirectoryStore(tmp_path), SharedStore(tmp_path)]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_full_then_incremental_over_restarts(runtime, seeded_state, tmp_path, kind):
    """Each form, in a process that has the last state and in one that has not: the server's bits."""
    store = stores(tmp_path)[kind]
    now, before = moved(seeded_state, 1), None
    living = fresh(runtime)
    for round in range(2, 7):
        payload = sent(now) if before is None else sent(now, before, round - 2)
        wanted = now.state()
        task = request(runtime, wanted, payload, round=round)
        assert living.state(task, store) == wanted
        assert fresh(runtime).state(task, store) == wanted
        before, now = now, moved(now, round)
    assert sorted(store.load_sums("ann")) == [3, 4, 5]


def test_only_what_changed_is_drawn(runtime, seeded_state, monkeypatch):
    drawn = []
    combine = Directions.combine
    count = lambda self, seeds, *rest: drawn.append(len(seeds)) or combine(self, seeds, *rest)  # noqa: E731 - short
    first = seeded_state
    for seed in range(9):
        first = moved(first, seed)
    second = moved(first, 10)
    monkeypatch.setattr(Directions, "combine", count)
    living, store = fresh(runtime), MemoryStore()
    living.state(request(runtime, first.state(), sent(first), round=2), store)
    living.state(request(runtime, second.state(), sent(second, first, 1), round=3), store)
    living.state(request(runtime, second.state(), sent(second), client="ben", round=3), store)
    assert drawn == [64, 10]


def test_sums_that_no_member_could_rebuild_are_refused_by_those_that_followed_too(runtime, seeded_state):
    """The change can be added up, what it makes could not: else two members would disagree."""
    sums = np.ones(64, np.int64)
    sums[3] = 2**45
    change = np.zeros(64, np.int64)
    change[3] = 2**45 + 2**44
    first = SeededState(seeded_state.origin, seeded_state.directions, seeded_state.unit_bits, sums)
    second = SeededState(
        seeded_state.origin, seeded_state.directions, seeded_state.unit_bits, sums + change, first.total
    )
    living, store = fresh(runtime), MemoryStore()
    living.state(request(runtime, first.state(), sent(first), round=2), store)
    task = request(runtime, first.state(), sent(second, first, 1), round=3)
    for member in (living, fresh(runtime)):
        with pytest.raises(ConfigError, match="seed coefficients"):
            member.state(task, store)


def test_a_member_that_was_away_and_another_clients_state(runtime, seeded_state):
    """One process, two clients: what one has told helps nobody to a wrong state."""
    store, one_, two = MemoryStore(), moved(seeded_state, 1), moved(moved(seeded_state, 1), 2)
    three = moved(two, 3)
    living = fresh(runtime)
    living.state(request(runtime, one_.state(), sent(one_), client="ben", round=2), store)
    living.state(request(runtime, two.state(), sent(two, one_, 1), client="ben", round=3), store)
    living.state(request(runtime, one_.state(), sent(one_), client="ann", round=2), store)
    late = request(runtime, three.state(), sent(three, one_, 1), client="ann", round=4)
    assert living.state(late, store) == three.state()
    assert sorted(store.load_sums("ann")) == [1, 3]
    assert sorted(store.load_sums("ben")) == [1, 2]


def test_an_evaluation_continues_and_counts_its_own_round(runtime, seeded_state):
    store, first = MemoryStore(), moved(seeded_state, 1)
    second = moved(first, 2)
    train = request(runtime, first.state(), sent(first), round=2)
    one(execute([train], store, fresh(runtime)))
    task = EvaluateRequest(train.run, 2, "ann", train.spec, second.state().sha256(), sent(second, first, 1))
    assert one(evaluate([task], store, fresh(runtime))).examples > 0
    np.testing.assert_array_equal(store.load_sums("ann")[2], second.sums)


@pytest.mark.parametrize("lost", ["all", "damaged", "another"])
def test_a_lost_base_asks_for_everything(runtime, seeded_state, tmp_path, lost):
    store, first = DirectoryStore(tmp_path), moved(seeded_state, 1)
    second = moved(first, 2)
    full = request(runtime, first.state(), sent(first), round=2)
    fresh(runtime).state(full, store)
    (path,) = tmp_path.iterdir()
    if lost == "all":
        path.unlink()
    elif lost == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        store.save_sums("ann", 1, second.sums)
    task = request(runtime, second.state(), sent(second, first, 1), round=3)
    failure = one(execute([task], store, fresh(runtime)))
    assert isinstance(failure, ClientFailure)
    assert failure.failure == Failure(FailureCode.NEEDS_FULL_STATE, (1,))
    whole = request(runtime, second.state(), sent(second), round=3)
    assert isinstance(one(execute([whole], store, fresh(runtime))), EncodedUpdate)


def test_a_wrong_hash_is_refused_and_nothing_kept(runtime, seeded_state):
    store, first = MemoryStore(), moved(seeded_state, 1)
    living = fresh(runtime)
    task = replace(request(runtime, first.state(), sent(first), round=2), state_sha256="0" * 64)
    assert "global state" in one(execute([task], store, living)).reason
    assert not store.load_sums("ann")
    hostile = request(runtime, first.state(), Payload("seeds.v1", b"\1\0\0\3"), round=2)
    assert isinstance(one(execute([hostile], store, living)), ClientFailure)
    assert living.state(request(runtime, first.state(), sent(first), round=2), store) == first.state()


def test_the_base_stays_while_answers_do_not_arrive(runtime, seeded_state, tmp_path):
    """Killed after storing, before answering, ten times: the server goes on from the same base."""
    base = moved(seeded_state, 1)
    fresh(runtime).state(request(runtime, base.state(), sent(base), round=2), DirectoryStore(tmp_path))
    now = base
    for round in range(3, 13):
        now = moved(now, round)
        task = request(runtime, now.state(), sent(now, base, 1), round=round)
        for _ in range(2):  # the same task again after the kill
            assert fresh(runtime).state(task, DirectoryStore(tmp_path)) == now.state()
    assert sorted(DirectoryStore(tmp_path).load_sums("ann")) == [1, 10, 11]


def test_coefficients_are_kept_before_anything_is_answered(runtime, seeded_state):
    class Full(MemoryStore):
        def save_sums(self, client, version, sums, base=0):
            raise KeyboardInterrupt  # the process ends here

    first = moved(seeded_state, 1)
    task = request(runtime, first.state(), sent(first), round=2)
    with pytest.raises(KeyboardInterrupt):
        list(execute([task], Full(), fresh(runtime)))


def test_a_task_that_comes_again_writes_nothing(runtime, seeded_state, tmp_path):
    store, first = DirectoryStore(tmp_path), moved(seeded_state, 1)
    task = request(runtime, first.state(), sent(first), round=2)
    fresh(runtime).state(task, store)
    (path,) = tmp_path.iterdir()
    before = path.stat()
    fresh(runtime).state(task, store)
    assert path.stat().st_ino == before.st_ino


def test_more_seeds_from_round_to_round(runtime, seeded_state):
    """decomfl's coefficients grow by the round's seeds."""
    store, short = MemoryStore(), moved(seeded_state, 1)
    longer = short.plus(64, np.array([3, -4, 5], np.int64))
    living = fresh(runtime)
    living.state(request(runtime, short.state(), sent(short), round=2), store)
    task = request(runtime, longer.state(), sent(longer, short, 1), round=3)
    assert living.state(task, store) == longer.state() == fresh(runtime).state(task, store)
    again = request(runtime, short.state(), sent(short), client="ben", round=2)
    assert living.state(again, store) == short.state()
