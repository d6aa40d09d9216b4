"""An owner who is lost is a failure by name: in every round, in the summary, the report and the exit code."""

from __future__ import annotations

import json

import pytest

from headwater.data.federated import FederatedData
from headwater.errors import DataError, FederationStopped, InternalError, OwnersLost
from headwater.server.events import ClientFailed, RoundStarted
from headwater.server.round_record import RoundRecord
from headwater.server.rounds.summary import failures_of, lost_owners
from headwater.training.backprop import BackpropTrainer
from tests.support.command import headwater
from tests.support.federation_text import vector_text
from tests.support.runs import OWNERS, rows, run, tiny_federation, write_jsonl


@pytest.fixture
def file(tmp_path):
    return tiny_federation(tmp_path / "fed")


def records(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def failing(monkeypatch, *clients, error=None, after=0):
    """Let the training of these clients raise, as a library would."""
    original, calls = BackpropTrainer._train, []

    def train(self, task, key):
        if task.client in clients:
            calls.append(1)
            if len(calls) > after:
                raise error or ValueError("All examples must have the same number of <eos> tokens.")
        return original(self, task, key)

    monkeypatch.setattr(BackpropTrainer, "_train", train)


def refusing(monkeypatch, *clients):
    """Let the data of these clients be refused when they are read."""
    original = FederatedData.client

    def client(self, name):
        if name in clients:
            raise DataError(f"row 3 of {name}", expected="room for an answer", got="a prompt of 64 tokens")
        return original(self, name)

    monkeypatch.setattr(FederatedData, "client", client)


@pytest.mark.parametrize(
    "error", [ValueError("odd"), IndexError("far"), KeyError("k"), MemoryError(), TypeError("lib")]
)
def test_a_training_that_raises_is_that_clients_failure(file, tmp_path, monkeypatch, error):
    failing(monkeypatch, "ben", error=error)
    summary, events = run(file, tmp_path / "run")
    assert summary["rounds"] == 3
    assert {(e.round, e.client) for e in events if isinstance(e, ClientFailed)} == {
        (1, "ben"), (2, "ben"), (3, "ben"),
    }  # fmt: skip
    assert [
        {c for c, row in r["clients"].items() if "failed" in row} for r in records(tmp_path / "run")[1:]
    ] == [{"ben"}] * 3
    assert summary["failures_total"] == 3
    assert summary["clients"] == 3
    assert list(summary["lost"]) == ["ben"]
    assert summary["lost"]["ben"]["asked"] == summary["lost"]["ben"]["failed"] == 3
    assert type(error).__name__ in summary["lost"]["ben"]["reason"]
    assert "test_lost_owners.py, line" in summary["lost"]["ben"]["reason"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "lost" in report
    assert type(error).__name__ in report


def test_the_others_bits_are_those_of_a_run_without_the_one_who_raised(tmp_path, monkeypatch):
    file = tiny_federation(tmp_path / "all", evaluation={"clients": False})
    failing(monkeypatch, "ben")
    first, _ = run(file, tmp_path / "a")
    without = tiny_federation(tmp_path / "two", evaluation={"clients": False})
    write_jsonl(without.parent / "train.jsonl", [r for o in ("ann", "cleo") for r in rows(o, OWNERS[o])])
    second, _ = run(without, tmp_path / "b")
    assert first["adapter_sha256"] == second["adapter_sha256"]


def test_refused_data_are_a_failure_of_every_round_by_name(file, tmp_path, monkeypatch):
    refusing(monkeypatch, "ben")
    summary, events = run(file, tmp_path / "run")
    failed = [(e.round, e.client) for e in events if isinstance(e, ClientFailed)]
    assert failed == [(0, "ben"), (1, "ben"), (2, "ben"), (3, "ben")]
    assert [e.clients for e in events if isinstance(e, RoundStarted)] == [3, 3, 3]
    for record in records(tmp_path / "run")[1:]:
        assert set(record["clients"]) == set(OWNERS)
        assert "a prompt of 64 tokens" in record["clients"]["ben"]["failed"]
    assert (summary["clients"], summary["failures_total"]) == (3, 3)
    assert list(summary["lost"]) == ["ben"]


@pytest.mark.parametrize("least", [1, 2])
def test_all_diverging_end_the_run_with_that_reason(tmp_path, least):
    file = tiny_federation(tmp_path / "fed", training={"learning_rate": 1e30}, cohort={"min_clients": least})
    done = headwater("simulate", file, "--out", tmp_path / "run", "--quiet")
    assert done.code == FederationStopped.exit_code
    assert "all 3 failed the same way: client ann" in done.error


def test_all_diverging_in_workers_end_the_run_with_that_reason(tmp_path):
    """Of bare vectors, for which no worker loads a model: the reason comes from another process."""
    file = tmp_path / "f.toml"
    file.write_text(vector_text("far", cohort="min_clients = 2"))
    done = headwater(
        "simulate", file, "--out", tmp_path / "run", "--workers", 2, "--quiet", "--set", "training.scale=1e39"
    )
    assert done.code == FederationStopped.exit_code
    assert "all 2 failed the same way: client client-0000" in done.error


def test_one_lost_owner_is_the_exit_code(file, tmp_path, monkeypatch):
    failing(monkeypatch, "ben")
    done = headwater("simulate", file, "--out", tmp_path / "run")
    assert done.code == OwnersLost.exit_code == 15
    assert done.out.splitlines()[-1] == str(tmp_path / "run")
    last = done.err.splitlines()[-1]
    assert last.startswith("headwater: error HW15: run finished: expected all of its 3 owners")
    assert "1 lost: ben (failed in 3 of 3 rounds; the last time: client ben: " in last
    assert "clients 2/3 (1 failed: ben)" in done.err
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_one_who_came_back_is_a_failure_but_not_lost(file, tmp_path, monkeypatch):
    original, calls = BackpropTrainer._train, []

    def train(self, task, key):
        if task.client == "ben" and not calls.append(1) and len(calls) == 2:
            raise ValueError("once")
        return original(self, task, key)

    monkeypatch.setattr(BackpropTrainer, "_train", train)
    done = headwater("simulate", file, "--out", tmp_path / "run", "--quiet")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (done.code, summary["failures_total"], summary["lost"]) == (0, 1, {})


def test_all_failing_the_same_way_end_the_run_with_that_reason(file, tmp_path, monkeypatch):
    failing(monkeypatch, *OWNERS)
    with pytest.raises(
        FederationStopped, match=r"round 1.*all 3 failed the same way: client ann.*ValueError"
    ):
        run(file, tmp_path / "run")


def test_all_refused_end_the_run_before_the_first_round(file, tmp_path, monkeypatch):
    refusing(monkeypatch, *OWNERS)
    with pytest.raises(FederationStopped, match=r"all 3 failed the same way: ann: .*64 tokens"):
        run(file, tmp_path / "run")


def test_a_defect_of_ours_ends_the_run_and_says_where(file, tmp_path, monkeypatch):
    from headwater.state import AdapterState

    monkeypatch.setattr(BackpropTrainer, "_train", lambda self, task, key: AdapterState.zeros(None))
    with pytest.raises(InternalError, match=r"client ann.*headwater/state.py, line"):
        run(file, tmp_path / "a")
    done = headwater("simulate", file, "--out", tmp_path / "b", "--quiet")
    assert done.code == InternalError.exit_code == 16
    assert "headwater/state.py, line" in done.error
    assert str(tmp_path / "b" / "state" / "traceback.txt") in done.error
    assert "Traceback" in (tmp_path / "b" / "state" / "traceback.txt").read_text()


def test_an_exception_of_the_server_side_is_no_traceback(file, tmp_path, monkeypatch):
    from headwater.server.rounds.open_round import OpenRound

    monkeypatch.setattr(OpenRound, "merge", lambda self, again: {}["nothing"])
    done = headwater("simulate", file, "--out", tmp_path / "run", "--quiet")
    assert done.code == InternalError.exit_code
    assert "KeyError" in done.error


def test_who_was_only_not_needed_is_neither_lost_nor_a_failure():
    rounds = [
        {"round": 1, "clients": {"ann": {}, "ben": {"failed": "x"}}},
        {
            "round": 2,
            "clients": {"ann": {"failed": "not needed", "spared": True}, "ben": {"failed": "y"}, "cleo": {}},
        },
    ]
    assert [(f["round"], f["client"]) for f in failures_of([RoundRecord(r) for r in rounds])] == [
        (1, "ben"),
        (2, "ben"),
    ]
    assert lost_owners([RoundRecord(r) for r in rounds]) == {"ben": {"asked": 2, "failed": 2, "reason": "y"}}
