"""The table at the end of a run, as it is printed."""

import io

import pytest

from headwater.cli.result import result_table
from headwater.cli.tables import show

SUMMARY = {
    "name": "fleet",
    "metric": {"name": "loss", "on": "clients", "start": 1.5, "final": 0.5, "best": 0.25, "best_round": 2},
    "baselines": {},
    "clients": 40,
    "rounds": 12,
    "seconds": 3.0,
    "bytes": {"up": 1_539_401, "up_dense": 144_024_240, "down": 223_258_992, "down_dense": 223_258_992},
    "simulated": {"seconds": 3093.0, "joules": 1e5},
    "adapter_round": 12,
    "adapter_sha256": "b562ba8b56344f0f" * 4,
}


def printed(summary):
    out = io.StringIO()
    show(result_table(summary), out)
    return out.getvalue().splitlines()


def test_what_it_cost_is_one_line_however_narrow_the_table():
    first, *_, last = printed(SUMMARY)
    assert first.rstrip() == "fleet: loss on the clients' validation splits"
    assert last.startswith("40 clients, 12 rounds, 3 s; up 1,539,401 bytes (dense: 144,024,240), down ")
    assert last.rstrip().endswith("adapter of round 12, sha256 b562ba8b56344f0f…")


@pytest.mark.parametrize("baselines", [{}, {"majority": 0.75}])
def test_there_is_a_table_where_something_was_measured(baselines):
    metric = {**SUMMARY["metric"], "start": None, "final": None, "best": None}
    lines = printed({**SUMMARY, "metric": metric, "baselines": baselines})
    assert (len(lines) > 1) == bool(baselines)
    assert any("0.7500" in line for line in lines) == bool(baselines)


def test_the_groups_of_test_rows_have_a_table_of_their_own():
    baselines = {
        "alone": {"a": 3.0, "b": 5.0},
        "alone_groups": {"a": {"facts": 2.0, "rhymes": 4.0}, "b": {"facts": 3.0, "rhymes": 7.0}},
    }
    groups = {
        "facts": {"start": 9.0, "final": 1.5, "best": 1.25},
        "rhymes": {"start": 8.0, "final": None, "best": None},
    }
    lines = printed({**SUMMARY, "baselines": baselines, "groups": groups})
    rows = {line.split()[1]: line.replace("│", " ").split()[1:] for line in lines if line.startswith("│")}
    assert rows["facts"] == ["9.0000", "2.5000", "1.5000", "1.2500"]
    assert rows["rhymes"] == ["8.0000", "5.5000", "–", "–"]
    assert not any("in one place" in line for line in lines)
