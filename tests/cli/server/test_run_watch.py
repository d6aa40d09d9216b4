"""``headwater server watch``, on a terminal and into a file."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from headwater.cli.server import run as server_run
from headwater.cli.server import watch as server_watch
from tests.cli.server.folders import HOSTILE
from tests.support.control_port import FakeOrganiser, client_of, serving, until, write_folder
from tests.support.dispositions import started_with_sigint


def watching(folder, *options, ignored=False):
    """``ignored``: as a shell without job control starts what it puts into the background."""
    command = [sys.executable, "-u", "-m", "headwater", "server", "watch", str(folder), *options]
    started = started_with_sigint(command, ignored=ignored)
    return subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def event_of(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()  # it ended
    return json.loads(line)


@pytest.mark.parametrize("ignored", [False, True], ids=["", "SIGINT ignored"])
def test_watch_outlives_the_daemon_and_ends_with_ctrl_c(tmp_path, ignored):
    first, second = FakeOrganiser(), FakeOrganiser()
    first.tell("before")
    with serving(first) as server:
        folder = write_folder(tmp_path / "srv", server.address)
        process = watching(folder, "--json", "--all", ignored=ignored)
        try:
            assert event_of(process)["text"] == "before"
            first.tell("round 1", "round", round=1, value=0.5)
            event = event_of(process)
            assert (event["kind"], event["data"]) == ("round", {"round": 1, "value": 0.5})
            server.stop(0)
            second.tell("after the restart")
            with serving(second, server.address):
                event = event_of(process)
                assert (event["seq"], event["text"]) == (1, "after the restart")
                process.send_signal(signal.SIGINT)
                out, err = process.communicate()
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert "trying again in" in err
    assert "Traceback" not in err
    until(lambda: second.watching == 0)


@pytest.mark.parametrize("terminal", [True, False])
def test_watch_on_a_terminal_and_into_a_file(organiser, server, terminal, monkeypatch, capsys):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=150, height=50, highlight=False)
    monkeypatch.setattr(server_watch, "Console", lambda **_: console)
    monkeypatch.setattr(server_watch, "REFRESH_S", 0.05)
    organiser.tell("hello " + HOSTILE, "client")
    problems = []

    def play():
        try:
            until(lambda: "hello" in out.getvalue())
            asked = organiser.calls.count(("status",))
            if terminal:  # it is kept up to date
                until(lambda: organiser.calls.count(("status",)) > asked + 1)
            server.stop(0)
            until(
                lambda: "trying again" in out.getvalue() + (capsys.readouterr().err if not terminal else "")
            )
        except AssertionError as problem:
            problems.append(problem)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    player = threading.Thread(target=play)
    player.start()
    options = argparse.Namespace(all=True, json=False, words=[], verb="watch")
    assert server_run.watch(client_of(server.address), options) == 0
    player.join(60)
    assert problems == []
    text = out.getvalue()
    assert "[red]x[/red] :smile:\ufffd[2J\ufffd ann online \ufffdgood" in text
    assert ("1 of 2 online" in text) == terminal
    until(lambda: organiser.watching == 0)


def test_watch_begins_with_how_the_runs_stand(tmp_path):
    """A run that waits already has no news; whoever looks is told for whom all the same."""
    organiser = FakeOrganiser()
    why = "1 of the 2 clients that a round needs are here, missing: ben (offline)"
    organiser.runs = (replace(organiser.runs[0], state="waiting", reason=why),)
    with serving(organiser) as server:
        process = watching(write_folder(tmp_path / "srv", server.address))
        try:
            line = process.stdout.readline()
            assert line.startswith(f"run {organiser.runs[0].run}: waiting, round ")
            assert why in line
            process.send_signal(signal.SIGINT)
            assert process.communicate()[0] == ""
        finally:
            process.kill()
