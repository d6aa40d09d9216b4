"""The coordinator under event sequences that drop, delay, duplicate and reorder."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.protocol import coordinator as c

CLIENTS = ("ann", "ben", "cleo")


def begin(machine, round=1, clients=CLIENTS, now_s=0.0):
    return machine.receive(c.Begin(round, clients, now_s))


def test_a_round_that_goes_well():
    machine = c.Coordinator(c.RoundRules(2))
    assert begin(machine) == [c.Ask(name, 1) for name in CLIENTS]
    for name in CLIENTS[:2]:
        assert machine.receive(c.Arrived(name, 1)) == [c.Fold(name, 1)]
        assert machine.receive(c.Folded(name, 1)) == []
    assert machine.receive(c.Arrived("cleo", 1)) == [c.Fold("cleo", 1)]
    assert machine.receive(c.Folded("cleo", 1)) == [c.Close(1, CLIENTS, (), last=False)]
    assert machine.phase is c.Phase.IDLE


def test_deadline_closes_with_who_arrived():
    machine = c.Coordinator(c.RoundRules(5, deadline_s=10))
    begin(machine, now_s=100)
    machine.receive(c.Arrived("ben", 1))
    machine.receive(c.Folded("ben", 1))
    assert machine.receive(c.Tick(109.9)) == []
    (close,) = machine.receive(c.Tick(110))
    assert close.accepted == ("ben",)
    assert dict(close.failed) == dict.fromkeys(("ann", "cleo"), "no answer within 10 s")
    assert machine.receive(c.Arrived("ann", 1)) == [c.Discard("ann", 1, "late: no round is open")]
    begin(machine, round=2)
    assert isinstance(machine.receive(c.Arrived("ann", 1))[0], c.Discard)


def test_deadline_waits_for_a_reply_being_folded():
    machine = c.Coordinator(c.RoundRules(5, deadline_s=10))
    begin(machine)
    machine.receive(c.Arrived("ben", 1))
    assert machine.receive(c.Tick(11)) == []
    (close,) = machine.receive(c.Folded("ben", 1))
    assert close.accepted == ("ben",)


def test_too_few_halt():
    machine = c.Coordinator(c.RoundRules(5, min_clients=2))
    begin(machine)
    machine.receive(c.Arrived("ann", 1))
    machine.receive(c.Folded("ann", 1))
    machine.receive(c.Failed("ben", 1, "no data"))
    (halt,) = machine.receive(c.Failed("cleo", 1, "gone"))
    assert halt == c.Halt(1, ("ann",), (("ben", "no data"), ("cleo", "gone")))


def test_stop_makes_the_open_round_the_last():
    machine = c.Coordinator(c.RoundRules(5))
    begin(machine, clients=("ann",))
    machine.receive(c.Stop("asked"))
    machine.receive(c.Arrived("ann", 1))
    assert machine.receive(c.Folded("ann", 1)) == [c.Close(1, ("ann",), (), last=True)]
    assert machine.stopping


@pytest.mark.parametrize("event", [c.Begin(3, CLIENTS, 0), c.Begin(1, (), 0), c.Begin(0, CLIENTS, 0)])
def test_begin_out_of_order_is_refused(event):
    with pytest.raises(ConfigError):
        c.Coordinator(c.RoundRules(2)).receive(event)


def test_begin_while_open_is_refused():
    machine = c.Coordinator(c.RoundRules(2))
    begin(machine)
    with pytest.raises(ConfigError, match="close before"):
        begin(machine, round=2)


# --- enough, retries, revoked and returning clients, accepted ones ---------------------------------


def fold(machine, name, round=1):
    assert machine.receive(c.Arrived(name, round)) == [c.Fold(name, round)]
    return machine.receive(c.Folded(name, round))


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


def test_rules_change_between_rounds_only():
    machine = c.Coordinator(c.RoundRules(5, min_clients=1))
    begin(machine)
    with pytest.raises(ConfigError, match="close before rules change"):
        machine.reconfigure(rounds=6)
    for name in CLIENTS:
        fold(machine, name)
    machine.reconfigure(rounds=2, min_clients=2, target=2, deadline_s=7.0)
    begin(machine, round=2, now_s=50)
    fold(machine, "ann", 2)
    (halt,) = machine.receive(c.Tick(57))
    assert isinstance(halt, c.Halt)
    machine.reconfigure(rounds=3, deadline_s=None, retry_s=5.0)
    begin(machine, round=3)
    fold(machine, "ann", 3)
    (close,) = fold(machine, "ben", 3)
    assert close.last
    assert machine.receive(c.Stop("asked")) == []
    with pytest.raises(ConfigError, match="at least 3: they are done"):
        machine.reconfigure(rounds=2)
    machine.reconfigure(rounds=3)


@pytest.mark.parametrize(
    "rules", [{"min_clients": 0}, {"min_clients": 3, "target": 2}, {"deadline_s": 0.0}, {"retry_s": -1.0}]
)
def test_rules_that_do_not_fit_are_refused(rules):
    with pytest.raises(ConfigError, match="min_clients ≤ target"):
        c.Coordinator(c.RoundRules(5, **rules))
    with pytest.raises(ConfigError, match="min_clients ≤ target"):
        c.Coordinator(c.RoundRules(5)).reconfigure(**rules)


def test_every_cell_of_the_table_is_filled():
    events = c.Event.__args__
    assert set(c._TRANSITIONS) == set(itertools.product(c.Phase, events))


EVENTS = st.one_of(
    st.builds(c.Arrived, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3)),
    st.builds(c.Folded, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3)),
    st.builds(c.Failed, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3), st.just("why")),
    st.builds(c.Gone, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3), st.just("revoked")),
    st.builds(c.Joined, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3)),
    st.builds(c.Tick, st.floats(0, 50)),
    st.builds(c.Stop, st.just("asked")),
)


@given(st.lists(EVENTS, max_size=60), st.booleans())
@settings(max_examples=300)
def test_each_client_is_folded_once_and_every_round_ends(events, deadline):
    machine = c.Coordinator(c.RoundRules(3, deadline_s=40.0 if deadline else None))
    number, folds, ends = 1, set(), 0
    begin(machine, round=1)
    for event in events:
        for action in machine.receive(event):
            if isinstance(action, c.Fold):
                assert action.round == number
                assert action.client in CLIENTS
                assert (action.client, number) not in folds
                folds.add((action.client, number))
            if isinstance(action, c.Close | c.Halt):
                ends += 1
                heard = set(action.accepted) | {name for name, _ in action.failed}
                assert heard == set(CLIENTS)
                assert not set(action.accepted) & {name for name, _ in action.failed}
                assert all((name, number) in folds for name in action.accepted)
        if machine.phase is c.Phase.IDLE and number < 3:
            number += 1
            begin(machine, round=number)
    for name in CLIENTS:  # whatever came before: one failure each ends what is open
        if machine.phase is c.Phase.OPEN:
            for action in machine.receive(c.Failed(name, number, "end")):
                ends += isinstance(action, c.Close | c.Halt)
    assert machine.phase is c.Phase.IDLE
    assert ends == number


@given(
    st.lists(EVENTS, max_size=60),
    st.sampled_from((None, 15.0)),
    st.integers(1, 3),
    st.sampled_from((None, 3)),
    st.sampled_from((None, 4.0)),
)
@settings(max_examples=500)
def test_no_event_sequence_breaks_a_round(events, deadline_s, least, target, retry_s):
    """Any events at all: who is folded was asked, nobody is accepted twice, ends add up."""
    machine = c.Coordinator(
        c.RoundRules(3, min_clients=least, target=target, deadline_s=deadline_s, retry_s=retry_s)
    )
    number, asked, open_folds, accepted, gone = 0, set(), set(), set(), set()

    def check(actions, event):
        nonlocal open_folds
        for action in actions:
            if isinstance(action, c.Ask):
                assert action.client not in asked | open_folds | accepted | gone
                assert isinstance(event, c.Begin | c.Tick | c.Joined)
                assert retry_s is not None or isinstance(event, c.Begin)
                asked.add(action.client)
            elif isinstance(action, c.Fold):
                assert action.client in asked
                asked.discard(action.client)
                open_folds.add(action.client)
            elif isinstance(action, c.Close | c.Halt):
                assert not open_folds
                assert set(action.accepted) == accepted
                failed = [name for name, reason in action.failed if reason]
                assert sorted([*action.accepted, *failed]) == sorted(CLIENTS)
                assert isinstance(action, c.Close) == (len(accepted) >= least)
                assert retry_s is None or isinstance(action, c.Close)

    for event in events:
        if machine.phase is c.Phase.IDLE:
            if number == 3:
                break
            number += 1
            asked, open_folds, accepted, gone = set(), set(), set(), set()
            start = c.Begin(number, CLIENTS, 0.0)
            check(machine.receive(start), start)
        current = getattr(event, "round", number) == number
        if current and isinstance(event, c.Folded) and event.client in open_folds:
            open_folds.discard(event.client)
            accepted.add(event.client)
        if current and isinstance(event, c.Failed | c.Gone):
            asked.discard(event.client)
        if current and isinstance(event, c.Failed):
            open_folds.discard(event.client)
        if current and isinstance(event, c.Gone):
            gone.add(event.client)
        check(machine.receive(event), event)


@pytest.mark.parametrize(("deadline_s", "closes_at"), [(50.0, 50.0), (200.0, 200.0)])
def test_another_deadline_holds_for_the_open_round_from_its_beginning(deadline_s, closes_at):
    machine = c.Coordinator(c.RoundRules(5, retry_s=60.0, deadline_s=100.0))
    begin(machine, now_s=0.0)
    fold(machine, "ann")
    machine.receive(c.Tick(40.0))
    machine.retime(deadline_s=deadline_s, retry_s=60.0)
    assert machine.receive(c.Tick(closes_at - 1)) == []
    (close,) = machine.receive(c.Tick(closes_at))
    assert isinstance(close, c.Close)


def test_a_shorter_pause_brings_who_failed_forward_at_once():
    machine = c.Coordinator(c.RoundRules(5, min_clients=len(CLIENTS), retry_s=600.0))
    begin(machine, now_s=0.0)
    machine.receive(c.Failed("ann", 1, "no memory"))
    machine.receive(c.Tick(10.0))
    machine.retime(deadline_s=None, retry_s=5.0)
    assert machine.receive(c.Tick(14.0)) == []
    assert machine.receive(c.Tick(15.0)) == [c.Ask("ann", 1)]


@pytest.mark.parametrize(
    "times", [{"deadline_s": -1.0, "retry_s": 60.0}, {"deadline_s": 5.0, "retry_s": None}]
)
def test_times_that_no_rules_have_are_refused_and_change_nothing(times):
    machine = c.Coordinator(c.RoundRules(5, retry_s=60.0, deadline_s=100.0))
    begin(machine)
    with pytest.raises(ConfigError):
        machine.retime(**times)
    fold(machine, "ann")
    assert machine.receive(c.Tick(99.0)) == []
    assert machine.receive(c.Tick(100.0))


@given(
    first=st.floats(1, 1000),
    second=st.floats(1, 1000),
    at=st.floats(0, 900),
    step=st.sampled_from([1.0, 7.5]),
)
def test_a_round_whose_deadline_was_changed_ends_as_if_it_had_always_been_so(first, second, at, step):
    """At the first look after the new deadline, or at once where that has passed."""
    machine = c.Coordinator(c.RoundRules(1, retry_s=60.0, deadline_s=first))
    begin(machine)
    fold(machine, "ann")
    now = 0.0
    while now + step <= min(at, first - 1e-6):
        now += step
        assert machine.receive(c.Tick(now)) == []
    machine.retime(deadline_s=second, retry_s=60.0)
    while now + step < second:
        now += step
        assert machine.receive(c.Tick(now)) == []
    (close,) = machine.receive(c.Tick(now + step))
    assert isinstance(close, c.Close)
    assert close.accepted == ("ann",)
