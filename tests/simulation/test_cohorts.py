"""``[simulation] cohort``: a round's clients trained as one batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
from safetensors.numpy import load_file

from headwater.client.execution.store import SharedStore
from headwater.config import load_federation
from headwater.errors import ConfigError, ModelError, TrainingError
from headwater.proto.wire import decode_request
from headwater.server.events import ClientDone
from headwater.simulation.workers import WorkerPool
from headwater.simulation.workplace import ThisProcess
from headwater.training.batched.trainer import BatchedBackpropTrainer
from tests.support.runs import bare_federation, resume, run, tiny_federation

COHORT = "simulation.cohort=8"
PAIRS = "simulation.cohort=2"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("f"), federation={"rounds": 2})


@pytest.fixture(scope="module")
def undisturbed(file, tmp_path_factory):
    return run(file, tmp_path_factory.mktemp("r") / "a", COHORT)[0]


def test_a_run_ends_where_clients_one_by_one_end(file, tmp_path):
    dense = ("codec.up={ kind = 'dense' }", "federation.rounds=1")
    run(file, tmp_path / "a", COHORT, *dense)
    run(file, tmp_path / "b", *dense)
    one, other = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in "ab")
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values == pytest.approx(other[name], abs=1e-4)


def test_a_round_that_was_cut_off_trains_the_same_clients_together_again(
    file, undisturbed, tmp_path, monkeypatch
):
    """One has kept what it answered: it is trained beside the others all the same, for their sake."""
    saves, save = [], SharedStore.save

    def killed(self, *arguments):
        saves.append(arguments[0])
        if len(saves) == 5:  # in round 2, after the first client
            raise SystemExit(9)
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SharedStore, "save", killed)
        with pytest.raises(SystemExit):
            run(file, tmp_path / "b", COHORT)
    assert len(set(saves[:3])) == 3
    groups, together = [], BatchedBackpropTrainer._together
    monkeypatch.setattr(
        BatchedBackpropTrainer,
        "_together",
        lambda self, tasks, key: groups.append([t.client for t in tasks]) or together(self, tasks, key),
    )
    summary, _ = resume(tmp_path / "b")
    assert summary["adapter_sha256"] == undisturbed["adapter_sha256"]
    assert [sorted(group) for group in groups] == [["ann", "ben", "cleo"]]


def test_the_size_of_a_cohort_is_part_of_the_run(file):
    plain, cohort, one = (
        load_federation(file, s).sha256() for s in ((), (COHORT,), ("simulation.cohort=1",))
    )
    assert plain == one != cohort


def test_a_client_that_is_a_process_of_its_own_has_no_cohort(file, tmp_path):
    with pytest.raises(ConfigError, match=r"--engine inprocess or ray"):
        run(file, tmp_path / "b", COHORT, engine="network")


class Backwards(ThisProcess):
    """Three at once, of which the last is done first."""

    width = 3

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.waiting, self.done = [], []

    def submit_batch(self, requests):
        future = Future()
        self.waiting.append((future, requests))
        return future

    def result(self, future):
        if not future.done():
            for later, requests in reversed(self.waiting):
                self.done.append([decode_request(*r).client for r in requests])
                later.set_result(super().submit_batch(requests).result())
            self.waiting = []
        return super().result(future)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    owners = {name: 8 + 4 * number for number, name in enumerate(("ann", "ben", "cleo", "dora", "emil"))}
    return tiny_federation(tmp_path_factory.mktemp("many"), owners=owners, federation={"rounds": 2})


@pytest.fixture(scope="module")
def told(many, tmp_path_factory):
    return run(many, tmp_path_factory.mktemp("p") / "a", PAIRS)


@pytest.fixture(scope="module")
def pairs(told):
    return told[0]


def answered(events):
    return [(e.round, e.client) for e in events if isinstance(e, ClientDone)]


def test_neither_who_works_nor_who_is_done_first_changes_a_bit(many, told, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "headwater.simulation.simulate.ThisProcess",
        lambda *arguments: made.append(Backwards(*arguments)) or made[0],
    )
    (here, before), (there, events) = told, run(many, tmp_path / "b", PAIRS)
    # two rounds, evaluated before and after each
    assert made[0].done == 5 * [["emil"], ["cleo", "dora"], ["ann", "ben"]]
    assert answered(events) == answered(before)
    assert there["adapter_sha256"] == here["adapter_sha256"]
    assert there["metric"] == here["metric"]


def test_who_dies_with_a_batch_leaves_it_to_be_trained_again(many, pairs, tmp_path, monkeypatch):
    submit, seen = ThisProcess.submit_batch, []

    def dies(self, requests):
        seen.append(requests)
        answered = submit(self, requests)  # and is never heard
        if len(seen) == 11:  # in round 2: three a training or evaluation, which there is before each
            raise TrainingError("worker process", expected="to live as long as the run", got="its end")
        return answered

    with monkeypatch.context() as patch:
        patch.setattr(ThisProcess, "submit_batch", dies)
        with pytest.raises(TrainingError):
            run(many, tmp_path / "b", PAIRS)
    assert resume(tmp_path / "b")[0]["adapter_sha256"] == pairs["adapter_sha256"]


@pytest.mark.slow
def test_workers_train_whole_batches_to_the_same_bits(many, pairs, tmp_path):
    assert run(many, tmp_path / "b", PAIRS, workers=2)[0]["adapter_sha256"] == pairs["adapter_sha256"]


@pytest.mark.slow
def test_a_worker_that_is_killed_inside_a_batch(many, pairs, tmp_path, monkeypatch):
    submit, seen = WorkerPool.submit_batch, []

    def kills(self, requests):
        future = submit(self, requests)
        seen.append(requests)
        if len(seen) == 11:  # in round 2: three a training or evaluation, which there is before each
            for process in self._executor._processes.values():
                process.kill()
        return future

    with monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "submit_batch", kills)
        with pytest.raises(TrainingError, match="signal SIGKILL"):
            run(many, tmp_path / "b", PAIRS, workers=2)
    found, _ = resume(tmp_path / "b", workers=2)
    assert found["adapter_sha256"] == pairs["adapter_sha256"]


@contextmanager
def ray_nodes(count):
    """The environment of a cluster of so many nodes with a CPU each; of none, where Ray starts its own."""
    if count == 0:
        yield os.environ
        return
    cluster = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1)
        yield os.environ | {"RAY_ADDRESS": cluster.address}
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [0, 2])
def test_ray_trains_whole_batches_to_the_same_bits(many, pairs, tmp_path, nodes):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "headwater", "simulate", str(many), "--engine", "ray", "--set", PAIRS]
    command += ["--out", str(tmp_path / "b"), "--quiet"]
    with ray_nodes(nodes) as environment:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    there = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert there["engine"] == "ray"
    assert there["adapter_sha256"] == pairs["adapter_sha256"]


def test_what_cannot_be_joined_is_refused_before_the_first_round(file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("headwater.training.batched.trial.unstackable", lambda model: "a reason")
        with pytest.raises(ModelError, match=r"got adapter\.kind 'lora', a reason"):
            run(file, tmp_path / "b", COHORT)
    with pytest.raises(ConfigError, match=r"training\.kind 'noop'"):
        run(bare_federation(tmp_path / "bare"), tmp_path / "c", COHORT)
