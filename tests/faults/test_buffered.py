"""Asynchronous rounds: their result depends on time, so the law is another: no update counts twice."""

from __future__ import annotations

import time

import pytest

from tests.faults.fleet import Trial, lines, stopped, vector

pytestmark = pytest.mark.faults
ASYNC = vector(14, least=1, more='[schedule]\nkind = "buffered"\nbuffer = 2')


def each_once(trial: Trial) -> dict[str, str]:
    """All versions are there, each of two updates, and no update is in two of them."""
    trial.end()
    rows = lines(trial.folder / "rounds.jsonl")
    assert [row["round"] for row in rows] == list(range(15))
    folded = [
        (client, row["round"] - entry["staleness"])
        for row in rows[1:]
        for client, entry in row["clients"].items()
    ]
    assert len(folded) == 28
    assert len(set(folded)) == 28
    return {"said": "14 versions, 28 updates, none twice"}


def test_kills_of_the_daemon(fleet, note, outcome):
    trial = Trial(fleet, ASYNC)
    for number in (2, 5, 9):
        trial.reach(number)
        fleet.daemon.kill()
        fleet.restart_daemon()
    note("buffered: kill -9 of the daemon", times=3)
    outcome(each_once(trial))


def test_kills_of_agents(fleet, note, outcome):
    trial = Trial(fleet, ASYNC)
    for number, agent in zip((2, 5, 8), fleet.agents, strict=True):
        trial.reach(number)
        agent.kill()
        fleet.restart(agent)
    note("buffered: kill -9 of one agent after the other", times=3)
    trial.reach(9)
    with stopped(fleet.agents[0].pid):
        time.sleep(4)
    note("buffered: SIGSTOP of an agent for 4 s; the others go on", f"round {trial.round}")
    outcome(each_once(trial))
