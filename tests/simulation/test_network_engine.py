"""Engine ``network``: its children end with it, a resume takes over what is left, nobody is waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from headwater.config import load_federation
from headwater.errors import FederationStopped, StorageError
from headwater.protocol.control import WatchEvent
from headwater.server.events import ClientFailed, Waiting
from headwater.server.workspace.run_queue import RunQueue
from headwater.server.workspace.steering import CHANGEABLE
from headwater.server.workspace.workspace import Workspace
from headwater.simulation.local_ports import free_ports, move_to_free_ports
from headwater.simulation.network_engine import _run
from headwater.simulation.network_follow import RESTARTS, Follower, held
from tests.support.command import headwater
from tests.support.runs import bare_federation, run, tiny_federation
from tests.support.tensorboard import steps


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_ends_with_its_parent_however_that_ends(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from headwater.simulation.network import LocalProcess\n"
        "p = LocalProcess(['simulate', '--help'], Path(sys.argv[1])); p.start(); p.process.wait()\n"
        "import subprocess, os\n"
        "c = 'import headwater.cli.main as m, time; m.main = lambda a: time.sleep(600);'\n"
        "c += 'from headwater.cli.child import main; main([sys.argv[1]])'\n"
        "q = subprocess.Popen([sys.executable, '-c', 'import sys;' + c, str(os.getpid())])\n"
        "print(q.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert "usage: headwater simulate" in (tmp_path / "log").read_text()
    parent.kill()
    parent.wait()
    while alive(child):  # the test's limit of time is the limit
        time.sleep(0.05)


def test_ports_that_are_taken_are_changed_in_all_files(tmp_path):
    import socket

    old = free_ports()
    addresses = [f"127.0.0.1:{port}" for port in old]
    fleet, control, web = addresses
    Workspace.init(tmp_path / "server", names=["localhost"], fleet=fleet, control=control, web=web)
    agent = tmp_path / "devices" / "ann" / "agent.toml"
    agent.parent.mkdir(parents=True)
    agent.write_text(f'server = "localhost:{old[0]}"\n')
    assert move_to_free_ports(tmp_path) == old
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", old[0]))
        taken.listen()
        new = move_to_free_ports(tmp_path)
    assert new[0] != old[0]
    assert new[1:] == old[1:]
    assert agent.read_text() == f'server = "localhost:{new[0]}"\n'
    assert Workspace.open(tmp_path / "server").settings.listen.fleet == f"127.0.0.1:{new[0]}"


class FakeNetwork:
    """Two agents and a daemon, none of them real."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []
        process = SimpleNamespace(returncode=3)
        self.agents = {
            name: SimpleNamespace(alive=True, process=process, start=lambda: None, tail=lambda n: "why")
            for name in ("ann", "ben")
        }
        self.daemon = SimpleNamespace(
            alive=True, process=SimpleNamespace(returncode=None), tail=lambda: "last words"
        )

    def run_folder(self, run):
        return self.folder

    def control(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def change(self, run, changes):
        self.asked.append(("change", changes))

    def watch(self, after, ended):
        return iter(())

    def revoke(self, name):
        self.asked.append(("revoke", name))


@pytest.fixture
def follower(tmp_path):
    loaded = load_federation(tiny_federation(tmp_path / "fed"))
    events = []
    made = Follower(FakeNetwork(tmp_path / "run"), "r-1", loaded, events.append, lambda: False)
    made.events = events
    return made


def row(state="running", asked=0, accepted=0):
    return SimpleNamespace(run="r-1", state=state, reason="", asked=asked, accepted=accepted)


def status(row, **versions):
    clients = [
        SimpleNamespace(client=name, version=version, state="online", doing="idle")
        for name, version in versions.items()
    ]
    return SimpleNamespace(runs=[row], clients=clients)


def failed(client, number):
    text = f"round {number}: client {client}: its data are wrong"
    return WatchEvent(1, 0.0, "client", "r-1", text, {"client": client, "round": number, "failed": 1})


def test_no_round_begins_before_everybody_has_said_what_it_has(follower):
    follower.hold()
    assert follower._network.asked == [("change", {"min_clients": "3"})]
    follower._step(status(row("waiting"), ann="1", ben=""))
    assert [e.missing for e in follower.events if isinstance(e, Waiting)] == [("ben",)]
    assert len(follower._network.asked) == 1
    follower._step(status(row("waiting"), ann="1", ben="1"))
    assert follower._network.asked[-1] == ("change", {"min_clients": "1"})


@pytest.mark.parametrize(
    "tables",
    [
        {"cohort": {"clients_per_round": 1}},
        {"cohort": {"clients_per_round": 2, "target_clients": 1}},
        {"schedule": {"kind": "buffered", "buffer": 1}},
        {
            "strategy": {"kind": "mean", "weighting": "equal"},
            "cohort": {"clients_per_round": 1, "population": 2},
            "codec": {"up": {"kind": "dense"}},
            "privacy": {
                "clip_l2": 0.5,
                "noise_multiplier": 1.0,
                "delta": 1e-3,
                "mechanism": "tree",
                "min_separation": 2,
            },
        },
    ],
    ids=["cohort", "target", "buffer", "turns"],
)
def test_what_holds_a_run_back_is_a_file_that_fits_together(tmp_path, tables):
    file = bare_federation(tmp_path, **tables)
    found = held(load_federation(file).settings)
    load_federation(file, [f"{CHANGEABLE[name]}=3" for name in found])
    assert load_federation(file, [f"{CHANGEABLE[name]}={value}" for name, value in found.items()])


def test_one_who_is_refused_is_lost_by_name_and_the_others_begin(follower):
    follower._events.put(failed("ben", 0))
    follower._step(status(row("waiting"), ann="1", ben=""))
    assert [(e.round, e.client) for e in follower.events if isinstance(e, ClientFailed)] == [(0, "ben")]
    assert "its data are wrong" in follower.lost["ben"]
    assert follower._network.asked[-1] == ("change", {"min_clients": "1"})


def test_all_refused_end_the_run_with_that_reason(follower):
    for name in ("ann", "ben"):
        follower._events.put(failed(name, 0))
    with pytest.raises(FederationStopped, match="all 2 failed the same way: client ann: its data are wrong"):
        follower._step(status(row("waiting"), ann="", ben=""))


def test_all_failing_in_the_first_round_end_the_run_with_that_reason(follower):
    follower._step(status(row(), ann="1", ben="1"))
    follower._step(status(row(asked=2), ann="1", ben="1"))
    follower._told = 0
    follower._step(status(row(asked=2), ann="1", ben="1"))
    for name in ("ann", "ben"):
        follower._events.put(failed(name, 1))
    with pytest.raises(FederationStopped, match=r"round 1.*all 2 failed the same way: client ann"):
        follower._step(status(row(asked=2), ann="1", ben="1"))


@pytest.mark.parametrize("told", ["at once", "a moment later"])
def test_a_run_that_failed_for_want_of_a_disk_ends_as_with_the_other_engines(follower, monkeypatch, told):
    """The code of what failed comes as an event, and earlier failures of the run count no more."""

    def event(number, state, code):
        return WatchEvent(number, 0.0, "error", "r-1", state, {"state": state, "code": code})

    follower._events.put(event(1, "failed", "HW08"))
    follower._step(status(row("waiting"), ann="1", ben=""))
    follower._events.put(event(2, "queued", ""))
    full, late = event(3, "failed", "HW11"), [event(3, "failed", "HW11")]
    if told == "at once":
        follower._events.put(full)
    else:
        monkeypatch.setattr(time, "sleep", lambda seconds: late and follower._events.put(late.pop()))
    ended = row("failed")
    ended.reason = "writing checkpoint: expected room, got No space left on device."
    with pytest.raises(StorageError, match=r"No space left on device\. Mend it, then --resume"):
        follower._step(status(ended, ann="1", ben=""))


def test_a_run_that_failed_otherwise_has_stopped(follower, monkeypatch):
    monkeypatch.setattr("headwater.simulation.network_follow.EVENT_S", 0.0)
    with pytest.raises(FederationStopped, match="expected it to go on"):
        follower._step(status(row("failed"), ann="1", ben=""))


def test_an_agent_that_does_not_stay_is_lost_with_its_last_words(follower):
    follower._step(status(row(), ann="1", ben="1"))
    follower._network.agents["ben"].alive = False
    for _ in range(RESTARTS):
        follower._step(status(row(), ann="1", ben="1"))
        assert not follower.lost
    follower._step(status(row(), ann="1", ben="1"))
    assert follower.lost == {"ben": "its agent ended, exit code 3: why"}
    assert follower._network.asked[-1] == ("revoke", "ben")


@pytest.mark.parametrize(("asked", "code", "stops"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_a_daemon_that_heeds_the_same_stop_has_not_failed(follower, asked, code, stops):
    """systemd and Slurm signal every process of a job, in whatever group it is."""
    follower._network.daemon.alive, follower._network.daemon.process.returncode = False, code
    follower._should_stop = lambda: asked
    if stops:
        follower.follow()
    else:
        with pytest.raises(FederationStopped, match=r"got its end\. last words"):
            follower.follow()


def test_a_resume_does_not_end_by_the_pause_that_an_interrupted_start_asked_for(tmp_path):
    """A second Ctrl-C ends the daemon while the pause of the first one is still to come."""
    loaded = load_federation(tiny_federation(tmp_path / "fed"))
    server = Workspace.init(tmp_path / "server", names=["localhost"])
    book = RunQueue(server.runs_book, server.runs)
    run, _ = book.submit(loaded.to_toml(), loaded.folder)
    book.begin(run.run)
    entry = book.request_stop(run.run, "pause")

    class Started(Exception):
        pass

    def start_daemon():
        left = RunQueue(server.runs_book, server.runs).get(run.run)
        assert (left.state, left.stop_request) == ("running", "")
        raise Started

    network = SimpleNamespace(agents={}, workspace=server, start_daemon=start_daemon)
    with pytest.raises(Started):
        _run(network, entry, loaded, lambda event: None, lambda: False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_run_that_was_killed_or_stopped_is_resumed_to_the_same_bits(tmp_path, number):
    file = tiny_federation(tmp_path / "fed", federation={"rounds": 4}, training={"epochs": 5.0})
    whole, _ = run(file, tmp_path / "whole")
    out = tmp_path / "run"
    tracked = ["--set", "trackers=[{ kind = 'tensorboard' }]"]
    command = [sys.executable, "-m", "headwater", "simulate", str(file), "--engine", "network", *tracked]
    process = subprocess.Popen([*command, "--out", str(out)], start_new_session=True)
    while not any(p.read_text().count("\n") > 1 for p in out.glob("network/server/runs/*/rounds.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, number)
    code = process.wait()
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    if code == 0:
        assert (out / "adapter" / "adapter_config.json").exists()
    assert headwater("simulate", "--resume", out, "--engine", "inprocess").code == 2
    done = headwater("simulate", "--resume", out)
    assert done.code == 0, done.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["adapter_sha256"] == whole["adapter_sha256"]
    assert (summary["engine"], summary["lost"], summary["failures_total"]) == ("network", {}, 0)
    assert steps(out / "tensorboard") == [0, 1, 2, 3, 4]
