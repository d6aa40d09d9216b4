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
    machine = c.Coordinator(2)
    assert begin(machine) == [c.Ask(name, 1) for name in CLIENTS]
    for name in CLIENTS[:2]:
        assert machine.receive(c.Arrived(name, 1)) == [c.Fold(name, 1)]
        assert machine.receive(c.Folded(name, 1)) == []
    assert machine.receive(c.Arrived("cleo", 1)) == [c.Fold("cleo", 1)]
    assert machine.receive(c.Folded("cleo", 1)) == [c.Close(1, CLIENTS, (), last=False)]
    assert machine.phase is c.Phase.IDLE


def test_deadline_closes_with_who_arrived():
    machine = c.Coordinator(5, deadline_s=10)
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
    machine = c.Coordinator(5, deadline_s=10)
    begin(machine)
    machine.receive(c.Arrived("ben", 1))
    assert machine.receive(c.Tick(11)) == []
    (close,) = machine.receive(c.Folded("ben", 1))
    assert close.accepted == ("ben",)


def test_too_few_halt():
    machine = c.Coordinator(5, min_clients=2)
    begin(machine)
    machine.receive(c.Arrived("ann", 1))
    machine.receive(c.Folded("ann", 1))
    machine.receive(c.Failed("ben", 1, "no data"))
    (halt,) = machine.receive(c.Failed("cleo", 1, "gone"))
    assert halt == c.Halt(1, ("ann",), (("ben", "no data"), ("cleo", "gone")))


def test_stop_makes_the_open_round_the_last():
    machine = c.Coordinator(5)
    begin(machine, clients=("ann",))
    machine.receive(c.Stop("asked"))
    machine.receive(c.Arrived("ann", 1))
    assert machine.receive(c.Folded("ann", 1)) == [c.Close(1, ("ann",), (), last=True)]
    assert machine.stopping


@pytest.mark.parametrize("event", [c.Begin(3, CLIENTS, 0), c.Begin(1, (), 0), c.Begin(0, CLIENTS, 0)])
def test_begin_out_of_order_is_refused(event):
    with pytest.raises(ConfigError):
        c.Coordinator(2).receive(event)


def test_begin_while_open_is_refused():
    machine = c.Coordinator(2)
    begin(machine)
    with pytest.raises(ConfigError, match="close before"):
        begin(machine, round=2)


def test_every_cell_of_the_table_is_filled():
    events = c.Event.__args__
    assert set(c._TRANSITIONS) == set(itertools.product(c.Phase, events))


EVENTS = st.one_of(
    st.builds(c.Arrived, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3)),
    st.builds(c.Folded, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3)),
    st.builds(c.Failed, st.sampled_from((*CLIENTS, "stranger")), st.integers(0, 3), st.just("why")),
    st.builds(c.Tick, st.floats(0, 50)),
    st.builds(c.Stop, st.just("asked")),
)


@given(st.lists(EVENTS, max_size=60), st.booleans())
@settings(max_examples=300)
def test_each_client_is_folded_once_and_every_round_ends(events, deadline):
    machine = c.Coordinator(3, deadline_s=40.0 if deadline else None)
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
