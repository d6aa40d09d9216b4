"""One open round whose clients change under it, or never answer."""

from __future__ import annotations

from dataclasses import replace

from headwater.errors import DecodeError
from headwater.protocol.coordinator import Coordinator, RoundRules
from headwater.protocol.machine import Begin, Close
from headwater.protocol.messages import ClientProfile, TrainRequest
from headwater.server.clients.client_pool import ClientPool
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.rounds.round_driver import DrivenRound, RoundDriver


def profile(name, examples=5):
    return ClientProfile(name, examples, 0, "model", "spec")


class Fleet(ClientPool):
    """Clients that are all there; ``answers`` come one at a time."""

    def __init__(self, *answers, **examples):
        self.known = {name: profile(name, n) for name, n in examples.items()}
        self.answers = [ReceivedReply(a, TrainRequest, 1, b"update", "", 6) for a in answers]

    def profiles(self):
        return self.known

    def ready(self):
        return self.known

    def forget_profile(self, client, error):
        pass

    def poll(self, *kinds):
        if self.answers:
            yield self.answers.pop(0)


def drive(pool, planned, *, need, fold=lambda incoming: None, stop=False, deadline_s=None, replaceable=False):
    """A round of these clients, each planned with 5 examples; its end and who was asked."""
    clock = iter(range(5000))
    coordinator = Coordinator(RoundRules(1, min_clients=need, retry_s=2, deadline_s=deadline_s))
    asked = []
    driven = DrivenRound(
        coordinator,
        pool,
        RunControl(lambda event: None, lambda: stop, lambda: float(next(clock)), deadline_s),
        1,
        {name: profile(name) for name in planned},
        tuple(planned),
        need,
        ask=asked.extend,
        fold=fold,
        replaceable=replaceable,
    )
    actions = coordinator.receive(Begin(1, tuple(planned), 0.0))
    return RoundDriver(driven).run(actions), asked


def test_a_round_does_not_wait_for_a_client_that_has_other_data_now():
    """Its weight is fixed, so whatever it sends is refused: it would be asked again for ever."""

    def fold(incoming):
        if incoming.address == "b":
            raise DecodeError("client b: examples", expected="5", got="7")

    end, asked = drive(Fleet("b", "a", a=5, b=7), "ab", need=1, fold=fold)
    assert isinstance(end, Close)
    assert end.accepted == ("a",)
    assert "it has other data now: 7 examples, not 5" in dict(end.failed)["b"]
    assert asked == ["a", "b"]


def test_as_many_rows_with_other_targets_are_other_data_too():
    pool = Fleet("a", a=5, b=5)
    pool.known["b"] = replace(pool.known["b"], train_targets=9)
    end, _ = drive(pool, "ab", need=1)
    assert "it has other data now: 9 targets, not 0" in dict(end.failed)["b"]


def test_a_round_that_other_data_made_impossible_is_planned_anew():
    end, _ = drive(Fleet("a", a=5, b=7), "ab", need=2)
    assert end is None


def test_what_was_accepted_before_the_data_changed_counts():
    pool = Fleet("b", "a", a=5, b=5)

    def fold(incoming):
        pool.known["b"] = profile("b", 7)

    end, _ = drive(pool, "ab", need=2, fold=fold)
    assert end.accepted == ("a", "b")


def test_a_silent_client_does_not_keep_the_organiser_from_stopping():
    """It is there, so it may be at work; but not for longer than the round's deadline."""
    end, _ = drive(Fleet("a", a=5, b=5), "ab", need=2, stop=True, deadline_s=200.0)
    assert end is None


def failing(incoming):
    if incoming.address == "b":
        raise DecodeError("client b", expected="an update", got="garbage")


def test_another_client_takes_the_place_of_one_that_fails():
    """Else an enrolled client that only sends garbage would hold a round that needs it."""
    end, asked = drive(Fleet("a", "b", a=5, b=5, c=5), ["a", "b"], need=2, fold=failing, replaceable=True)
    assert end is None
    assert set(asked) == {"a", "b"}


def test_another_client_takes_the_place_of_one_that_is_silent_beyond_the_deadline():
    end, _ = drive(Fleet("a", a=5, b=5, c=5), ["a", "b"], need=2, deadline_s=100, replaceable=True)
    assert end is None


def test_without_others_the_round_goes_on_asking():
    pool = Fleet("a", "b", "b", a=5, b=5, c=0)  # c has nothing to train on
    failures = iter([True])

    def fold(incoming):
        if incoming.address == "b" and next(failures, False):
            raise DecodeError("client b", expected="an update", got="garbage")

    end, asked = drive(pool, ["a", "b"], need=2, fold=fold, replaceable=True)
    assert isinstance(end, Close)
    assert end.accepted == ("a", "b")
    assert asked == ["a", "b", "b"]
