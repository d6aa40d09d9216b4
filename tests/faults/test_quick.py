"""The part of the fault tests that every `make test` runs: one run, three kills, nothing lost."""

from __future__ import annotations

import os
import signal

from tests.faults.fleet import Fleet, Trial, eventually, vector

SMALL = vector(5, clients=2, least=2, size=20_000)


def test_daemon_agent_and_worker_are_killed_in_one_run(tmp_path):
    """A worker and another device's agent die while both are at work, then the daemon with half a round."""
    fleet = Fleet(tmp_path / "fleet", toml=SMALL)
    try:
        fleet.network.start_daemon()
        trial = Trial(fleet, wait=False)  # before the agents: none of them polls as if nothing were to do
        for agent in fleet.agents:
            agent.start()
        trial.reach(1)
        worker = fleet.worker(fleet.agents[0])
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        fleet.agents[1].kill()
        fleet.restart(fleet.agents[1])
        eventually(lambda: trial.saved >= 1 and len(trial.spool(trial.open_round)) == 1, 110, "half a round")
        fleet.daemon.kill()
        held = trial.saved
        fleet.restart_daemon()
        assert 1 <= held < 5
        trial.ends_right()
    finally:
        fleet.close()
