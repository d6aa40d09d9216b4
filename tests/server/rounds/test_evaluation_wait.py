"""How long an evaluation is waited for, and what ends the wait: answers, a deadline, a revocation, a stop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.errors import DecodeError
from headwater.proto.wire import encode_reply
from headwater.protocol.messages import EvaluateRequest, Evaluation
from headwater.server.clients.client_pool import AWAY_S
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Waiting, WaitingFor
from headwater.server.monitoring.monitor import Monitor
from headwater.server.rounds.evaluation import _evaluation
from headwater.server.rounds.evaluation_wait import EvaluationAborted, EvaluationWait


class Fleet:
    """Members whose comings and goings a test writes down, and the time."""

    def __init__(self, *names):
        self.enrolled, self.here = dict.fromkeys(names), dict.fromkeys(names)
        self.now, self.stop, self.events, self.forgotten = 0.0, False, [], []
        self.exchange, self.why = self, {}

    def profiles(self):
        return self.enrolled

    def ready(self):
        return self.here

    def missing(self):
        return {name: self.why.get(name, "offline") for name in self.enrolled if name not in self.here}

    def forget_address(self, kind, client):
        self.forgotten.append(client)

    def answers(self, deadline_s=3600.0, *, lasting=True):
        control = RunControl(self.events.append, lambda: self.stop, lambda: self.now)
        self.deadline_s = deadline_s
        return EvaluationWait(7, self.enrolled, self, control, lambda: self.deadline_s, lasting=lasting)

    def lasts(self, answers, seconds):
        """Whether the wait goes on for so long, in steps of five seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now += 5
            if answers.over():
                return False
        return True


@pytest.mark.parametrize("other", [{"client": "bo"}, {"round": 6}, {"run": "another"}, {"run": ""}], ids=str)
def test_an_evaluation_is_believed_for_its_client_round_and_run_alone(other):
    right = Evaluation("ann", 7, 9, {"loss": 0.5}, "run")

    def received(found):
        data = encode_reply(found)
        return ReceivedReply("ann", EvaluateRequest, 7, data, "", len(data))

    assert _evaluation(received(right), 7, "run") == right
    with pytest.raises(DecodeError, match="client ann: expected its evaluation of round 7"):
        _evaluation(received(replace(right, **other)), 7, "run")


def test_at_the_deadline_who_is_missing_is_named():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers(60.0)
    answers.answered("ann")
    assert fleet.lasts(answers, 55)
    assert not fleet.lasts(answers, 5)
    (failed,) = [e for e in fleet.events if isinstance(e, ClientFailed)]
    assert (failed.client, failed.round) == ("bo", 7)
    assert "within 60 s" in failed.reason


def test_who_is_online_and_cannot_evaluate_is_not_called_offline():
    fleet = Fleet("ann")
    answers = fleet.answers()
    del fleet.here["ann"]
    fleet.why["ann"] = "no room"
    assert fleet.lasts(answers, 15)
    waits = [e.clients for e in fleet.events if isinstance(e, WaitingFor)]
    assert waits == [(("ann", "no room"),)]


def test_who_is_waited_for_is_named_within_fifteen_seconds_and_how_it_stands_with_each():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers()
    del fleet.here["bo"]
    assert fleet.lasts(answers, 15)
    assert fleet.events == [WaitingFor(7, "evaluate", (("ann", "at work"), ("bo", "offline")))]
    fleet.here["bo"] = None
    assert fleet.lasts(answers, 20)
    assert fleet.events[1:] == [WaitingFor(7, "evaluate", (("ann", "at work"), ("bo", "at work")))]
    answers.end()
    assert fleet.events[2:] == [WaitingFor(7, "evaluate", ())]


def test_who_goes_away_is_waited_for_a_minute_and_a_half_and_not_until_the_deadline():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers()
    answers.answered("ann")
    assert fleet.lasts(answers, 50)
    del fleet.here["bo"]
    assert fleet.lasts(answers, AWAY_S)
    fleet.lasts(answers, 15)
    (failed,) = [e for e in fleet.events if isinstance(e, ClientFailed)]
    assert (failed.client, failed.round) == ("bo", 7)
    assert "not back within 90 s" in failed.reason
    assert fleet.forgotten == ["bo"]  # so that nothing is out any more, and the evaluation ends
    assert answers.given_up == {"bo": failed.reason}


def test_who_comes_back_in_time_is_waited_for_anew():
    fleet = Fleet("bo")
    answers = fleet.answers()
    for _ in range(5):
        del fleet.here["bo"]
        assert fleet.lasts(answers, AWAY_S - 10)
        fleet.here["bo"] = None
        assert fleet.lasts(answers, 10)
    assert not [e for e in fleet.events if isinstance(e, ClientFailed)]


def test_a_deadline_that_the_organiser_shortens_holds_for_the_open_evaluation():
    fleet = Fleet("ann")
    answers = fleet.answers(3600.0)
    assert fleet.lasts(answers, 100)
    fleet.deadline_s = 120.0
    assert fleet.lasts(answers, 15)
    assert not fleet.lasts(answers, 10)


def test_a_revoked_client_is_not_waited_for():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers()
    del fleet.enrolled["bo"]
    assert fleet.lasts(answers, 5)
    assert fleet.forgotten == ["bo"]


def test_a_stop_waits_a_minute_for_who_is_away_and_longer_for_who_works():
    fleet = Fleet("ann", "bo")
    answers = fleet.answers()
    fleet.stop = True
    assert fleet.lasts(answers, 300)  # both are at work
    answers.answered("ann")
    del fleet.here["bo"]
    with pytest.raises(EvaluationAborted):
        fleet.lasts(answers, 75)


def test_a_client_that_never_answers_does_not_keep_the_organiser_from_stopping():
    fleet = Fleet("ann")
    answers, fleet.stop = fleet.answers(), True
    with pytest.raises(EvaluationAborted):
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
    assert reason == (
        f"1 of the 10 clients that a round needs are here, missing: {', '.join(names[:6])} and 3 more"
    )


def test_the_status_names_who_an_open_round_waits_for():
    monitor = Monitor(version="1")
    monitor.run_queued("r", "r", 3)
    monitor.run_state("r", "running")
    tell = monitor.observer("r")
    tell(WaitingFor(2, "train", (("ann", "at work"), ("bo", "offline"), ("cy", "offline"))))
    assert monitor.status().runs[0].state == "running"
    reason = monitor.status().runs[0].reason
    assert reason == "round 2 waits for the update of ann (at work), bo, cy (offline)"
    tell(WaitingFor(2, "train", ()))
    assert monitor.status().runs[0].reason == ""
