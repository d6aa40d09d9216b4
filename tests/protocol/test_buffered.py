"""Asynchronous versions: whose update goes into which, and who is put to work."""

from __future__ import annotations

from headwater.protocol import coordinator as c
from headwater.protocol.buffered import BufferedCoordinator, BufferedRules
from tests.protocol.versions import CLIENTS, begin, fold


def test_the_first_updates_make_a_version_and_the_others_go_into_the_next():
    machine = BufferedCoordinator(BufferedRules(3, buffer=2))
    assert begin(machine) == [c.Ask(name, 1) for name in CLIENTS]
    assert fold(machine, "cleo") == []
    started = (("ann", 1), ("cleo", 1))
    assert fold(machine, "ann") == [c.Close(1, ("ann", "cleo"), (), False, started)]
    assert machine.working == {"ben": 1, "dora": 1}
    assert begin(machine, 2) == [c.Ask("ann", 2), c.Ask("cleo", 2)]
    assert fold(machine, "ben", 1) == []
    assert fold(machine, "ann", 2) == [c.Close(2, ("ann", "ben"), (), False, (("ann", 2), ("ben", 1)))]
    assert begin(machine, 3) == [c.Ask("ann", 3), c.Ask("ben", 3)]
    assert fold(machine, "dora", 1) == []
    (close,) = fold(machine, "cleo", 2)
    assert close.last
    assert close.started == (("cleo", 2), ("dora", 1))


def test_a_client_is_once_in_a_buffer():
    machine = BufferedCoordinator(BufferedRules(3, buffer=3, retry_s=5))
    begin(machine)
    fold(machine, "ann")
    assert machine.receive(c.Arrived("ann", 1)) == [c.Discard("ann", 1, "answered already")]
    assert machine.receive(c.Tick(1000)) == machine.receive(c.Joined("ann", 1)) == []
    assert "ann" not in machine.working


def test_what_is_not_waited_for_is_dropped_by_name():
    machine = BufferedCoordinator(BufferedRules(9, buffer=1, max_staleness=1))
    begin(machine, clients=("ann", "ben"))
    fold(machine, "ann")
    begin(machine, 2, ("ann", "ben"))
    assert machine.receive(c.Arrived("stranger", 2)) == [c.Discard("stranger", 2, "was not asked")]
    assert machine.receive(c.Arrived("ben", 2)) == [
        c.Discard("ben", 2, "not what it was asked: it works from version 1")
    ]
    fold(machine, "ann", 2)
    assert begin(machine, 3, ("ann", "ben")) == [c.Ask("ann", 3), c.Ask("ben", 3)]  # ben's would be too old
    assert machine.receive(c.Arrived("ben", 1)) == [
        c.Discard("ben", 1, "too stale: version 3 is open, at most 1 older is taken")
    ]
    assert machine.receive(c.Arrived("ben", 2)) == [
        c.Discard("ben", 2, "not what it was asked: it works from version 3")
    ]
    (close,) = fold(machine, "ben", 3)
    assert close.started == (("ben", 3),)


def test_between_versions_a_reply_is_dropped_and_its_client_is_free():
    machine = BufferedCoordinator(BufferedRules(3, buffer=1))
    begin(machine, clients=("ann", "ben", "cleo"))
    fold(machine, "ann")
    (dropped,) = machine.receive(c.Arrived("ben", 1))
    assert dropped == c.Discard("ben", 1, "between versions: no buffer is open")
    assert machine.receive(c.Failed("cleo", 0, "of another")) == machine.receive(c.Folded("cleo", 1)) == []
    assert machine.working == {"cleo": 1}
    machine.receive(c.Failed("cleo", 1, "x"))
    assert machine.working == {}
    assert begin(machine, 2, ("ben", "cleo")) == [c.Ask("ben", 2), c.Ask("cleo", 2)]
    fold(machine, "ben", 2)
    machine.receive(c.Gone("cleo", 2, "revoked"))
    assert machine.working == {}


def test_no_more_work_at_once_than_allowed():
    machine = BufferedCoordinator(BufferedRules(2, buffer=4, at_once=2))
    assert begin(machine) == [c.Ask("ann", 1), c.Ask("ben", 1)]
    assert machine.receive(c.Arrived("ben", 1)) == [c.Fold("ben", 1)]
    assert machine.receive(c.Tick(1)) == []  # it is at work until it is folded
    assert machine.receive(c.Folded("ben", 1)) == [c.Ask("cleo", 1)]
    assert machine.receive(c.Failed("ann", 1, "x")) == [c.Ask("dora", 1)]
    fold(machine, "cleo")
    (close,) = fold(machine, "dora")
    assert close == c.Close(
        1, ("ben", "cleo", "dora"), (("ann", "x"),), False, (("ben", 1), ("cleo", 1), ("dora", 1))
    )


def test_dead_clients_do_not_keep_the_others_out():
    machine = BufferedCoordinator(BufferedRules(2, buffer=2, at_once=2, deadline_s=10, retry_s=99))
    begin(machine)
    assert machine.receive(c.Tick(9.9)) == []
    assert machine.receive(c.Tick(10)) == [c.Ask("cleo", 1), c.Ask("dora", 1)]
    assert fold(machine, "cleo") == []
    (close,) = fold(machine, "ann")  # late, but still of use
    assert close.accepted == ("ann", "cleo")


def test_the_deadline_makes_a_version_of_what_is_there_and_is_else_extended():
    machine = BufferedCoordinator(BufferedRules(2, buffer=4, min_clients=2, deadline_s=10, retry_s=99))
    begin(machine)
    fold(machine, "ann")
    assert machine.receive(c.Tick(10)) == []
    fold(machine, "ben")
    assert machine.receive(c.Tick(19)) == []
    machine.receive(c.Failed("dora", 1, "x"))
    machine.receive(c.Arrived("cleo", 1))
    assert machine.receive(c.Tick(20)) == []  # a fold is open
    machine.receive(c.Failed("cleo", 1, "garbage"))
    assert machine.phase is c.Phase.IDLE


def test_a_client_still_at_work_has_not_failed():
    machine = BufferedCoordinator(BufferedRules(2, buffer=4, deadline_s=10, retry_s=2))
    begin(machine)
    fold(machine, "ann")
    machine.receive(c.Failed("ben", 1, "x"))
    machine.receive(c.Failed("cleo", 1, "y"))
    assert machine.receive(c.Tick(2)) == [c.Ask("ben", 1), c.Ask("cleo", 1)]
    machine.receive(c.Failed("cleo", 1, "z"))
    (close,) = machine.receive(c.Tick(10))
    assert close.failed == (("cleo", "z"),)
    assert machine.working == {"ben": 1, "dora": 1}


def test_a_version_is_made_when_nobody_is_left():
    machine = BufferedCoordinator(BufferedRules(2, buffer=9, retry_s=5))
    begin(machine)
    for name in CLIENTS[:3]:
        assert fold(machine, name) == []
    (close,) = fold(machine, "dora")
    assert close.accepted == CLIENTS


def test_a_failed_client_is_asked_again_after_a_while_or_with_the_next_version():
    machine = BufferedCoordinator(BufferedRules(2, buffer=2, min_clients=2, retry_s=10))
    begin(machine, clients=CLIENTS[:2])
    fold(machine, "ann")
    assert machine.receive(c.Failed("ben", 1, "x")) == []
    assert machine.receive(c.Tick(10)) == [c.Ask("ben", 1)]
    machine.receive(c.Failed("ben", 1, "x"))
    assert machine.receive(c.Tick(29)) == []
    assert machine.receive(c.Joined("ben", 1)) == [c.Ask("ben", 1)]
    fold(machine, "ben")
    begin(machine, 2)
    machine.receive(c.Failed("ann", 2, "x"))
    machine.receive(c.Gone("ann", 2, "revoked"))
    assert machine.receive(c.Joined("ann", 2)) == machine.receive(c.Tick(1000)) == []


def test_who_fails_at_an_older_version_is_asked_anew_with_this_one():
    machine = BufferedCoordinator(BufferedRules(3, buffer=1, retry_s=10))
    begin(machine, clients=("ann", "ben"))
    fold(machine, "ann")
    begin(machine, 2, ("ann", "ben"))
    machine.receive(c.Failed("ben", 2, "it was not asked at that version"))
    assert machine.working == {"ben": 1, "ann": 2}
    machine.receive(c.Failed("ben", 1, "x"))
    assert machine.receive(c.Tick(10)) == [c.Ask("ben", 2)]


def test_absent_clients_are_asked_when_they_come():
    machine = BufferedCoordinator(BufferedRules(2, buffer=3, min_clients=3, retry_s=10))
    assert begin(machine, clients=("ann", "ben"), absent=("cleo", "ann")) == [
        c.Ask("ann", 1),
        c.Ask("ben", 1),
    ]
    assert machine.reachable == 3
    assert machine.receive(c.Joined("ann", 1)) == machine.receive(c.Joined("stranger", 1)) == []
    fold(machine, "ann")
    assert fold(machine, "ben") == []
    assert machine.receive(c.Joined("cleo", 1)) == [c.Ask("cleo", 1)]
    assert machine.receive(c.Joined("cleo", 1)) == []
    (close,) = fold(machine, "cleo")
    assert close.accepted == ("ann", "ben", "cleo")


def test_accepted_updates_of_an_earlier_process_keep_the_version_they_started_from():
    machine = BufferedCoordinator(BufferedRules(9, buffer=3, retry_s=1), done=6)
    actions = begin(machine, 7, accepted=("ann", "ben"), started=(("ben", 5),))
    assert actions == [c.Ask("cleo", 7), c.Ask("dora", 7)]
    (close,) = fold(machine, "dora", 7)
    assert close.started == (("ann", 7), ("ben", 5), ("dora", 7))
    full = BufferedCoordinator(BufferedRules(9, buffer=2), done=6)
    (close,) = begin(full, 7, accepted=("ann", "ben"))
    assert close == c.Close(7, ("ann", "ben"), (), False, (("ann", 7), ("ben", 7)))
    assert full.working == {}


def test_a_buffer_that_is_full_waits_for_a_fold_and_takes_it_too():
    machine = BufferedCoordinator(BufferedRules(2, buffer=1, at_once=2, retry_s=5))
    begin(machine)
    machine.receive(c.Arrived("ben", 1))
    machine.receive(c.Arrived("ann", 1))
    assert machine.receive(c.Folded("ann", 1)) == []
    (close,) = machine.receive(c.Folded("ben", 1))
    assert close.accepted == ("ann", "ben")


def test_nobody_is_put_to_work_for_a_version_that_only_waits_for_a_fold():
    machine = BufferedCoordinator(BufferedRules(2, buffer=1, at_once=3, retry_s=5))
    begin(machine)
    machine.receive(c.Arrived("ben", 1))
    assert machine.receive(c.Failed("ann", 1, "x")) == machine.receive(c.Tick(1)) == []
    assert machine.receive(c.Failed("ben", 1, "garbage")) == [c.Ask("dora", 1)]


def test_reports_about_another_version_change_nothing():
    machine = BufferedCoordinator(BufferedRules(3, buffer=1))
    begin(machine, 2, ("ann",))
    machine.receive(c.Arrived("ann", 2))
    assert machine.receive(c.Folded("ann", 1)) == machine.receive(c.Failed("ann", 1, "x")) == []
    (close,) = machine.receive(c.Folded("ann", 2))
    assert close.accepted == ("ann",)


def test_time_that_goes_back_brings_nothing_forward():
    machine = BufferedCoordinator(BufferedRules(1, buffer=4, min_clients=4, retry_s=10))
    begin(machine, now_s=100)
    machine.receive(c.Tick(50))
    machine.receive(c.Failed("ann", 1, "x"))
    assert machine.receive(c.Tick(109)) == []
    assert machine.receive(c.Tick(110)) == [c.Ask("ann", 1)]


def test_who_is_not_in_this_version_is_not_asked_again_for_it():
    machine = BufferedCoordinator(BufferedRules(3, buffer=1, retry_s=10))
    begin(machine, clients=("ann", "ben"))
    fold(machine, "ann")
    begin(machine, 2, ("ann",))
    assert machine.working == {"ann": 2, "ben": 1}
    machine.receive(c.Failed("ben", 1, "x"))
    assert machine.receive(c.Tick(1000)) == machine.receive(c.Joined("ben", 2)) == []


def test_whose_update_is_in_the_buffer_is_not_at_work():
    machine = BufferedCoordinator(BufferedRules(3, buffer=2))
    begin(machine, clients=("ann", "ben", "cleo"))
    fold(machine, "ann")
    fold(machine, "ben")
    assert begin(machine, 2, CLIENTS[:3], accepted=("cleo",)) == [c.Ask("ann", 2), c.Ask("ben", 2)]
    assert machine.receive(c.Arrived("cleo", 1)) == [c.Discard("cleo", 1, "answered already")]


def test_absent_clients_are_waited_for_and_a_revoked_one_never_asked():
    machine = BufferedCoordinator(BufferedRules(2, buffer=2, min_clients=2))
    begin(machine, clients=("ann",), absent=("ben", "cleo"))
    machine.receive(c.Gone("cleo", 1, "revoked"))
    assert machine.reachable == 2
    assert machine.receive(c.Joined("cleo", 1)) == []
    assert fold(machine, "ann") == []  # although it is a simulation, and nobody is at work
    assert machine.receive(c.Joined("ben", 1)) == [c.Ask("ben", 1)]


def test_a_simulation_halts_where_a_daemon_waits():
    machine = BufferedCoordinator(BufferedRules(2, buffer=2, min_clients=2, deadline_s=10))
    begin(machine, clients=("ann", "ben"))
    fold(machine, "ann")
    assert machine.receive(c.Failed("ben", 1, "x")) == [c.Halt(1, ("ann",), (("ben", "x"),))]
    late = BufferedCoordinator(BufferedRules(2, buffer=2, min_clients=2, deadline_s=10))
    begin(late, clients=("ann", "ben"))
    assert late.reachable == 2
    fold(late, "ann")
    assert late.receive(c.Tick(10)) == [c.Halt(1, ("ann",), (("ben", "no answer within 10 s"),))]
