"""Disks that fill up in the middle and are freed later: small file systems of the tests' own."""

from __future__ import annotations

import contextlib
import shutil
import time

import pytest

from tests.faults.conftest import can_mount
from tests.faults.fleet import Trial, eventually, vector

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not can_mount(), reason="no mounts here")]


@contextlib.contextmanager
def full(folder):
    """Every byte of the folder's file system is taken."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0")
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def small_disk(fleet):
    """The first agent, stopped, and its state on a disk of 24 MB of its own; at the end all is as it was."""
    agent, state = fleet.agents[0], fleet.device(fleet.names[0]) / "state"
    agent.end()
    moved = state.with_name("moved")
    state.rename(moved)
    state.mkdir()
    fleet.mount(state, 24)
    shutil.copytree(moved, state, dirs_exist_ok=True)
    state.chmod(0o700)
    try:
        yield agent, state
    finally:
        agent.end()
        fleet.unmount(state)
        shutil.rmtree(state)
        moved.rename(state)
        agent.start()


def test_of_the_server_freed_after_a_restart(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    with full(fleet.network.workspace.path):
        eventually(lambda: (row := trial.row()) is not None and row.state == "failed", 60, "it says so", 0.2)
        saved, row = trial.saved, trial.row()
        fleet.daemon.kill()
    assert saved >= 3
    fleet.restart_daemon()
    note("the server's disk is full; freed, and the daemon is killed and started", str(row.reason)[:60])
    found = trial
    if (state := _state_once_up(trial)) == "failed":
        with fleet.network.control() as control:
            control.resume(trial.run)
    outcome(found.ends_right() | {"said": f"was {state} after the start"})


def _state_once_up(trial: Trial) -> str:
    eventually(lambda: trial.row() is not None, 60, "the daemon's answer", 0.2)
    row = trial.row()
    assert row is not None
    return row.state


def test_of_the_server_freed_while_it_runs(fleet, note, outcome):
    """It tries again by itself, once a minute."""
    trial = Trial(fleet)
    trial.reach(3)
    with full(fleet.network.workspace.path):
        eventually(lambda: (row := trial.row()) is not None and row.state == "failed", 60, "it says so", 0.2)
        assert trial.saved >= 3
    note("the server's disk is full, then freed: the run goes on by itself", f"checkpoint {trial.saved}")
    ends_s = time.monotonic() + 90
    while time.monotonic() < ends_s:
        row = trial.row()
        if row is not None and row.state != "failed":
            break
        time.sleep(0.5)
    outcome(trial.ends_right())


def test_of_a_device(fleet, note, outcome):
    with small_disk(fleet) as (agent, state):
        agent.start()
        trial = Trial(fleet)
        trial.reach(3)
        with full(state):
            time.sleep(6)
            held = trial.round
        note("a device's disk is full for 6 s, then freed", f"in round {held + 1}")
        found = trial.ends_right()
        outcome(found)


def test_of_a_device_while_it_starts(fleet, note, outcome):
    with small_disk(fleet) as (agent, state):
        with full(state):
            agent.start()
            trial = Trial(fleet, vector(6), wait=False)
            time.sleep(8)
        if not agent.alive:
            fleet.restart(agent)
        note("an agent is started with its disk full")
        outcome(trial.ends_right())
