"""How many clients are a batch: measured, halved for want of memory, and the same when a run goes on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.client.execution.runtime import ClientRuntime
from headwater.config import load_federation
from headwater.errors import ConfigError, FederationStopped, StorageError, TrainingError
from headwater.server.events import ClientDone, ClientFailed, Notice
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation import simulate as simulation
from headwater.simulation.cohort_choice import fastest, measured, times
from headwater.simulation.cohort_record import CohortRecord, Halved, Timed
from headwater.training.batched.trainer import BatchedBackpropTrainer
from tests.support.runs import resume, run, tiny_federation

FOURS = "simulation.cohort=4"
AUTO = "simulation.cohort=auto"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    owners = {name: 8 + 4 * number for number, name in enumerate(("ann", "ben", "cleo", "dora", "emil"))}
    return tiny_federation(tmp_path_factory.mktemp("many"), owners=owners, federation={"rounds": 2})


# --- want of memory -------------------------------------------------------------------------------


def trained(record, rounds, limit):
    """What a run with this record trains whose machine takes so many clients at once, by round."""
    found = []

    def train(number, part):
        if len(part) > limit:
            assert len(part) > 1
            for half in record.halve(number, part):
                train(number, half)
        else:
            found.append((number, tuple(part)))

    for number, clients in rounds:
        most = record.most(number)
        for start in range(0, len(clients), most):
            for part in record.parts(number, clients[start : start + most]):
                train(number, part)
    return found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cohort=st.integers(2, 20), sizes=st.lists(st.integers(1, 40), max_size=4), limit=st.integers(1, 20))
def test_a_run_that_goes_on_divides_as_before_whatever_memory_there_is_now(cohort, sizes, limit):
    rounds = [(number, [f"{number}-{k}" for k in range(size)]) for number, size in enumerate(sizes, 1)]
    kept = []
    first = CohortRecord(cohort, keep=lambda content: kept.append(json.loads(json.dumps(content))))
    before = trained(first, rounds, limit)
    assert [name for _, part in before for name in part] == [name for _, own in rounds for name in own]
    assert all(len(part) <= limit for _, part in before)
    last = kept[-1] if kept else {"halved": []}
    again = CohortRecord(cohort, halved=[Halved(**one) for one in last["halved"]])
    assert trained(again, rounds, 10**9) == before
    if len(rounds) > 1 and cohort > limit and len(rounds[0][1]) >= cohort:
        assert again.most(2) <= math.ceil(cohort / 2)


def short_of_memory(monkeypatch, error, limit=2):
    results, tried = BatchedBackpropTrainer._results, []

    def short(self, tasks, training, key):
        tried.append(len(tasks))
        if len(tasks) > limit:
            raise error
        return results(self, tasks, training, key)

    monkeypatch.setattr(BatchedBackpropTrainer, "_results", short)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_want_of_memory_halves_the_batch_and_fails_nobody(file, tmp_path, monkeypatch, error):
    tried = short_of_memory(monkeypatch, error)
    _, events = run(file, tmp_path / "a", FOURS, "federation.rounds=1", "evaluation.every=0")
    assert not [e for e in events if isinstance(e, ClientFailed)]
    assert [e.text for e in events if isinstance(e, Notice) and "4 clients are too many" in e.text]
    assert tried == [4, 2, 2]  # the fifth is alone


def test_a_run_that_goes_on_with_more_memory_divides_as_it_did(file, tmp_path, monkeypatch):
    def crash(event):
        if isinstance(event, ClientDone) and event.round == 2:
            raise SystemExit

    with monkeypatch.context() as patch:
        tried = short_of_memory(patch, MemoryError())
        summary, _ = run(file, tmp_path / "a", FOURS)
        assert tried == [4, 2, 2, 2, 2]  # round 2 begins with pairs
        folder = RunFolder.create(tmp_path / "b", load_federation(file, (FOURS,)), {"engine": "inprocess"})
        with pytest.raises(SystemExit):
            simulation.simulate(load_federation(file, (FOURS,)), folder, observer=crash)
    kept = json.loads((tmp_path / "b" / "state" / "cohorts.json").read_text())
    assert kept == {"cohort": 4, "timed": [], "halved": [{"round": 1, "first": "ann", "clients": 4}]}
    assert resume(tmp_path / "b")[0]["adapter_sha256"] == summary["adapter_sha256"]


def test_a_process_that_can_train_nothing_more_leaves_the_smaller_batches_to_the_next(
    file, tmp_path, monkeypatch
):
    """As oneDNN after an allocation that failed: no primitive of whatever size, with memory there again."""
    with monkeypatch.context() as patch:
        tried = short_of_memory(patch, RuntimeError("could not create a primitive"), limit=0)
        with pytest.raises(TrainingError, match="--resume"):
            run(file, tmp_path / "a", FOURS)
    assert tried == [4, 2]
    kept = json.loads((tmp_path / "a" / "state" / "cohorts.json").read_text())
    assert kept["halved"] == [{"round": 1, "first": "ann", "clients": 4}]
    summary, events = resume(tmp_path / "a")
    assert summary["rounds"] == 2
    assert not [e for e in events if isinstance(e, ClientFailed)]


def test_a_client_that_is_too_large_by_itself_fails_by_name(file, tmp_path, monkeypatch):
    def never(self, tasks, *, key):
        raise MemoryError

    monkeypatch.setattr(BatchedBackpropTrainer, "train", never)
    with pytest.raises(FederationStopped, match="ann"):
        run(file, tmp_path / "a", FOURS)


# --- auto -----------------------------------------------------------------------------------------

STEP = st.floats(1e-4, 10.0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps=st.dictionaries(st.sampled_from([1, 4, 8, 16, 32]), STEP | st.just(math.inf)), budget=STEP)
def test_what_is_chosen_is_never_slower_than_one_by_one(steps, budget):
    steps, spent = {1: 1.0, 4: 1.0, 8: 1.0, 16: 1.0, 32: 1.0} | steps, []

    def seconds(clients):
        found = steps[clients]
        spent.append((clients, 0.0 if found == math.inf else clients * found))
        return found

    timed = times(seconds, [4, 8, 16, 32], budget, lambda: sum(s for _, s in spent))
    chosen = fastest(timed)
    assert chosen == 1 or steps[chosen] < steps[1]
    assert {one.clients for one in timed} <= {n for n, s in steps.items() if s < math.inf}
    impossible = min((n for n, s in steps.items() if s == math.inf), default=99)
    assert all(one.clients < impossible for one in timed)
    if (slower := max(steps.values())) <= 4 * steps[1]:  # a try is at most so much longer than foreseen
        assert sum(s for _, s in spent[1:]) <= budget + 32 * slower


def test_the_fastest_is_taken_and_the_smaller_of_two_alike():
    assert fastest([Timed(1, 10.0), Timed(4, 5.0), Timed(8, 3.0), Timed(16, 4.0)]) == 8
    assert fastest([Timed(1, 10.0), Timed(4, 5.0), Timed(8, 4.9)]) == 4
    assert fastest([Timed(1, 10.0), Timed(4, 9.9)]) == 1
    assert fastest([]) == 1


def test_what_was_measured_is_written_down_and_stays(file, tmp_path, monkeypatch):
    found = CohortRecord(2, [Timed(1, 3.0), Timed(2, 1.5)])
    monkeypatch.setattr(simulation, "measured", lambda runtime, workers: found)
    pairs, _ = run(file, tmp_path / "a", "simulation.cohort=2")
    asked = []
    stopped, events = run(file, tmp_path / "b", AUTO, should_stop=lambda: bool(asked) or asked.append(1))
    assert stopped["rounds"] < 2
    (notice,) = [e.text for e in events if isinstance(e, Notice) and "cohort" in e.text]
    assert "2 clients a batch" in notice
    found = CohortRecord(4, [Timed(1, 3.0), Timed(4, 1.5)])  # of a machine that has other work now
    assert resume(tmp_path / "b")[0]["adapter_sha256"] == pairs["adapter_sha256"]
    path = tmp_path / "b" / "state" / "cohorts.json"
    none = path.read_text().replace('"cohort": 2', '"cohort": 0')
    for damage in (lambda: path.write_text("{}"), lambda: path.write_text(none), path.unlink):
        damage()
        with pytest.raises(StorageError, match=r"cohorts\.json"):
            resume(tmp_path / "b")


def test_the_measurement_tries_sizes_of_this_run_and_moves_nothing(file):
    runtime = ClientRuntime.open(load_federation(file, (AUTO,)))
    before = runtime.context.model.read()
    record = measured(runtime, 1)
    assert {one.clients for one in record.timed} == {1, 4, 5}
    assert record.cohort in (1, 4, 5)
    assert runtime.cohort == 1
    assert torch.equal(before.vector(), runtime.context.model.read().vector())
    record = measured(runtime, 2)
    assert {one.clients for one in record.timed} == {1, 3}


def test_where_there_is_nothing_to_try_the_notice_says_why(tmp_path):
    alone = tiny_federation(tmp_path / "f", owners={"ann": 8}, federation={"rounds": 1})
    _, events = run(alone, tmp_path / "a", AUTO)
    (notice,) = [e.text for e in events if isinstance(e, Notice) and "cohort" in e.text]
    assert notice.startswith("simulation.cohort: 1 clients a batch; few clients, long rows")


@pytest.mark.parametrize("value", ["0", "4097", "true", "2.5", "sometimes"])
def test_another_size_is_refused(file, value):
    with pytest.raises(ConfigError, match=r'simulation\.cohort.*from 1 to 4,096, or "auto"'):
        load_federation(file, (f"simulation.cohort={value}",))
