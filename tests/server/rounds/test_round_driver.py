"""What goes wrong while a reply is folded is the client's failure, unless it is this machine's disk."""

from __future__ import annotations

import time

import pytest

from headwater.errors import StorageError, UpdateRejected
from headwater.protocol.buffered import BufferedCoordinator, BufferedRules
from headwater.protocol.coordinator import Coordinator, RoundRules
from headwater.protocol.failures import NOT_READY, Failure, FailureCode
from headwater.protocol.machine import Begin, Halt
from headwater.protocol.messages import ClientFailure, ClientProfile, TrainRequest, reported
from headwater.server.clients.exchange import Exchange, ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Waiting, WaitingFor
from headwater.server.rounds.round_driver import DrivenRound, RoundDriver


class One:
    """Members of which one has answered."""

    def ready(self):
        return {"ann": None}

    profiles = ready

    def poll(self, *kinds):
        yield ReceivedReply("ann", TrainRequest, 1, b"", "", 0)

    def missing(self):
        return {}

    def forget_profile(self, client, error):
        self.doubted = client


def driver(*parts, **options):
    return RoundDriver(DrivenRound(*parts, **options))


def answer_with(error, pool=None):
    coordinator, told = Coordinator(RoundRules(1)), []

    def fold(incoming):
        raise error

    control = RunControl(told.append, lambda: False, time.monotonic, None, lambda: False)
    begun = coordinator.receive(Begin(1, ("ann",), 0.0))
    driven = driver(
        coordinator, pool or One(), control, 1, ("ann",), ("ann",), 1, ask=lambda names: None, fold=fold
    )
    driven.run(begun)
    return [event for event in told if isinstance(event, ClientFailed)]


def test_a_bad_reply_is_the_clients_failure():
    (failed,) = answer_with(UpdateRejected("client ann", expected="an update", got="noise"))
    assert failed.client == "ann"


def test_a_client_that_does_not_know_the_run_is_introduced_again():
    pool = One()
    unknown = ClientFailure.coded("ann", 1, Failure(FailureCode.UNKNOWN_RUN))
    answer_with(reported(unknown, "client ann", expected="an update"), pool)
    assert pool.doubted == "ann"
    other = One()
    hungry = ClientFailure("ann", 1, unknown.reason, failure=Failure(FailureCode.OUT_OF_MEMORY))
    answer_with(reported(hungry, "client ann", expected="an update"), other)
    assert not hasattr(other, "doubted")


@pytest.mark.parametrize("code", FailureCode)
def test_a_client_that_cannot_work_is_introduced_again_before_it_is_asked_again(code):
    pool = One()
    failure = ClientFailure.coded("ann", 1, Failure(code))
    answer_with(reported(failure, "client ann", expected="an update"), pool)
    assert hasattr(pool, "doubted") == (code in NOT_READY)


def test_a_full_disk_is_not():
    with pytest.raises(StorageError):
        answer_with(StorageError("writing spool", expected="room", got="No space left on device"))


@pytest.mark.parametrize("kind", ["synchronous", "buffered"])
def test_a_simulated_round_that_has_lost_too_many_ends_with_what_all_of_them_said(kind):
    """Replies come one by one, as from processes: the first failures alone make the minimum impossible."""
    names, looks = ("ann", "ben", "cleo"), [0]
    coordinator = (
        Coordinator(RoundRules(1, min_clients=2))
        if kind == "synchronous"
        else BufferedCoordinator(BufferedRules(1, min_clients=2, buffer=3))
    )

    class OneByOne(One):
        def ready(self):
            return dict.fromkeys(names, ClientProfile("x", 7, 0, "", "", "", ""))

        profiles = ready

        def poll(self, *kinds):
            looks[0] += 1
            if looks[0] % 2 == 0:
                yield ReceivedReply(names[looks[0] // 2 - 1], TrainRequest, 1, b"", "", 0)

    def fold(incoming):
        raise UpdateRejected(f"client {incoming.address}", expected="an update", got="noise")

    pool, control = OneByOne(), RunControl(lambda event: None, lambda: False, time.monotonic)
    begun = coordinator.receive(Begin(1, names, 0.0))
    nothing = {"ask": lambda names: None, "fold": fold}
    end = driver(coordinator, pool, control, 1, pool.ready(), names, 2, **nothing).run(begun)
    assert isinstance(end, Halt)
    assert [client for client, _ in end.failed] == list(names)


class Few:
    """Members of whom one more is there with every look, and who answer once all of them are."""

    names = ("ann", "ben", "cleo")

    def __init__(self):
        self.looks = 0

    def profiles(self):
        return dict.fromkeys(self.names, ClientProfile("x", 7, 0, "", "", "", ""))

    def ready(self):
        self.looks += 1
        return dict(list(self.profiles().items())[: (self.looks + 1) // 2])

    def missing(self):
        return dict.fromkeys(self.names, "offline")

    def poll(self, *kinds):
        if self.looks > 6:
            yield from (ReceivedReply(name, TrainRequest, 1, b"", "", 0) for name in self.names)


def test_a_round_that_waits_tells_how_many_are_here_each_time_it_changes():
    coordinator, told, few = Coordinator(RoundRules(3)), [], Few()
    times = iter(range(0, 10**6, 2))
    control = RunControl(told.append, lambda: False, lambda: float(next(times)), None, lambda: False)
    begun = coordinator.receive(Begin(1, few.names, 0.0))
    driver(
        coordinator,
        few,
        control,
        1,
        few.profiles(),
        few.names,
        3,
        ask=lambda names: None,
        fold=lambda incoming: None,
    ).run(begun)
    waits = [(event.have, event.need) for event in told if isinstance(event, Waiting)]
    assert waits == [(1, 3), (2, 3), (3, 3)]


def test_a_round_names_who_it_waits_for_within_fifteen_seconds_and_that_it_waits_no_more():
    coordinator, told, now = Coordinator(RoundRules(2)), [], [0.0]

    class Slow(Few):
        names = ("ann", "ben")

        def ready(self):
            return {"ann": None} if 20 < now[0] < 60 else dict.fromkeys(self.names)

        def poll(self, *kinds):
            now[0] += 1
            if now[0] == 5:
                yield ReceivedReply("ann", TrainRequest, 1, b"", "", 0)
            if now[0] == 80:
                yield ReceivedReply("ben", TrainRequest, 1, b"", "", 0)

    control = RunControl(lambda event: told.append((now[0], event)), lambda: False, lambda: now[0])
    begun = coordinator.receive(Begin(1, ("ann", "ben"), 0.0))
    nothing = {"ask": lambda names: None, "fold": lambda incoming: None}
    clients = dict.fromkeys(("ann", "ben"), ClientProfile("x", 7, 0, "", "", "", ""))
    driver(coordinator, Slow(), control, 1, clients, tuple(clients), 1, **nothing).run(begun)
    waits = [(at, event.clients) for at, event in told if isinstance(event, WaitingFor)]
    assert waits == [
        (10, (("ben", "at work"),)),
        (21, (("ben", "offline"),)),
        (60, (("ben", "at work"),)),
        (80, ()),
    ]


def test_a_client_that_leaves_after_its_update_is_missed_by_nobody():
    """Its update counts for the round's minimum, so the round waits for the other client, by name."""
    coordinator, told, now = Coordinator(RoundRules(1, min_clients=2)), [], [0.0]

    class Leaves(Few):
        names = ("ann", "ben")

        def ready(self):
            return dict.fromkeys(self.names) if now[0] < 5 else {"ben": None}

        def poll(self, *kinds):
            now[0] += 1
            if now[0] in (3, 30):
                yield ReceivedReply("ann" if now[0] == 3 else "ben", TrainRequest, 1, b"", "", 0)

    control = RunControl(lambda event: told.append((now[0], event)), lambda: False, lambda: now[0])
    begun = coordinator.receive(Begin(1, ("ann", "ben"), 0.0))
    nothing = {"ask": lambda names: None, "fold": lambda incoming: None}
    clients = dict.fromkeys(("ann", "ben"), ClientProfile("x", 7, 0, "", "", "", ""))
    driver(coordinator, Leaves(), control, 1, clients, tuple(clients), 2, **nothing).run(begun)
    assert [event for _, event in told if isinstance(event, Waiting)] == []
    waits = [(at, event.clients) for at, event in told if isinstance(event, WaitingFor)]
    assert waits == [(10, (("ben", "at work"),)), (30, ())]


def test_who_is_online_and_cannot_work_is_missing_with_the_reason_until_asked_again():
    """From 5 s ben's model is other than it was; at 30 s its disk is full; at 62 s it is asked again."""
    coordinator, told, now = Coordinator(RoundRules(1, min_clients=2, retry_s=55.0)), [], [0.0]

    class Ill(Few):
        names = ("ann", "ben")

        def ready(self):
            return dict.fromkeys(self.names) if now[0] < 5 else {"ann": None}

        def missing(self):
            return {} if now[0] < 5 else {"ben": "the files have changed" if now[0] < 30 else "no room"}

        def poll(self, *kinds):
            now[0] += 1
            if now[0] == 100:
                raise InterruptedError
            if now[0] in (3, 5):
                yield ReceivedReply("ann" if now[0] == 3 else "ben", TrainRequest, 1, b"", "", 0)

        def forget_profile(self, client, error):
            pass

    def fold(incoming):
        if incoming.address == "ben":
            raise UpdateRejected("client ben", expected="an update", got="none")

    control = RunControl(lambda event: told.append((now[0], event)), lambda: False, lambda: now[0])
    begun = coordinator.receive(Begin(1, ("ann", "ben"), 0.0))
    clients = dict.fromkeys(("ann", "ben"), ClientProfile("x", 7, 0, "", "", "", ""))
    driven = driver(
        coordinator, Ill(), control, 1, clients, tuple(clients), 2, ask=lambda names: None, fold=fold
    )
    with pytest.raises(InterruptedError):
        driven.run(begun)
    waits = [(at, e.have, e.missing) for at, e in told if isinstance(e, Waiting)]
    assert [wait[1:] for wait in waits] == [
        (1, ("ben (the files have changed)",)),
        (1, ("ben (no room)",)),
        (2, ()),
    ]
    again_s = waits[-1][0]
    assert 60 <= again_s <= 62
    assert [(at, e.clients) for at, e in told if isinstance(e, WaitingFor)] == [
        (10, (("ben", "the files have changed"),)),
        (30, (("ben", "no room"),)),
        (again_s, (("ben", "at work"),)),
    ]


@pytest.mark.parametrize("shorter", [True, False])
def test_times_that_the_organiser_changes_hold_for_the_open_round(shorter):
    """With the clock at 40 s, a deadline of 100 s becomes one of 50, or of 200."""
    coordinator = Coordinator(RoundRules(1, min_clients=1, retry_s=60.0, deadline_s=100.0))
    now = [0.0]

    class Silent(Few):
        names = ("ann", "ben")

        def ready(self):
            return dict.fromkeys(self.names)

        def poll(self, *kinds):
            now[0] += 1
            if now[0] == 3:
                yield ReceivedReply("ann", TrainRequest, 1, b"", "", 0)

    def retime():
        if now[0] == 40:
            coordinator.retime(deadline_s=50.0 if shorter else 200.0, retry_s=60.0)

    control = RunControl(lambda event: None, lambda: False, lambda: now[0])
    begun = coordinator.receive(Begin(1, ("ann", "ben"), 0.0))
    clients = dict.fromkeys(("ann", "ben"), ClientProfile("x", 7, 0, "", "", "", ""))
    nothing = {"ask": lambda names: None, "fold": lambda incoming: None}
    end = driver(coordinator, Silent(), control, 1, clients, tuple(clients), 1, retime=retime, **nothing).run(
        begun
    )
    assert end.accepted == ("ann",)
    assert now[0] == (50 if shorter else 200)


@pytest.mark.parametrize("remote", [True, False])
def test_over_a_network_a_failure_says_what_its_code_says_and_not_what_its_client_says(remote):
    lie = ClientFailure("ann", 1, "<b>pay me</b>", failure=Failure(FailureCode.DISK_FULL, (10**6, 5)))
    told = str(reported(lie, "client ann", expected="an update", remote=remote))
    assert ("pay me" in told) == (not remote)
    assert ("1,000,000 bytes are needed and 5 are free" in told) == remote
    old = ClientFailure("ann", 1, "no memory")  # of a client that knows no codes
    assert "no memory" in str(reported(old, "client ann", expected="an update", remote=remote))


def test_a_failure_that_names_its_client_is_not_told_within_another_of_the_same_client():
    own = str(UpdateRejected("client carl", expected="a training", got="a division by zero"))
    told = str(reported(ClientFailure("carl", 1, own), "client carl", expected="an update"))
    assert told == "client carl: expected an update, got failure: expected a training, got a division by zero"


def test_what_comes_through_a_device_s_signature_is_remote():
    reply = Exchange(None, {}, lambda address, data: data).verify("ann", TrainRequest, 1, b"x")
    assert reply.remote
    assert not Exchange(None, {}).verify("ann", TrainRequest, 1, b"x").remote
