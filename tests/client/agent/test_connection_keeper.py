"""The connection keeper without threads: its pauses, and what it says of a refusal."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from headwater.client.agent.connection_keeper import ConnectionKeeper, for_a_person
from headwater.errors import ConnectionLost, Refused
from tests.client.agent.fakes import LOST, no


class Beat:
    def __init__(self, *script) -> None:
        self.script = deque(script)
        self.calls: list[str] = []

    def activate(self):
        self._next("activate")

    def heartbeat(self):
        self._next("heartbeat")

    def _next(self, name):
        self.calls.append(name)
        error = self.script.popleft()
        if error:
            raise error


def kept(*script, draw=lambda: 1.0):
    """Run a connection keeper over a script of answers: its pauses, calls and lines."""
    beat, stop, log, pauses = Beat(*script), threading.Event(), [], []
    connection_keeper = ConnectionKeeper(beat, log.append, stop, threading.Lock(), draw=draw)

    def wait(seconds):
        pauses.append(seconds)
        if not beat.script:
            stop.set()

    connection_keeper._wait = wait
    connection_keeper.run()
    return connection_keeper, [p for p in pauses if p], beat.calls, log


def test_pauses_grow_to_a_minute_and_start_again_after_a_success():
    _, pauses, _, log = kept(*[LOST] * 8, None, None, LOST, None)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 10, 10, 1, 10]
    assert sum("no connection" in line for line in log) == 2, "once for each time it was lost"


def test_jitter_is_full():
    _, pauses, _, _ = kept(*[LOST] * 4, None, draw=lambda: 0.25)
    assert pauses == [0.25, 0.5, 1, 2, 10]


@pytest.mark.parametrize(
    ("status", "seconds", "says"),
    [
        (403, 66, "revoked or not yet accepted"),
        (409, 330, "another agent runs"),
        (426, 330, "another version"),
    ],
)
def test_refusals_for_a_person(status, seconds, says):
    connection_keeper, pauses, calls, log = kept(None, LOST, no(status), None)
    assert pauses == [10, 1, seconds, 10]
    assert calls == ["activate", "heartbeat", "activate", "activate"]
    assert any(says in line and f"{status} because" in line for line in log)
    assert connection_keeper.state == "connected"


def test_a_403_out_of_the_blue_is_asked_again_soon():
    """A server whose clock was set says so a second later; a device that is revoked is told so again."""
    _, pauses, _, log = kept(None, no(403), no(403), None)
    assert pauses == pytest.approx([10, 3.3, 66, 10])
    assert len([line for line in log if "revoked" in line]) == 1


def test_other_refusals_back_off_like_a_lost_connection():
    _, pauses, _, log = kept(no(413), None)
    assert pauses == [1, 10]
    assert "the connection failed" in log[0]


def test_words_of_a_refusal_decide_nothing():
    assert for_a_person(no(403))
    assert not for_a_person(Refused("x", got="403 y"))
    assert not for_a_person(ConnectionLost("x", got="403 y"))
