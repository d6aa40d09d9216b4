"""Files that a disk damaged while their process was dead: set aside, made anew, or named; never believed."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet, Trial, eventually, lines, vector

pytestmark = pytest.mark.faults


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def dead_with_a_spool(trial: Trial) -> Path:
    """Kill the daemon while an open round's update is on disk; that update."""
    fleet = trial.fleet
    for _ in range(8):
        eventually(lambda: 0 < len(trial.spool(trial.open_round)) < 3, 60, "an update")
        fleet.daemon.kill()
        if trial.open_round > trial.saved and (found := trial.spool(trial.open_round)):
            return sorted(found)[0]
        begun = trial.round
        fleet.restart_daemon()
        eventually(lambda begun=begun: trial.round > begun, 60, "the next round")
    raise AssertionError("no kill hit an open round")


def test_the_spool_and_the_rounds(fleet, note, outcome):
    trial = Trial(fleet, vector(20))
    trial.reach(2)
    flip(dead_with_a_spool(trial))
    fleet.restart_daemon()
    note("a bit of an accepted update flips while the daemon is dead: asked again")
    trial.reach(trial.round + 2)
    path = dead_with_a_spool(trial)
    path.write_bytes(path.read_bytes()[:100])
    with (trial.folder / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 99, "clie')
    (trial.state / ".checkpoint.safetensors.77.tmp").write_bytes(bytes(1000))
    fleet.restart_daemon()
    note("an accepted update is cut off after 100 bytes while the daemon is dead")
    note("rounds.jsonl ends in half a line, and half a checkpoint lies beside the whole one")
    outcome(trial.ends_right())


def test_files_that_need_a_person(fleet, note, outcome):
    """The run fails with the file's name and what to do; done, it goes on."""
    trial = Trial(fleet, vector(16))
    trial.reach(3)
    dead_with_a_spool(trial)
    for name, hint in (("open_round.json", "Delete"), ("profiles.json", "Delete"), ("checkpoint", "")):
        path = next(trial.state.glob(f"{name}*"))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fleet.restart_daemon()
        _says(trial, path.name)
        assert hint in trial.row().reason
        path.write_bytes(whole)  # from a backup
        with fleet.network.control() as control:
            control.resume(trial.run)
        note(f"{path.name} is cut in half while the daemon is dead: named, put back, resumed")
        with contextlib.suppress(AssertionError):
            trial.reach(trial.round + 1, 30)
        fleet.daemon.kill()
        if name != "checkpoint" and trial.round < 14:
            fleet.restart_daemon()
            dead_with_a_spool(trial)
    fleet.restart_daemon()
    outcome(trial.ends_right())


def _says(trial: Trial, name: str) -> None:
    def said() -> bool:
        row = trial.row()
        return row is not None and row.state == "failed" and name in row.reason

    eventually(said, 60, f"a failure that names {name}", 0.2)


def test_who_is_enrolled(fleet, note, outcome):
    clients = fleet.network.workspace.clients
    trial = Trial(fleet, vector(14))
    trial.reach(3)
    whole = clients.read_bytes()
    clients.write_bytes(whole[:200])
    trial.reach(6)
    note("clients.json is cut off under a running daemon: those known before stay")
    fleet.daemon.kill()
    fleet.restart_daemon()
    eventually(lambda: not fleet.daemon.alive, 60, "the end of a daemon without clients", 0.1)
    assert "clients.json" in fleet.daemon.tail(5)
    clients.write_bytes(whole)
    fleet.restart_daemon()
    note("clients.json is cut off before a start: the daemon names it and ends; put back, it goes on")
    outcome(trial.ends_right())


def test_a_devices_files(fleet: Fleet, note, outcome):
    trial = Trial(fleet, vector(12))
    trial.reach(2)
    agent, state = fleet.agents[2], fleet.device(fleet.names[2]) / "state"
    for _ in range(3):  # the reply is trained and has not left
        fleet.proxy.weather.delay_s = 0.3
        before = {p.name for p in (state / "outbox").glob("*.reply")}
        eventually(
            lambda before=before: {p.name for p in (state / "outbox").glob("*.reply")} - before, 60, "a reply"
        )
        agent.kill()
        fleet.proxy.clear()
        for path in (state / "outbox").glob("*.reply"):
            flip(path)
        (state / "status.json").write_text("{")
        fleet.restart(agent)
        trial.reach(trial.round + 1)
    note("a device's kept replies are damaged while its agent is dead: trained again, same bytes", times=3)
    note("a device's status.json is damaged", times=3)
    agent.kill()
    (state / "usage.json").write_text('{"half')
    fleet.restart(agent)
    eventually((state / "usage.json.damaged").exists, 30, "the damaged file, set aside")
    assert agent.alive
    note("a device's usage.json, which caps its day, is damaged: the agent sets it aside and goes on")
    outcome(trial.ends_right())


def test_a_devices_residual(fleet: Fleet, note, outcome):
    """What a client held back cannot be made anew: it says so, and goes on when it is put back."""
    trial = Trial(fleet, vector(10))
    trial.reach(3)
    agent, name = fleet.agents[1], fleet.names[1]
    agent.kill()
    runs = fleet.device(name) / "state" / "runs"
    path = max(runs.rglob(f"{name}.feedback"), key=lambda p: p.stat().st_mtime)
    whole = path.read_bytes()
    flip(path)
    fleet.restart(agent)
    time.sleep(8)
    held, status = trial.round, fleet.status()
    assert status is not None
    error = next(c.last_error for c in status.clients if c.client == name)
    path.write_bytes(whole)
    note("a device's error feedback is damaged: it says so; put back, it goes on", error[:80])
    assert held < 10
    assert error
    outcome(trial.ends_right())
    assert lines(trial.folder / "rounds.jsonl")


def test_a_devices_states(fleet: Fleet, note, outcome):
    """What a client holds of the global adapter is sent again, in the same round."""
    trial = Trial(fleet, vector(14, more='[codec.down]\nkind = "compeft"\ndensity = 0.05\n'))
    trial.reach(3)
    agent, runs = fleet.agents[1], fleet.device(fleet.names[1]) / "state" / "runs"
    for damage in (flip, Path.unlink):
        agent.kill()
        states = list(runs.rglob("*.state"))
        assert 1 <= len(states) <= 2
        for path in states:
            damage(path)
        fleet.restart(agent)
        trial.reach(trial.round + 2)
    note("the global states that a device holds are damaged, then gone: it is sent all of them", times=2)
    fleet.daemon.kill()
    fleet.restart_daemon()
    note("kill -9 of the daemon of a run whose way down is compressed: it goes on with what clients hold")
    outcome(trial.ends_right())
