"""How long an evaluation is waited for, and what ends the wait: answers, a deadline, a revocation, a stop."""

from __future__ import annotations

import pytest

from headwater.server.answers import Answers, Unmeasured
from headwater.server.events import ClientFailed, Waiting
from headwater.server.monitor import Monitor
from headwater.server.watch import Watch


class Fleet:
    """Members whose comings and goings a test writes down, and the time."""

    def __init__(self, *names):
        self.enrolled, self.here = dict.fromkeys(names), dict.fromkeys(names)
        self.now, self.stop, self.events, self.forgotten = 0.0, False, [], []
        self.exchange = self

    def profiles(self):
        return self.enrolled

    def ready(self):
        return self.here

    def forget_address(self, kind, client):
        self.forgotten.append(client)

    def answers(self, deadline_s=3600.0, *, lasting=True):
        watch = Watch(self.events.append, lambda: self.stop, lambda: self.now)
        return Answers(7, self.enrolled, self, watch, deadline_s, lasting=lasting)

    def lasts(self, answers, seconds):
        """Whether the wait goes on for so long, in steps of five seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now += 5
            if answers.over():
                return False
        return True


def test_at_the_deadline_who_is_missing_is_named():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers(60.0)
    answers.heard("ann")
    assert fleet.lasts(answers, 55)
    assert not fleet.lasts(answers, 5)
    (failed,) = [e for e in fleet.events if isinstance(e, ClientFailed)]
    assert (failed.client, failed.round) == ("bo", 7)
    assert "within 60 s" in failed.reason


def test_who_is_away_is_named_until_it_is_back():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers()
    del fleet.here["bo"]
    assert fleet.lasts(answers, 20)
    fleet.here["bo"] = None
    assert fleet.lasts(answers, 20)
    assert fleet.events == [Waiting(1, 2, ("bo",)), Waiting(2, 2)]


def test_a_revoked_client_is_not_waited_for():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers()
    del fleet.enrolled["bo"]
    assert fleet.lasts(answers, 5)
    assert fleet.forgotten == ["bo"]


def test_a_stop_waits_a_minute_for_who_is_away_and_longer_for_who_works():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers()
    del fleet.here["bo"]
    fleet.stop = True
    assert fleet.lasts(answers, 300)  # ann is at work
    answers.heard("ann")
    with pytest.raises(Unmeasured):
        fleet.lasts(answers, 75)


def test_a_client_that_never_answers_does_not_keep_the_organiser_from_stopping():
    fleet = Fleet("ann")
    answers, fleet.stop = fleet.answers(), True
    with pytest.raises(Unmeasured):
        fleet.lasts(answers, 660)


def test_a_simulation_ends_its_evaluation_before_it_stops():
    fleet = Fleet("ann")
    answers, fleet.stop = fleet.answers(float("inf"), lasting=False), True
    assert fleet.lasts(answers, 5000)


def test_the_status_names_who_is_missing():
    monitor = Monitor(version="1")
    monitor.run_queued("r", "r", 3)
    names = tuple(f"client-{i}" for i in range(9))
    monitor.observer("r")(Waiting(1, 10, names))
    reason = monitor.status().runs[0].reason
    assert reason == f"1 of 10 clients are here, missing: {', '.join(names[:6])} and 3 more"
