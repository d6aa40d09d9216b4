"""The coordinator: rounds open, close and stop, under events that drop, delay, duplicate and reorder."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.protocol import coordinator as c
from tests.protocol.rounds import CLIENTS, begin, fold


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
    "rules", [{"min_clients": -1}, {"min_clients": 3, "target": 2}, {"deadline_s": 0.0}, {"retry_s": -1.0}]
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
