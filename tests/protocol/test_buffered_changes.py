"""Asynchronous versions: revoked clients, other rules, and events that drop, delay, duplicate and reorder."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.protocol import buffered
from headwater.protocol import coordinator as c
from headwater.protocol.buffered import BufferedCoordinator, BufferedRules
from tests.protocol.versions import CLIENTS, begin, fold


def test_revoked_clients_are_out_but_for_what_is_in_the_buffer():
    machine = BufferedCoordinator(BufferedRules(2, buffer=4, min_clients=3, retry_s=5))
    begin(machine, clients=(*CLIENTS, "eve"))
    fold(machine, "ann")
    machine.receive(c.Arrived("ben", 1))
    for name in ("ann", "ben", "cleo"):
        assert machine.receive(c.Gone(name, 1, "revoked")) == []
    assert machine.reachable == 4
    machine.receive(c.Arrived("eve", 1))
    machine.receive(c.Gone("eve", 1, "revoked"))
    machine.receive(c.Failed("eve", 1, "garbage"))
    machine.receive(c.Folded("ben", 1))
    assert machine.receive(c.Arrived("cleo", 1)) == [c.Discard("cleo", 1, "answered already")]
    assert machine.receive(c.Tick(99)) == []
    (close,) = fold(machine, "dora")
    assert close.accepted == ("ann", "ben", "dora")
    assert close.failed == (("cleo", "revoked"), ("eve", "garbage"))


def test_a_revoked_client_in_the_queue_is_never_asked():
    machine = BufferedCoordinator(BufferedRules(2, buffer=4, at_once=1, retry_s=5))
    begin(machine)
    machine.receive(c.Gone("ben", 1, "revoked"))
    assert fold(machine, "ann") == [c.Ask("cleo", 1)]


def test_stop_makes_the_open_version_the_last():
    machine = BufferedCoordinator(BufferedRules(9, buffer=1))
    begin(machine)
    assert machine.receive(c.Stop("asked")) == []
    (close,) = fold(machine, "ann")
    assert close.last
    assert machine.stopping


def test_rules_change_between_versions_and_who_works_goes_on():
    machine = BufferedCoordinator(BufferedRules(9, buffer=1))
    begin(machine)
    with pytest.raises(ConfigError, match="made before rules change"):
        machine.reconfigure(buffer=2)
    fold(machine, "ann")
    with pytest.raises(ConfigError, match="at least 1: they are done"):
        machine.reconfigure(rounds=0)
    machine.reconfigure(buffer=2, rounds=2, max_staleness=5)
    assert begin(machine, 2) == [c.Ask("ann", 2)]
    assert fold(machine, "ben", 1) == []
    (close,) = fold(machine, "cleo", 1)
    assert close.last


@pytest.mark.parametrize(
    "rules",
    [
        {"buffer": 0, "min_clients": 0},
        {"buffer": 2, "min_clients": 3},
        {"buffer": 2, "max_staleness": -1},
        {"buffer": 2, "deadline_s": 0.0},
        {"buffer": 2, "at_once": 0},
    ],
)
def test_rules_that_do_not_fit_are_refused(rules):
    with pytest.raises(ConfigError, match="min_clients ≤ buffer"):
        BufferedCoordinator(BufferedRules(5, **rules))


@pytest.mark.parametrize(
    "event",
    [
        c.Begin(3, CLIENTS, 0),
        c.Begin(0, CLIENTS, 0),
        c.Begin(1, (), 0),
        c.Begin(1, ("ann",), 0),
        c.Begin(1, CLIENTS, 0, ("ann",), (("ann", 2),)),
    ],
)
def test_begin_out_of_order_is_refused(event):
    machine = BufferedCoordinator(BufferedRules(2, buffer=2, min_clients=2, retry_s=1))
    with pytest.raises(ConfigError):
        machine.receive(event)
    begin(machine)
    with pytest.raises(ConfigError, match="before another"):
        begin(machine, 2)


def test_every_cell_of_the_table_is_filled():
    assert set(buffered._TRANSITIONS) == set(itertools.product(c.Phase, c.Event.__args__))


NAMES = st.sampled_from((*CLIENTS, "stranger"))


EVENTS = st.one_of(
    st.builds(c.Arrived, NAMES, st.integers(0, 4)),
    st.builds(c.Folded, NAMES, st.integers(0, 4)),
    st.builds(c.Failed, NAMES, st.integers(0, 4), st.just("why")),
    st.builds(c.Gone, NAMES, st.integers(0, 4), st.just("revoked")),
    st.builds(c.Joined, NAMES, st.integers(0, 4)),
    st.builds(c.Tick, st.floats(0, 50)),
    st.builds(c.Stop, st.just("asked")),
    st.just(None),
)


@given(
    st.lists(EVENTS, max_size=80),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from((None, 15.0)),
    st.sampled_from((None, 4.0)),
    st.sampled_from((None, 1, 2)),
)
@settings(max_examples=500)
def test_no_event_sequence_breaks_a_version(events, buffer, max_staleness, deadline_s, retry_s, at_once):
    """Any events at all: who is folded was asked at that version, and is at most once in a buffer."""
    machine = BufferedCoordinator(
        BufferedRules(
            4,
            buffer=buffer,
            max_staleness=max_staleness,
            deadline_s=deadline_s,
            retry_s=retry_s,
            at_once=at_once,
        )
    )
    version, working, folding, accepted = 0, {}, {}, {}
    for event in events:
        if event is None:  # begin, if that is possible
            if machine.phase is c.Phase.OPEN or version == 4:
                continue
            version += 1
            working = {n: v for n, v in working.items() if version - v <= max_staleness}
            folding, accepted = {}, {}
            event = c.Begin(version, CLIENTS, 0.0)
        name, number = getattr(event, "client", ""), getattr(event, "round", version)
        is_open = machine.phase is c.Phase.OPEN
        if isinstance(event, c.Folded) and folding.get(name) == number:
            accepted[name] = folding.pop(name)
        if isinstance(event, c.Gone) or (isinstance(event, c.Failed) and working.get(name) == number):
            working.pop(name, None)
        if isinstance(event, c.Failed) and folding.get(name) == number:
            folding.pop(name)
        expected = working.get(name) == number
        if isinstance(event, c.Arrived) and expected:
            del working[name]
        for action in machine.receive(event):
            if isinstance(action, c.Ask):
                assert action.round == version
                assert action.client not in working.keys() | folding.keys() | accepted.keys()
                working[action.client] = version
            elif isinstance(action, c.Fold):
                assert is_open
                assert expected
                assert version - number <= max_staleness
                assert name not in accepted
                folding[name] = number
            elif isinstance(action, c.Discard):
                assert not (is_open and expected)
            elif isinstance(action, c.Close):
                assert not folding
                assert dict(action.started) == accepted
                assert action.accepted == tuple(sorted(accepted))
                assert not dict(action.failed).keys() & (accepted.keys() | working.keys())
            else:
                assert isinstance(action, c.Halt)
                assert retry_s is None
                working = {}
        assert machine.working == working


def test_another_deadline_holds_for_the_open_version_from_its_beginning():
    machine = BufferedCoordinator(BufferedRules(5, buffer=3, retry_s=60.0, deadline_s=100.0))
    machine.receive(c.Begin(1, ("a", "b", "d"), 0.0))
    machine.receive(c.Arrived("a", 1))
    machine.receive(c.Folded("a", 1))
    machine.receive(c.Tick(40.0))
    assert machine.waiting_for == {"b", "d"}
    machine.retime(deadline_s=50.0, retry_s=60.0)
    assert machine.receive(c.Tick(49.0)) == []
    (close,) = machine.receive(c.Tick(50.0))
    assert close.accepted == ("a",)
