"""Processes that stand still for a while (SIGSTOP), and processes that are told to end (SIGTERM)."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.fleet import Trial, eventually, stopped, vector

pytestmark = pytest.mark.faults


def test_the_daemon_stands_still(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    with stopped(fleet.daemon.pid):
        time.sleep(12)
    note("SIGSTOP of the daemon for 12 s in the middle of a run")
    trial.reach(7)
    for _ in range(5):
        with stopped(fleet.daemon.pid):
            time.sleep(0.7)
        time.sleep(0.2)
    note("SIGSTOP of the daemon for 0.7 s, again and again", times=5)
    outcome(trial.ends_right())


def test_an_agent_stands_still(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    with stopped(fleet.agents[0].pid):
        time.sleep(10)
    note("SIGSTOP of an agent for 10 s")
    trial.reach(6)
    for agent in fleet.agents:
        os.kill(agent.pid, signal.SIGSTOP)
    time.sleep(6)
    for agent in fleet.agents:
        os.kill(agent.pid, signal.SIGCONT)
    note("SIGSTOP of all agents for 6 s")
    outcome(trial.ends_right())


def state_of(fleet, name: str) -> str:
    status = fleet.status()
    return "" if status is None else next(c.state for c in status.clients if c.client == name)


def test_an_agent_stands_still_beyond_its_time(fleet, note, outcome):
    """After 90 s without a word it is offline; then it goes on as if nothing had been."""
    trial = Trial(fleet)
    trial.reach(3)
    with stopped(fleet.agents[0].pid):
        eventually(lambda: state_of(fleet, fleet.names[0]) == "offline", 110, "offline", 0.5)
        time.sleep(3)
        held = trial.round
    note("SIGSTOP of an agent until it is offline, after 90 s, and 3 s more", f"in round {held + 1}")
    assert held < 12
    outcome(trial.ends_right(60))


def test_the_daemon_stands_still_for_100_s(fleet, note, outcome):
    """Longer than the agents' timeout and than the time after which they count as offline."""
    trial = Trial(fleet)
    trial.reach(3)
    with stopped(fleet.daemon.pid):
        time.sleep(100)
    note("SIGSTOP of the daemon for 100 s")
    outcome(trial.ends_right(75))


def test_a_worker_stands_still(tiny, note, outcome):
    trial = Trial(tiny)
    trial.reach(1)
    worker = tiny.worker(tiny.agents[2])
    assert worker is not None
    with stopped(worker):
        time.sleep(8)
    note("SIGSTOP of a worker for 8 s")
    outcome(trial.ends_right())


def test_the_daemon_stands_still_and_dies(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(4)
    with stopped(fleet.daemon.pid):
        time.sleep(3)
        fleet.daemon.kill()
    fleet.restart_daemon()
    note("SIGSTOP of the daemon, then kill -9 while it stands still")
    outcome(trial.ends_right())


def test_the_daemon_is_told_to_end(fleet, note, outcome):
    trial = Trial(fleet, vector(16))
    trial.reach(3)
    assert fleet.daemon.end() == 0
    fleet.restart_daemon()
    note("SIGTERM of the daemon in a round, and start", "it ended with 0")
    trial.reach(8)
    eventually(lambda: trial.open_round > trial.saved, 60, "an open round")
    os.kill(fleet.daemon.pid, signal.SIGTERM)
    time.sleep(0.05)
    fleet.daemon.kill()
    fleet.restart_daemon()
    note("SIGTERM of the daemon, and kill -9 while it ends")
    outcome(trial.ends_right())


def test_an_agent_is_told_to_end(fleet, note, outcome):
    trial = Trial(fleet, vector(16))
    trial.reach(3)
    assert fleet.agents[0].end() == 0
    fleet.restart(fleet.agents[0])
    note("SIGTERM of an agent, and start", "it ended with 0")
    trial.reach(7)
    worker = fleet.worker(fleet.agents[1])
    assert worker is not None
    os.kill(worker, signal.SIGTERM)
    note("SIGTERM of a worker")
    outcome(trial.ends_right())
