"""The part of the fault tests that every `make test` runs: one run, three kills, nothing lost."""

from __future__ import annotations

import os
import signal

from tests.faults.fleet import Fleet, Trial, eventually, vector


def test_daemon_agent_and_worker_are_killed_in_one_run(tmp_path):
    fleet = Fleet(tmp_path / "fleet")
    try:
        fleet.start()
        trial = Trial(fleet, vector(8))
        trial.reach(1)
        worker = fleet.worker(fleet.agents[0])
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        trial.reach(3)
        fleet.agents[1].kill()
        fleet.restart(fleet.agents[1])
        eventually(lambda: 0 < len(trial.spool()) < 3, 60, "an update on disk")
        fleet.daemon.kill()
        fleet.restart_daemon()
        trial.ends_right()
    finally:
        fleet.close()
