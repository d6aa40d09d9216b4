"""Agents and their workers are killed with SIGKILL: alone, together, and with the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.fleet import Trial, eventually, vector

pytestmark = pytest.mark.faults


def doing(fleet, name: str) -> str:
    """What the device's own status file says."""
    with contextlib.suppress(OSError):
        return (fleet.device(name) / "state" / "status.json").read_text()
    return ""


def test_while_it_works(tiny, note, outcome):
    trial = Trial(tiny)
    name, agent = tiny.names[0], tiny.agents[0]
    for number in (1, 2):
        eventually(lambda: '"doing": "train"' in doing(tiny, name), 60, "a training")
        worker = tiny.worker(agent)
        agent.kill()
        eventually(lambda w=worker: w is None or _gone(w), 5, "the worker's end")
        tiny.restart(agent)
        trial.reach(number)
    note("kill -9 of an agent while its worker trains a BERT; the worker ends with it", times=2)
    outcome(trial.ends_right())


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    except OSError:
        return True


def test_while_it_uploads(fleet, note, outcome):
    trial = Trial(fleet, vector(6, codec="dense"))
    agent = fleet.agents[-1]
    trial.reach(1)
    before = fleet.proxy.up
    fleet.proxy.weather.bytes_per_s = 400_000
    try:
        eventually(lambda: fleet.proxy.up - before > 200_000, 60, "an upload")
        agent.kill()
        sent = fleet.proxy.up - before
    finally:
        fleet.proxy.clear()
    fleet.restart(agent)
    note("kill -9 of an agent in the middle of an upload", f"after {sent:,} of 800,000 bytes")
    outcome(trial.ends_right())


def test_right_after_its_reply(fleet, note, outcome):
    trial = Trial(fleet, vector(14))
    for number in (3, 6):
        trial.reach(number)
        eventually(lambda: any("client-0001" in p.name for p in trial.spool()), 60, "its reply")
        fleet.agents[1].kill()
        fleet.restart(fleet.agents[1])
    note("kill -9 of an agent right after its update was accepted", times=2)
    outcome(trial.ends_right())


def test_between_training_and_reply(fleet, note, outcome):
    trial = Trial(fleet, vector(10))
    trial.reach(2)
    outbox = fleet.device("client-0002") / "state" / "outbox"
    fleet.proxy.weather.closed = True
    fleet.proxy.reset()
    fleet.proxy.clear()
    fleet.proxy.weather.delay_s = 0.3  # so that the reply is on disk well before it has left
    try:
        before = {p.name for p in outbox.glob("*.reply")}
        eventually(lambda: {p.name for p in outbox.glob("*.reply")} - before, 60, "a trained reply")
        fleet.agents[2].kill()
    finally:
        fleet.proxy.clear()
    fleet.restart(fleet.agents[2])
    note("kill -9 of an agent between its training and its reply")
    outcome(trial.ends_right())


def test_a_worker(tiny, note, outcome):
    trial = Trial(tiny)
    eventually(lambda: '"doing": "train"' in doing(tiny, tiny.names[1]), 60, "a training")
    worker = tiny.worker(tiny.agents[1])
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    note("kill -9 of a worker that trains; its agent starts another")
    outcome(trial.ends_right())


def test_a_worker_that_dies_of_every_attempt(fleet, note, outcome):
    trial = Trial(fleet, vector(12))
    trial.reach(2)
    agent, kills, seen = fleet.agents[0], 0, set()
    ends_s = time.monotonic() + 12
    while time.monotonic() < ends_s and kills < 4:
        worker = fleet.worker(agent)
        if worker is not None and worker not in seen:
            seen.add(worker)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                kills += 1
        time.sleep(0.01)
    assert kills == 4
    note("kill -9 of an agent's worker as soon as there is one, four in a row", times=kills)
    outcome(trial.ends_right())


def test_all_agents(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    for agent in fleet.agents:
        agent.kill()
    for agent in fleet.agents:
        fleet.restart(agent)
    note("kill -9 of all agents at once")
    outcome(trial.ends_right())


def test_all_agents_and_the_daemon(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    for process in (fleet.daemon, *fleet.agents):
        process.kill()
    for agent in fleet.agents:
        fleet.restart(agent)
    fleet.restart_daemon()
    note("kill -9 of the daemon and all agents at once; agents start first")
    trial.reach(8)
    for process in (*fleet.agents, fleet.daemon):
        process.kill()
    fleet.restart_daemon()
    time.sleep(2)
    for agent in fleet.agents:
        fleet.restart(agent)
    note("kill -9 of all agents and the daemon at once; the daemon starts first")
    outcome(trial.ends_right())


def test_an_agent_that_comes_back_later(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    fleet.agents[1].kill()
    time.sleep(20)
    held = trial.round
    fleet.restart(fleet.agents[1])
    note("an agent is away for 20 s after a kill -9; the round waits", f"round {held + 1} open meanwhile")
    assert held < 12
    outcome(trial.ends_right())


def test_an_agent_again_and_again(fleet, note, outcome):
    trial = Trial(fleet, vector(16))
    kills = 0
    for pause_s in (0.3, 1.0, 1.5, 0.6, 2.0, 1.2, 1.8, 0.9):
        time.sleep(pause_s)
        if trial.round >= 16:
            break
        fleet.agents[kills % 3].kill()
        fleet.restart(fleet.agents[kills % 3])
        kills += 1
    note("kill -9 of one agent after the other, every 0.3 to 2 s", times=kills)
    assert kills >= 4
    outcome(trial.ends_right())


def test_agents_before_their_server(fleet, note, outcome):
    fleet.daemon.end()
    for agent in fleet.agents:
        agent.end()
        agent.start()
    time.sleep(6)
    fleet.network.start_daemon()
    note("agents start 6 s before their server")
    outcome(Trial(fleet).ends_right())
