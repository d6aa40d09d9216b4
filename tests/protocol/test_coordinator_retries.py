"""The coordinator: enough updates, retries, revoked and returning clients, accepted ones."""

from __future__ import annotations

import pytest

from headwater.errors import ConfigError
from headwater.protocol import coordinator as c
from tests.protocol.rounds import CLIENTS, begin, fold


def test_enough_updates_close_the_round():
    machine = c.Coordinator(c.RoundRules(5, target=2))
    begin(machine)
    assert fold(machine, "cleo") == []
    needless = (("ben", "not needed: enough updates were in"),)
    assert fold(machine, "ann") == [c.Close(1, ("ann", "cleo"), needless, last=False, spared=("ben",))]


def test_enough_updates_wait_for_a_reply_being_folded():
    machine = c.Coordinator(c.RoundRules(5, target=1, retry_s=1))
    begin(machine)
    machine.receive(c.Arrived("ben", 1))
    assert fold(machine, "ann") == []
    assert machine.receive(c.Arrived("cleo", 1)) == [c.Discard("cleo", 1, "answered already")]
    (close,) = machine.receive(c.Failed("ben", 1, "garbage"))
    assert close.accepted == ("ann",)
    assert dict(close.failed) == {"ben": "garbage", "cleo": "not needed: enough updates were in"}


def test_accepted_updates_of_an_earlier_process_count_and_are_not_asked_for():
    machine = c.Coordinator(c.RoundRules(5, min_clients=3, retry_s=1))
    assert machine.receive(c.Begin(1, CLIENTS, 0, ("ben",))) == [c.Ask("ann", 1), c.Ask("cleo", 1)]
    assert machine.receive(c.Arrived("ben", 1)) == [c.Discard("ben", 1, "answered already")]
    assert fold(machine, "ann") == []
    assert fold(machine, "cleo") == [c.Close(1, CLIENTS, (), last=False)]


@pytest.mark.parametrize(
    ("target", "failed"), [(None, ()), (2, (("cleo", "not needed: enough updates were in"),))]
)
def test_a_round_may_close_as_it_begins(target, failed):
    machine = c.Coordinator(c.RoundRules(1, target=target))
    clients = CLIENTS if target else CLIENTS[:2]
    assert machine.receive(c.Begin(1, clients, 0, ("ben", "ann"))) == [
        c.Close(1, ("ann", "ben"), failed, last=True, spared=tuple(client for client, _ in failed))
    ]


def test_an_accepted_update_of_a_client_that_is_revoked_by_now_counts():
    machine = c.Coordinator(c.RoundRules(1, min_clients=2, retry_s=1))
    assert machine.receive(c.Begin(1, ("ben",), 0, ("ann",))) == [c.Ask("ben", 1)]
    assert fold(machine, "ben") == [c.Close(1, ("ann", "ben"), (), last=True)]


def test_a_client_named_twice_is_asked_once():
    assert begin(c.Coordinator(c.RoundRules(1)), clients=("ann", "ann")) == [c.Ask("ann", 1)]


def test_a_failed_client_is_asked_again_with_doubled_pauses():
    machine = c.Coordinator(c.RoundRules(1, min_clients=3, retry_s=10))
    begin(machine)
    now = 0
    for pause in (10, 20, 40, 80, 160, 160, 160):
        assert machine.receive(c.Failed("ann", 1, "no network")) == []
        assert machine.receive(c.Tick(now + pause - 0.1)) == []
        now += pause
        assert machine.receive(c.Tick(now)) == [c.Ask("ann", 1)]
        assert machine.receive(c.Tick(now)) == []
    fold(machine, "ann")
    fold(machine, "ben")
    assert fold(machine, "cleo") == [c.Close(1, CLIENTS, (), last=True)]


def test_a_persistent_round_stays_open_until_enough_were_accepted():
    machine = c.Coordinator(c.RoundRules(1, min_clients=2, deadline_s=100, retry_s=10))
    begin(machine)
    fold(machine, "ann")
    machine.receive(c.Failed("ben", 1, "disk full"))
    assert machine.receive(c.Failed("cleo", 1, "gone")) == []
    assert set(machine.receive(c.Tick(100))) == {c.Ask("ben", 1), c.Ask("cleo", 1)}  # and 100 s more
    machine.receive(c.Failed("cleo", 1, "still gone"))
    assert machine.receive(c.Tick(119)) == []
    assert machine.receive(c.Tick(120)) == [c.Ask("cleo", 1)]
    assert fold(machine, "ben") == []
    assert machine.receive(c.Tick(199.9)) == []
    (close,) = machine.receive(c.Tick(200))
    assert close == c.Close(
        1, ("ann", "ben"), (("cleo", "no answer within 200 s; before: still gone"),), last=True
    )


def test_nobody_is_asked_again_once_enough_have_answered():
    machine = c.Coordinator(c.RoundRules(2, min_clients=2, retry_s=10))
    begin(machine)
    machine.receive(c.Failed("cleo", 1, "gone"))
    fold(machine, "ann")
    assert fold(machine, "ben") == [c.Close(1, ("ann", "ben"), (("cleo", "gone"),), last=False)]
    assert machine.receive(c.Tick(1000)) == []


def test_time_that_goes_back_brings_nothing_forward():
    machine = c.Coordinator(c.RoundRules(1, min_clients=3, retry_s=10))
    begin(machine, now_s=100)
    machine.receive(c.Tick(50))
    machine.receive(c.Failed("ann", 1, "x"))
    assert machine.receive(c.Tick(109)) == []
    assert machine.receive(c.Tick(110)) == [c.Ask("ann", 1)]


def test_a_revoked_client_is_not_asked_again_and_its_accepted_update_stays():
    machine = c.Coordinator(c.RoundRules(1, min_clients=1, retry_s=10))
    begin(machine)
    fold(machine, "ann")
    assert machine.receive(c.Gone("ann", 1, "revoked")) == []
    machine.receive(c.Failed("ben", 1, "no network"))
    assert machine.receive(c.Gone("ben", 1, "revoked")) == []
    assert machine.receive(c.Joined("ben", 1)) == machine.receive(c.Tick(1000)) == []
    assert machine.receive(c.Gone("cleo", 0, "revoked")) == []  # of another round
    (close,) = machine.receive(c.Gone("cleo", 1, "revoked"))
    assert close == c.Close(1, ("ann",), (("ben", "revoked"), ("cleo", "revoked")), last=True)


def test_an_update_being_folded_when_its_client_is_revoked_stays_or_fails_for_good():
    machine = c.Coordinator(c.RoundRules(1, min_clients=1, retry_s=10))
    begin(machine, clients=("ann", "ben", "cleo"))
    for name in ("ann", "ben"):
        machine.receive(c.Arrived(name, 1))
        assert machine.receive(c.Gone(name, 1, "revoked")) == []
    machine.receive(c.Folded("ann", 1))
    machine.receive(c.Failed("ben", 1, "garbage"))
    assert machine.receive(c.Tick(1000)) == []
    assert fold(machine, "cleo") == [c.Close(1, ("ann", "cleo"), (("ben", "garbage"),), last=True)]


def test_a_client_that_comes_back_is_asked_at_once():
    machine = c.Coordinator(c.RoundRules(1, min_clients=3, retry_s=1000))
    begin(machine)
    assert machine.receive(c.Joined("ann", 1)) == []  # it was asked and has not failed
    machine.receive(c.Failed("ann", 1, "not there"))
    assert machine.receive(c.Joined("ann", 2)) == machine.receive(c.Joined("stranger", 1)) == []
    assert machine.receive(c.Joined("ann", 1)) == [c.Ask("ann", 1)]
    assert machine.receive(c.Joined("ann", 1)) == []
    assert fold(machine, "ann") == []
    assert machine.receive(c.Joined("ann", 1)) == []


def test_reports_about_another_round_change_nothing():
    machine = c.Coordinator(c.RoundRules(2, retry_s=10))
    begin(machine, round=2, clients=("ann",))
    assert machine.receive(c.Failed("ann", 1, "x")) == machine.receive(c.Tick(1000)) == []
    machine.receive(c.Arrived("ann", 2))
    assert machine.receive(c.Folded("ann", 1)) == []
    assert machine.receive(c.Folded("ann", 2)) == [c.Close(2, ("ann",), (), last=True)]


def test_a_deadline_is_not_extended_for_a_fold_that_may_be_enough():
    machine = c.Coordinator(c.RoundRules(1, deadline_s=10, retry_s=99))
    begin(machine)
    machine.receive(c.Arrived("ann", 1))
    assert machine.receive(c.Tick(10)) == []
    assert machine.receive(c.Folded("ann", 1)) == []
    (close,) = machine.receive(c.Tick(10))
    assert close.accepted == ("ann",)


def test_nobody_is_asked_again_for_a_round_that_only_waits_for_a_fold():
    machine = c.Coordinator(c.RoundRules(1, target=1, retry_s=10))
    begin(machine)
    machine.receive(c.Failed("ann", 1, "x"))
    machine.receive(c.Arrived("ben", 1))
    fold(machine, "cleo")
    assert machine.receive(c.Joined("ann", 1)) == machine.receive(c.Tick(1000)) == []
    assert machine.receive(c.Folded("ben", 1)) == [c.Close(1, ("ben", "cleo"), (("ann", "x"),), last=True)]


def test_reachable_says_when_too_many_are_revoked():
    machine = c.Coordinator(c.RoundRules(1, min_clients=2, retry_s=10))
    begin(machine)
    assert machine.reachable == 3
    fold(machine, "ann")
    machine.receive(c.Failed("ben", 1, "x"))
    machine.receive(c.Gone("ann", 1, "revoked"))
    assert machine.reachable == 3
    machine.receive(c.Gone("ben", 1, "revoked"))
    machine.receive(c.Gone("cleo", 1, "revoked"))
    assert machine.phase is c.Phase.OPEN
    assert machine.reachable == 1
    once = c.Coordinator(c.RoundRules(1, min_clients=3))
    begin(once)
    once.receive(c.Failed("ben", 1, "x"))
    assert once.reachable == 2


def test_a_persistent_round_does_not_begin_with_too_few():
    machine = c.Coordinator(c.RoundRules(1, min_clients=3, retry_s=10))
    with pytest.raises(ConfigError, match="at least 3 clients"):
        begin(machine, clients=("ann", "ben"))
    assert machine.phase is c.Phase.IDLE
    assert machine.receive(c.Begin(1, ("ann", "ben"), 0, ("cleo",)))
