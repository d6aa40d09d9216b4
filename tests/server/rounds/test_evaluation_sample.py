"""``[evaluation]`` may ask a few of the clients, drawn by the federation's seed, in some of the rounds."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config import load_federation
from headwater.config.evaluation import EvaluationSettings
from headwater.errors import ConfigError
from headwater.seeds.keys import Key
from headwater.server.rounds.evaluation import drawn
from tests.support.runs import resume, run, tiny_federation

OWNERS = {"ann": 20, "ben": 20, "cleo": 20, "dan": 20, "eve": 20}


def asked(folder):
    """By round, who evaluated; and who is named as not asked."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return {
        line["round"]: (sorted(line.get("clients_each", {})), line.get("not_evaluated", {})) for line in lines
    }


def federation(place, **evaluation):
    tables = {"federation": {"rounds": 4}, "training": {"max_steps": 1}, "cohort": {"clients_per_round": 2}}
    return tiny_federation(place, owners=OWNERS, evaluation=evaluation, **tables)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    place = tmp_path_factory.mktemp("sampled")
    file = federation(place, client_count=2, clients_every=2)
    summary, _ = run(file, place / "run")
    return file, place / "run", summary


def test_two_of_five_are_asked_in_every_other_round_and_nobody_is_missing(sampled):
    _, folder, summary = sampled
    found = asked(folder)
    assert [len(who) for who, _ in found.values()] == [2, 0, 2, 0, 2]
    assert not any(absent for _, absent in found.values())
    assert len({tuple(who) for who, _ in found.values() if who}) > 1  # drawn anew
    assert summary["rounds"] == 4


def test_a_resumed_run_asks_the_same(sampled, tmp_path):
    file, folder, _ = sampled
    lines = tmp_path / "run" / "rounds.jsonl"
    run(file, tmp_path / "run", should_stop=lambda: lines.exists() and lines.read_text().count("\n") > 1)
    assert len(asked(tmp_path / "run")) < 5, "or nothing is resumed"
    resume(tmp_path / "run")
    assert asked(tmp_path / "run") == asked(folder)


def test_the_adapter_does_not_hang_on_who_evaluates(sampled, tmp_path):
    _, _, summary = sampled
    whole, _ = run(federation(tmp_path), tmp_path / "run")
    assert whole["adapter_sha256"] == summary["adapter_sha256"]
    assert [len(who) for who, _ in asked(tmp_path / "run").values()] == [5] * 5


@given(count=st.integers(0, 30), most=st.integers(0, 40), seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_a_draw_has_so_many_in_their_order(count, most, seed):
    clients = [f"c{i}" for i in range(count)]
    found = drawn(clients, most, Key.root(seed))
    assert len(found) == min(count, most)
    assert found == sorted(set(found), key=clients.index)


def test_each_client_is_as_likely():
    clients, times = ["a", "b", "c", "d"], dict.fromkeys("abcd", 0)
    for number in range(2000):
        for client in drawn(clients, 2, Key.root(0).child(number)):
            times[client] += 1
    # 2,000 draws at 1/2: a standard deviation is 22, and six are never left
    assert all(abs(count - 1000) < 6 * 22.4 for count in times.values())


@given(
    round=st.integers(0, 50),
    every=st.integers(1, 7),
    clients=st.integers(0, 200),
    fraction=st.one_of(st.none(), st.floats(0.001, 1.0)),
)
def test_how_many_are_asked(round, every, clients, fraction):
    table = EvaluationSettings(clients_every=every, client_fraction=fraction)
    found = table.most_clients(round, clients, last=False)
    if round % every:
        assert found == 0
        assert table.most_clients(round, clients, last=True) == EvaluationSettings(
            client_fraction=fraction
        ).most_clients(round, clients, last=False)
    elif fraction is None:
        assert found == clients
    else:
        assert fraction * clients <= found < fraction * clients + 1
        assert found <= clients


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("evaluation.client_count=2", "evaluation.client_fraction=0.5"), "say the same"),
        (("evaluation.client_count=2", "evaluation.clients=false"), "asks no client"),
        (("evaluation.client_fraction=0",), "client_fraction"),
        (("evaluation.clients_every=0",), "clients_every"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        load_federation(federation(tmp_path), changes)
