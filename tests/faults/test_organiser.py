"""The organiser pauses, changes and rolls on while things die: what was asked for is done, once."""

from __future__ import annotations

import pytest

from tests.faults.fleet import Trial, eventually, truth, vector

pytestmark = pytest.mark.faults


def test_pause_set_rounds_and_restart(fleet, note, outcome):
    trial = Trial(fleet, vector(20))
    trial.reach(3)
    with fleet.network.control() as control:
        control.pause(trial.run)
    eventually(lambda: (row := trial.row()) is not None and row.state == "paused", 60, "the pause", 0.1)
    held = trial.round
    fleet.daemon.kill()
    fleet.restart_daemon()
    eventually(lambda: trial.row() is not None, 60, "the daemon's answer", 0.1)
    assert trial.row().state == "paused"
    assert trial.round == held
    with fleet.network.control() as control:
        control.change(trial.run, {"rounds": "9"})
    fleet.daemon.kill()
    fleet.restart_daemon()
    eventually(lambda: trial.row() is not None, 60, "the daemon's answer", 0.1)
    with fleet.network.control() as control:
        control.resume(trial.run)
    note("kill -9 of the daemon in a pause, and again after `set rounds=9`; resumed", f"paused at {held}")
    trial.toml = vector(9)
    outcome(trial.ends_right())


def test_set_rounds_while_it_runs_then_a_kill(fleet, note, outcome):
    trial = Trial(fleet, vector(8))
    trial.reach(2)
    with fleet.network.control() as control:
        control.change(trial.run, {"rounds": "12"})
    fleet.daemon.kill()
    fleet.restart_daemon()
    note("kill -9 of the daemon right after `set rounds=12`")
    trial.toml = vector(12)
    outcome(trial.ends_right())


def test_rollback_then_a_kill(fleet, note, outcome):
    trial = Trial(fleet, vector(16))
    trial.reach(4)
    with fleet.network.control() as control:
        control.rollback(trial.run, 4)
    fleet.daemon.kill()
    fleet.restart_daemon()
    trial.end()
    with fleet.network.control() as control:
        rows = control.adapters(trial.run)
    done = [row for row in rows if row.note.startswith("rollback")]
    note("kill -9 of the daemon right after `adapters rollback`", f"versions {[r.version for r in done]}")
    assert [row.parent for row in done] == [4]
    assert truth(vector(16))[1] != rows[-1].sha256
    outcome({"said": "rolled back once"})
