"""RoundDriver: one open round, from its first requests to its end, as the coordinator says."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from headwater.errors import HeadwaterError, StorageError, UpdateRejected
from headwater.protocol.failures import NOT_READY, reported_code
from headwater.protocol.machine import (
    Action,
    Arrived,
    Ask,
    Close,
    Discard,
    Event,
    Failed,
    Fold,
    Folded,
    Gone,
    Halt,
    Joined,
    Stop,
    Tick,
)
from headwater.protocol.messages import ClientProfile, TrainRequest
from headwater.server.clients.client_pool import POLL_CLIENTS_S, ClientPool
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.run_control import POLL_S, RunControl
from headwater.server.events import ClientDone, ClientFailed, Notice, Observer, Waiting, WaitingFor

STOP_PATIENCE_S = 60.0
"""After a stop was asked for, a round in which nobody is at work any more is left open this long."""
TELL_S = 10.0
"""Who is waited for is told this long after they were asked, and at most so often again."""


class CoordinatorProtocol(Protocol):
    """What :class:`RoundDriver` needs of a coordinator; both kinds have it."""

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""

    @property
    def persistent(self) -> bool:
        """Whether a round with too few updates stays open; else it ends in ``Halt`` by itself."""

    @property
    def reachable(self) -> int:
        """With how many updates the open round can still end."""

    @property
    def waiting_for(self) -> frozenset[str]:
        """Who was asked and has not answered."""

    @property
    def next_s(self) -> float:
        """When a ``Tick`` will next do something, if nothing else happens; infinity if never."""

    def receive(self, event: Event) -> list[Action]:
        """Take one event; return what to do, in order."""


@dataclass(frozen=True)
class DrivenRound:
    """One open round, as :class:`RoundDriver` drives it.

    Args:
        coordinator: has taken ``Begin``; decides.
        pool: the clients.
        control: time, stop and observer.
        round: its number.
        clients: who may take part, with the profiles that the round was planned with.
        there: those of them who could be reached at ``Begin``.
        need: below so many accepted updates the round cannot end.
        ask: sends these clients their task.
        fold: takes one reply, or raises ``HeadwaterError``: the client's fault, but for ``StorageError``.
        repaired: whether the reply only said what the client lacks, and it has been asked again.
        replaceable: whether others may be asked in place of clients that cannot be had.
        retime: called every second: applies the times that the organiser has changed meanwhile.
    """

    coordinator: CoordinatorProtocol
    pool: ClientPool
    control: RunControl
    round: int
    clients: Mapping[str, ClientProfile]
    there: Sequence[str]
    need: int
    ask: Callable[[Sequence[str]], None]
    fold: Callable[[ReceivedReply], None]
    repaired: Callable[[ReceivedReply], bool] = lambda incoming: False
    replaceable: bool = False
    retime: Callable[[], None] = lambda: None


class RoundDriver:
    """Carries events to a round's coordinator and does what it answers, until the round ends.

    Args:
        driven: the round.
        accepted: clients whose updates an earlier process had accepted into it.
    """

    def __init__(self, driven: DrivenRound, accepted: Iterable[str] = ()) -> None:
        self._with = driven
        self._accepted = set(accepted)
        self._failed_ones: set[str] = set()
        self._failed_once: set[str] = set()  # and may be at work again
        self._again: set[str] = set()  # of those, who was asked once more, ready or not
        self._looked_s = -1e18
        self._there: set[str] = set(driven.there)
        self._gone: set[str] = set()
        self._give_up_s: float | None = None
        self._at_the_latest_s = math.inf
        self._told_waiting: tuple[int, tuple[str, ...]] = (driven.need, ())
        self._began_s = driven.control.clock()
        self._waits = WaitNotices(driven.control.observer, driven.round, "train", self._began_s)
        self._replan = False

    def run(self, first: Iterable[Action]) -> Close | Halt | None:
        """Drive the round until the coordinator ends it.

        None if that cannot be: a stop was asked for and nobody is at work, too many were revoked or have
        other data now, or others are there in place of those who fail or are silent beyond the deadline.

        Args:
            first: what the coordinator answered to ``Begin``.

        Raises:
            StorageError: an update could not be kept.
            Interrupted: the run is to end now.
        """
        coordinator, end = self._with.coordinator, self._do(first)
        while end is None:
            end = self._step()
            # one that is not persistent ends by itself, when all have said what went wrong
            stuck = coordinator.persistent and coordinator.reachable < self._with.need
            if end is None and (self._gave_up() or self._replan or stuck):
                self._waits.over()
                return None
        self._tell_waiting(False)
        self._waits.over()
        return end

    def _step(self) -> Close | Halt | None:
        with_, control = self._with, self._with.control
        control.check()
        if control.should_stop() and not with_.coordinator.stopping:
            control.observer(Notice(f"stopping after round {with_.round}"))
            with_.coordinator.receive(Stop("asked to"))
            self._give_up_s = control.clock() + STOP_PATIENCE_S
            self._at_the_latest_s = control.ends_s()
        quiet = True
        for incoming in with_.pool.poll(TrainRequest):
            quiet = False
            if incoming.rows:
                end = self._take_sum(incoming)
            elif with_.repaired(incoming):
                end = None
            else:
                event = Arrived(incoming.address, incoming.round)
                end = self._do(with_.coordinator.receive(event), incoming)
            if end is None and not control.simulated:  # else all that arrive at one moment are in time
                end = self._tick()
            if end is not None:
                return end
        end = self._check_clients() or self._tick()
        if end is None and quiet and not self._replan:
            patience_s = math.inf if self._give_up_s is None else min(self._give_up_s, self._at_the_latest_s)
            control.pause(min(with_.coordinator.next_s, patience_s + POLL_S))
        return end

    def _gave_up(self) -> bool:
        """Whether a stop has waited long enough: for a round in which nobody is at work, or for a deadline.

        A client that is there and never answers must not keep the organiser from stopping.
        """
        if self._give_up_s is None:
            return False
        now = self._with.control.clock()
        if (self._there & set(self._with.clients)) - self._accepted - self._failed_ones:
            self._give_up_s = now + STOP_PATIENCE_S
        return now > min(self._give_up_s, self._at_the_latest_s)

    def _do(self, actions: Iterable[Action], incoming: ReceivedReply | None = None) -> Close | Halt | None:
        """Do what the coordinator says, in order; the end of the round, if it is one."""
        ask: list[str] = []
        end: Close | Halt | None = None
        for action in actions:
            match action:
                case Ask():
                    ask.append(action.client)
                    if action.client in self._failed_ones:
                        self._again.add(action.client)
                    self._failed_ones.discard(action.client)
                case Discard():
                    self._failed(action.round, action.client, f"reply dropped: {action.reason}")
                case Fold() if incoming is not None:
                    end = self._do(self._fold(incoming))
                case Close() | Halt():
                    end = action
        if ask:
            self._with.ask(ask)
        return end

    def _take_sum(self, incoming: ReceivedReply) -> Close | Halt | None:
        """Fold a sum: of all its clients, or of none if one of them is not waited for."""
        receive, round, wanted = self._with.coordinator.receive, incoming.round, list[str]()
        for client in sorted(incoming.rows):
            for action in receive(Arrived(client, round)):
                if isinstance(action, Fold):
                    wanted.append(client)
                else:
                    self._do([action])
        error: HeadwaterError | None = None
        if len(wanted) < len(incoming.rows):
            other = min(set(incoming.rows) - set(wanted))
            error = UpdateRejected(
                f"sum of edge aggregator {incoming.address}",
                expected="clients that are waited for",
                got=f"{other} among them",
            )
        elif wanted:
            error = self._fold_error(incoming)
        end: Close | Halt | None = None
        for client in wanted:
            size = int(incoming.rows[client].get("bytes_up", 0))
            end = self._do(self._outcome(client, round, size, error)) or end
        return end

    def _fold(self, incoming: ReceivedReply) -> list[Action]:
        error = self._fold_error(incoming)
        return self._outcome(incoming.address, incoming.round, incoming.bytes_up, error)

    def _fold_error(self, incoming: ReceivedReply) -> HeadwaterError | None:
        """Why the reply cannot be folded; None if it is."""
        try:
            self._with.fold(incoming)
        except StorageError:  # our disk, not the client: the update is asked for again when there is room
            raise
        except HeadwaterError as error:
            return error
        return None

    def _outcome(self, client: str, round: int, size: int, error: HeadwaterError | None) -> list[Action]:
        """Tell what became of a client's update, of so many bytes."""
        receive = self._with.coordinator.receive
        self._again.discard(client)
        if error is not None:
            self._failed_ones.add(client)
            self._failed_once.add(client)
            self._failed(round, client, str(error))
            if reported_code(error) in NOT_READY:
                self._with.pool.forget_profile(client, error)
            return receive(Failed(client, round, str(error)))
        self._accepted.add(client)
        self._with.control.observer(ClientDone(self._with.round, client, size))
        return receive(Folded(client, round))

    def _failed(self, round: int, client: str, reason: str) -> None:
        self._with.control.observer(ClientFailed(round, client, reason))

    def _tick(self) -> Close | Halt | None:
        return self._do(self._with.coordinator.receive(Tick(self._with.control.clock())))

    def _check_clients(self) -> Close | Halt | None:
        """Tell the coordinator which clients came back, were revoked, or have other data than was planned."""
        now = self._with.control.clock()
        moved: Collection[str] | None = None
        if self._with.control.simulated:  # nobody comes or goes between two events
            moved = self._with.pool.moved()
            ours = self._looked_s < self._began_s or any(client in self._with.clients for client in moved)
            due = ours or self._wants_replacements(now)
        else:
            due = now >= self._looked_s + POLL_CLIENTS_S
        if not due:
            return None
        self._looked_s = now
        receive, number, end = self._with.coordinator.receive, self._with.round, None
        ready, known = set(self._with.pool.ready()), self._with.pool.profiles()
        came = ready - self._there
        for client in sorted(came if moved is None else came.intersection(moved)):
            end = end or self._do(receive(Joined(client, number)))
        self._there = ready
        self._with.retime()
        for client, planned in sorted(self._with.clients.items()):
            reason = _why_gone(planned, known.get(client))
            if reason and client not in self._gone:
                self._gone.add(client)
                end = end or self._do(receive(Gone(client, number, reason)))
        self._replan = self._wants_replacements(now)
        why = self._why_not_here(ready)
        # whose update is in is wanted no more: it counts, wherever its device has gone
        reachable = len(set(self._with.clients) - (why.keys() - self._accepted))
        waiting = reachable < self._with.need
        self._tell_waiting(waiting, reachable, self._absent(why) if waiting else ())
        if end is None and not self._with.control.simulated:
            self._waits.update(self._waited_for(why), now)
        return end

    def _why_not_here(self, ready: set[str]) -> dict[str, str]:
        """Which of the round's clients cannot work now, and why: offline, or what their device has said.

        One that was asked again is at work, though its profile has not come again yet.
        """
        missing = self._with.pool.missing()
        why = {c: missing.get(c, "offline") for c in set(self._with.clients) - ready}
        self._again -= {client for client, reason in why.items() if reason == "offline"}
        at_work = self._again & self._with.coordinator.waiting_for
        return {client: reason for client, reason in why.items() if client not in at_work}

    def _absent(self, why: Mapping[str, str]) -> tuple[str, ...]:
        """The round's clients that are not there, and have not answered, each with the reason."""
        lost = why.keys() - self._accepted - self._gone
        return tuple(f"{client} ({why[client]})" for client in sorted(lost))

    def _waited_for(self, why: Mapping[str, str]) -> dict[str, str]:
        """Who is waited for, and how it stands with each."""
        out = {c: why.get(c, "at work") for c in self._with.coordinator.waiting_for}
        if len(self._accepted) < self._with.need:
            again = self._failed_ones - self._accepted - self._gone
            out |= {c: why.get(c, "asked again soon") for c in again}
        return out

    def _wants_replacements(self, now: float) -> bool:
        """Whether the round is to be planned anew, with clients in place of those that cannot be had."""
        return self._with.replaceable and self._lacks_updates(now) and self._has_replacements()

    def _lacks_updates(self, now: float) -> bool:
        """Whether the round has too few updates, and no hope of more soon."""
        if len(self._accepted) >= self._with.need:
            return False
        left = set(self._with.clients) - self._accepted - self._failed_once - self._gone
        deadline_s = self._with.control.deadline()
        return not left or (deadline_s is not None and now >= self._began_s + deadline_s)

    def _has_replacements(self) -> bool:
        """Whether a client is online that was not asked and has rows."""
        ready = self._with.pool.ready()
        return any(p.train_examples and name not in self._with.clients for name, p in ready.items())

    def _tell_waiting(self, waiting: bool, reachable: int = 0, absent: tuple[str, ...] = ()) -> None:
        """Tell that the round waits for clients, who is not here, and when it waits no more."""
        need = self._with.need
        told = (reachable, absent) if waiting else (need, ())
        if told != self._told_waiting:
            self._told_waiting = told
            self._with.control.observer(Waiting(told[0], need, absent))


class WaitNotices:
    """Tells for whom a round or an evaluation waits, with all engines: :class:`WaitingFor`.

    The first time :data:`TELL_S` after the round began, then whenever others are waited for, at most once
    in :data:`TELL_S`; and that nobody is, if it was told before.

    Args:
        observer: is told.
        round: its number.
        kind: ``train`` or ``evaluate``.
        began_s: when the clients were asked.
    """

    def __init__(self, observer: Observer, round: int, kind: str, began_s: float) -> None:
        self._observer, self._round, self._kind = observer, round, kind
        self._told_s = began_s
        self._told: tuple[tuple[str, str], ...] = ()

    def update(self, out: Mapping[str, str], now: float) -> None:
        """``out``: who is waited for at ``now``, and how it stands with each."""
        names = tuple(sorted(out.items()))
        if names != self._told and now >= self._told_s + TELL_S:
            self._told_s = now
            self._tell(names)

    def over(self) -> None:
        """Tell that the wait is over."""
        self._tell(())

    def _tell(self, names: tuple[tuple[str, str], ...]) -> None:
        if names != self._told:
            self._told = names
            self._observer(WaitingFor(self._round, self._kind, names))


def _why_gone(planned: ClientProfile, now: ClientProfile | None) -> str:
    """Why a client can give no update to a round planned with an earlier profile; empty if it can."""
    if now is None:
        return "no longer enrolled"
    if now.train_targets != planned.train_targets:
        return f"it has other data now: {now.train_targets} targets, not {planned.train_targets}"
    if now.train_examples != planned.train_examples:  # its weight is fixed: whatever it sends is refused
        return f"it has other data now: {now.train_examples} examples, not {planned.train_examples}"
    return ""
