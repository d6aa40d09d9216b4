"""Every wait for a client says for whom, on every engine."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from headwater.cli import waits
from headwater.cli.progress import make_observer
from headwater.cli.waits import Waits
from headwater.server.events import (
    ClientAsked,
    ClientDone,
    ClientFailed,
    Evaluating,
    RoundStarted,
    Waiting,
    WaitingFor,
)
from headwater.training.backprop import BackpropTrainer
from tests.support.runs import OWNERS, bare_federation, run, tiny_federation


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told(clock):
    return Waits(clock)


def at(clock, seconds):
    clock.now = seconds


def asked(told, *clients, kind="train"):
    for client in clients:
        told.take(ClientAsked(1, client, kind, 0))


def test_nothing_is_told_before_ten_seconds_and_then_by_name_with_doubling_pauses(clock, told):
    told.take(RoundStarted(1, 2))
    asked(told, "ann", "ben")
    at(clock, 5)
    told.take(ClientDone(1, "ann", 5))
    lines = []
    for second in range(6, 200):
        at(clock, second)
        if text := told.due():
            lines.append((second, text))
    assert [s for s, _ in lines] == [15, 25, 45, 85, 165]
    assert lines[0][1] == "waiting for the update of ben (10 s)"
    assert told.now().startswith("waiting for the update of ben (")


def test_who_answered_or_failed_is_not_waited_for(clock, told):
    asked(told, "ann", "ben")
    told.take(ClientDone(1, "ann", 5))
    told.take(ClientFailed(1, "ben", "why"))
    at(clock, 100)
    assert told.now() == told.due() == ""


def test_an_evaluation_is_a_wait_too_and_the_server_says_who_is_left(clock, told):
    asked(told, "ann")
    told.take(Evaluating(1))
    asked(told, "ann", "ben", kind="evaluate")
    at(clock, 12)
    assert told.now() == "waiting for the evaluation of ann, ben (12 s)"
    told.take(WaitingFor(1, "evaluate", (("ben", "at work"),)))
    assert told.now() == "waiting for the evaluation of ben (12 s)"


def test_who_has_not_come_yet_is_a_wait(clock, told):
    told.take(Waiting(1, 2, ("ben",)))
    at(clock, 11)
    assert told.now() == "waiting for word of ben (11 s)"
    told.take(Waiting(2, 2))
    at(clock, 30)
    assert told.now() == ""


def test_names_are_plain_text(clock, told):
    asked(told, "[red]x\x1b[2J")
    at(clock, 11)
    assert "\x1b" not in told.now()


@pytest.mark.parametrize(("workers", "terminal"), [(1, False), (1, True), (2, True)])
def test_a_client_that_trains_long_is_named_while_it_trains(tmp_path, monkeypatch, workers, terminal):
    """Also where the process that trains is the one that would have to say so."""
    monkeypatch.setattr(waits, "FIRST_LINE_S", 0.05)
    monkeypatch.setattr(waits.Ticker.__init__, "__defaults__", (0.02,))
    out = io.StringIO()
    named = threading.Event()
    original = BackpropTrainer._train

    def slow(self, task, key):
        ends = time.monotonic() + 60
        while task.client == "ben" and not named.is_set() and time.monotonic() < ends:
            time.sleep(0.02)
            if "ben" in out.getvalue().rpartition("waiting for the update of")[2]:
                named.set()
        return original(self, task, key)

    if workers == 1:
        monkeypatch.setattr(BackpropTrainer, "_train", slow)
    console = Console(file=out, force_terminal=terminal, width=150, _environ={"TERM": "xterm-256color"})
    if workers == 1:
        file = tiny_federation(tmp_path / "fed", federation={"rounds": 1})
    else:  # a worker cannot be patched: a vector so long that its work takes the time to be told
        codec = {"up": {"kind": "compeft", "error_feedback": False}}
        file = bare_federation(tmp_path / "fed", size=2_000_000, federation={"rounds": 1}, codec=codec)
    with make_observer(console) as observer:
        from headwater.config import load_federation
        from headwater.server.storage.run_folder import RunFolder
        from headwater.simulation.simulate import simulate

        loaded = load_federation(file)
        folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
        simulate(loaded, folder, observer=observer, workers=workers)
    assert "waiting for the update of" in out.getvalue()
    assert named.is_set() == (workers == 1)


def test_every_engine_tells_whom_it_asks(tmp_path):
    _, events = run(tiny_federation(tmp_path / "fed"), tmp_path / "run")
    for kind in ("train", "evaluate"):
        names = {e.client for e in events if isinstance(e, ClientAsked) and e.kind == kind}
        assert names == set(OWNERS)
