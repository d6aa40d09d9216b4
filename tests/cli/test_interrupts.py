"""Signals as shells and schedulers send them: inherited dispositions, process groups, twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from headwater.cli.interrupts import interruptible
from headwater.cli.main import main
from tests.support.dispositions import started_with_sigint
from tests.support.runs import bare_federation, resume, run, tiny_federation

SETS = ("federation.rounds=1000",)  # so many that none ends before it is told to


@pytest.fixture
def ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_where_it_was_ignored(ignored):
    def interrupt():
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_somebody_elses_handler_stays():
    def theirs(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGINT, theirs)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is theirs
    finally:
        signal.signal(signal.SIGINT, before)


def test_every_command_ends_by_ctrl_c(ignored, monkeypatch, capsys):
    def run(options):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    monkeypatch.setattr("headwater.cli.report.run", run)
    assert main(["report", "nowhere"]) == 130
    assert capsys.readouterr().err == "headwater: interrupted\n"


TELLS_SOON = """
import sys
from headwater.cli import main, waits
waits.FIRST_LINE_S = 0.2
sys.exit(main.main())
"""
"""The command, which names who is waited for after a moment and not after ten seconds."""


class Group:
    """``headwater simulate`` as the leader of a process group, as Slurm, systemd and ``timeout`` have it."""

    def __init__(self, file, out, *options, ignored=False):
        self.out = out
        sets = [word for s in SETS for word in ("--set", s)]
        command = [
            sys.executable,
            "-c",
            TELLS_SOON,
            "simulate",
            str(file),
            "--out",
            str(out),
            *sets,
            *options,
        ]
        self.errors = out.with_name("errors.txt")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                started_with_sigint(command, ignored=ignored),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def rounds(self):
        path = self.out / "rounds.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for_round(self, number):
        while self.rounds() <= number:
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.02)

    def wait_for_line(self, text):
        while text not in self.errors.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.1)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def ended(self):
        out, _ = self.process.communicate()
        err = self.errors.read_text()
        assert "Traceback" not in err
        assert "want of memory" not in err
        return self.process.returncode, out, err

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def states(folder):
    """The hash of the state after each round, the start among them."""
    return [json.loads(line)["state_sha256"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


ENGINES = [
    pytest.param(("--workers", "1"), id="inprocess"),
    pytest.param(("--workers", "2"), id="workers"),
    pytest.param(("--engine", "ray"), id="ray", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", ENGINES)
def test_sigterm_to_the_whole_group_ends_after_the_round_with_an_adapter(tmp_path, options):
    if "ray" in options:
        pytest.importorskip("ray")
    # of workers the question is whether they outlive the signal, and not what they compute
    make = partial(bare_federation, size=100_000) if "2" in options else tiny_federation
    file = make(tmp_path / "fed")
    with Group(file, tmp_path / "run", *options) as group:
        group.wait_for_round(1)
        group.signal(signal.SIGTERM)
        code, out, err = group.ended()
    assert code == 0, err
    assert "Stopped after round" in err
    assert "--resume" in err
    assert out.splitlines()[-1] == str(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    done = summary["rounds"]
    assert 1 <= done < 1000
    assert summary["failures_total"] == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    finished, _ = resume(tmp_path / "run", should_stop=lambda: len(states(tmp_path / "run")) > done + 1)
    assert finished["rounds"] == done + 1
    whole, _ = run(file, tmp_path / "whole", f"federation.rounds={done + 1}")
    assert states(tmp_path / "run") == states(tmp_path / "whole")
    assert finished["adapter_sha256"] == whole["adapter_sha256"]


@pytest.mark.parametrize("options", ENGINES)
def test_a_second_signal_ends_at_once(tmp_path, options):
    if "ray" in options:
        pytest.importorskip("ray")
    file = tiny_federation(tmp_path / "fed")
    with Group(file, tmp_path / "run", *options, "--set", "training.epochs=2000.0", ignored=True) as group:
        group.wait_for_line("waiting for the update of")  # round 1 takes minutes
        group.signal(signal.SIGINT)
        group.wait_for_line("press Ctrl-C again")
        group.signal(signal.SIGINT)
        code, _, err = group.ended()
    assert code == 130, err
    assert err.splitlines()[-1] == "headwater: interrupted"
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_worker_that_is_really_killed_says_so(tmp_path):
    file = tiny_federation(tmp_path / "fed")
    with Group(file, tmp_path / "run", "--workers", "2", "--set", "training.epochs=2000.0") as group:
        group.wait_for_line("waiting for the update of")
        os.kill(workers_of(group.process.pid)[0], signal.SIGKILL)
        group.process.communicate()
        err = group.errors.read_text()
    assert group.process.returncode == 8
    assert "a sudden end by signal SIGKILL, often for want of memory" in err.splitlines()[-1]


def workers_of(parent):
    """The training processes of a command: forked from its child that has imported everything."""
    servers = [pid for pid, command in children(parent) if "forkserver" in command]
    return [pid for server in servers for pid, _ in children(server)]


def children(parent):
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(stat[1]) == parent:
            yield int(folder.name), command


WAITS_FOR_EVER = """
import sys, threading
import headwater.cli.main as command
def stop():
    raise KeyboardInterrupt
command.interruptible = stop
threading.Thread(target=threading.Event().wait).start()
sys.argv = ["headwater", "config", "check", "x.toml"]
print("so far")
sys.exit(command.main())
"""


def test_no_thread_holds_a_command_that_was_interrupted():
    """As those of Ray's engine that wait for what actors were doing when they were ended."""
    done = subprocess.run([sys.executable, "-c", WAITS_FOR_EVER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "so far\n", "headwater: interrupted\n")
