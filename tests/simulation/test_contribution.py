"""What owners bring to a run: of the sums, without another training, and without a changed bit."""

from __future__ import annotations

import itertools
import json
from math import fsum

import pytest

from headwater.config import load_federation
from headwater.errors import ConfigError
from tests.support.runs import OWNERS, run, tiny_federation


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    home = tmp_path_factory.mktemp("measured")
    file = tiny_federation(home, contribution={"kind": "shapley", "every": 1})
    run(file, home / "run", "federation.rounds=2", "evaluation.clients=false")
    return home / "run"


def test_values_sum_to_what_the_round_gained(measured):
    records = lines(measured)
    for before, after in itertools.pairwise(records):
        found = after["contribution"]
        assert sorted(found["values"]) == sorted(OWNERS)
        assert found["gain"] == pytest.approx(after["test"]["accuracy"] - before["test"]["accuracy"])
        assert fsum(found["values"].values()) == pytest.approx(found["gain"], abs=1e-12)
        assert (found["evaluations"], found["merges"]) == (8, 7)  # all subsets of three
    assert "What each brought" in (measured / "report.html").read_text()


def test_no_bit_of_the_run_changes(measured, tmp_path):
    file = tiny_federation(tmp_path)
    run(file, tmp_path / "plain", "federation.rounds=2", "evaluation.clients=false")
    assert [r["state_sha256"] for r in lines(measured)] == [
        r["state_sha256"] for r in lines(tmp_path / "plain")
    ]


def test_groups_are_one_player_and_a_rule_that_keeps_updates_is_measured_as_well(tmp_path):
    first, *others = sorted(OWNERS)
    table = {"kind": "leave-one-out", "every": 2, "groups": {"others": others}}
    file = tiny_federation(tmp_path, contribution=table, strategy={"kind": "ties"})
    run(file, tmp_path / "run", "federation.rounds=2", "evaluation.clients=false")
    records = lines(tmp_path / "run")
    assert "contribution" not in records[1]
    assert sorted(records[2]["contribution"]["values"]) == sorted([first, "others"])


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"contribution": {"kind": "shapley", "groups": {"g": ["a"], "h": ["a"]}}}, "two groups"),
        ({"contribution": {"kind": "shapley", "groups": {"a": ["a"]}}}, "a group and a client"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, tables, said):
    with pytest.raises(ConfigError, match=said):
        load_federation(tiny_federation(tmp_path, **tables))


def test_players_that_take_too_much_memory_are_refused():
    from headwater.config.contribution import ContributionSettings
    from headwater.merging.mean import MeanAggregator
    from headwater.merging.plan import MergePlan
    from headwater.server.rounds.contribution import PlayerSums
    from headwater.state import StateSpec, TensorSpec

    spec = StateSpec((TensorSpec("v", (100_000,), "vector"),))
    settings = ContributionSettings(kind="shapley", max_kept_mb=1)
    with pytest.raises(ConfigError, match="max_kept_mb"):
        PlayerSums(MeanAggregator(), MergePlan(spec, {"a": 1, "b": 1}, 1.0), settings)
