"""One synchronous round, planned, driven and merged: :class:`SynchronousRounds`.

Each update is folded the moment it arrives, so memory does not grow with clients.
"""

from __future__ import annotations

from collections.abc import Mapping

from headwater.config.federation import Federation
from headwater.errors import HeadwaterError
from headwater.merging.aggregator import Merged
from headwater.protocol.coordinator import Coordinator, RoundRules
from headwater.protocol.machine import Begin, Halt
from headwater.protocol.messages import ClientProfile, TrainRequest
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.events import Notice
from headwater.server.rounds.base import RoundResult, Rounds, entries_of, spooled_as
from headwater.server.rounds.masked_exchange import NoSum
from headwater.server.rounds.open_round import OpenRound
from headwater.server.rounds.round_driver import DrivenRound, RoundDriver
from headwater.server.rounds.withheld_round import WithheldRound
from headwater.server.storage.checkpoint import Checkpoint


class SynchronousRounds(Rounds):
    """One version at a time."""

    kind = "synchronous"
    _coordinator: Coordinator

    def _begin(self, settings: Federation, done: int) -> None:
        self._coordinator = Coordinator(RoundRules(settings.federation.rounds), done=done)
        self._kept: dict[str, ReceivedReply] = {}  # in simulated time, while there are too few

    def _reconfigure(self, settings: Federation) -> None:
        cohort = settings.cohort
        self._coordinator.reconfigure(
            rounds=settings.federation.rounds,
            min_clients=self._least,
            target=cohort.target_clients,
            deadline_s=cohort.deadline_s,
            retry_s=cohort.retry_s if self._lasting else None,
        )

    def run(self, checkpoint: Checkpoint) -> RoundResult | None:  # noqa: D102 - inherited
        number, started_s = checkpoint.server.round + 1, self._control.stopwatch()
        left = self._left_open(number)
        known = self._planned_anew(number) if left is None else left.profiles
        if self._too_few(checkpoint, known, left):
            return None
        open_round = self._open(checkpoint, known, left)
        clients = open_round.plan.clients
        if left is None:
            self._write_down(open_round, {})
        self._tell_begun(number, len(clients))
        accepted = self._refold(open_round)
        actions = self._coordinator.receive(Begin(number, tuple(clients), self._control.clock(), accepted))
        driven = DrivenRound(
            self._coordinator,
            self._pool,
            self._control,
            number,
            open_round.profiles,
            tuple(clients),
            self._least,
            ask=lambda names: self._ask(open_round, checkpoint, names),
            fold=lambda incoming: self._fold(open_round, incoming),
            repaired=self._repairing(open_round, checkpoint),
            replaceable=self._lasting,
            retime=self._retime,
        )
        end = RoundDriver(driven, accepted).run(actions)
        self._pool.exchange.forget(TrainRequest, number)
        if end is None:
            if self._durability is None:  # planned anew, with the updates that are in
                self._coordinator = Coordinator(RoundRules(self._settings.federation.rounds), done=number - 1)
            return None
        self._kept.clear()
        if isinstance(end, Halt):
            raise self._halted(end)
        left_out = False
        try:
            merged = self._merged(open_round, checkpoint)
        except NoSum as error:
            if error.stopped or not error.told:
                self._without_sum(number, error)
                return None
            merged, left_out = self._left_out(open_round, error), True
        end = open_round.settled(end)
        self._tell_marks(number, merged)
        draft = open_round.draft(end, merged, open_round.base + merged.delta)
        started_from = dict.fromkeys(end.accepted, open_round.base_sha256)
        started = dict.fromkeys(end.accepted, number)
        received = entries_of(open_round, started)
        players = open_round.players
        return RoundResult(merged, draft, started, started_from, started_s, received, players, left_out)

    def _without_sum(self, number: int, error: NoSum) -> None:
        """Leave a round open that can be gone on with, or that is planned anew: its units are others then."""
        if not error.stopped and self._durability is not None:
            for client in self._durability.spool.clients(number):
                self._durability.spool.remove(number, client)

    def _left_out(self, open_round: OpenRound, error: NoSum) -> Merged:
        """What a round comes to whose clients have told too much of it to be asked again."""
        assert isinstance(open_round, WithheldRound), "what such an error comes from"
        text = f"round {open_round.plan.round} is left out: {error}; no client sends another vector of it"
        self._control.observer(Notice(text))
        return open_round.left_out()

    def _merged(self, open_round: OpenRound, checkpoint: Checkpoint) -> Merged:
        """What the round came to; with noise it leaves once, whatever crashes."""
        number = open_round.plan.round

        def merge() -> Merged:
            return open_round.merge(lambda client: self._again(number, client, number))

        if self._releases is None:
            return merge()
        return self._releases.once(
            self._settings.privacy,
            lambda release: self._planned_by.release(checkpoint.server, release),
            open_round.base_sha256,
            merge,
        )

    def _planned_anew(self, number: int) -> Mapping[str, ClientProfile]:
        """Who is there, and whose update was accepted before the round had to be planned anew."""
        ready, known = self._pool.ready(), self._pool.profiles()
        spooled = self._durability.spool.clients(number) if self._durability else sorted(self._kept)
        if ready is known:  # a simulation's, sorted, are always there
            return known
        return dict(sorted({**{c: known[c] for c in spooled if c in known}, **ready}.items()))

    def _refold(self, open_round: OpenRound) -> tuple[str, ...]:
        accepted = []
        for client, incoming in sorted(self._kept.items()):
            if client in open_round.plan.clients:
                open_round.fold(incoming, keep=True)
                accepted.append(client)
        for incoming in self._spooled(open_round.plan.round, open_round.plan.clients):
            try:
                open_round.fold(incoming)
                accepted += sorted(incoming.rows) or [incoming.address]
            except HeadwaterError as error:
                self._refused(open_round.plan.round, incoming, error)
        return tuple(accepted)

    def _fold(self, open_round: OpenRound, incoming: ReceivedReply) -> None:
        """To disk, then into the accumulator: once it is said to be accepted, a crash cannot lose it."""
        spool = self._durability.spool if self._durability else None
        if spool is not None and not incoming.error:
            spool.put(incoming.round, spooled_as(incoming), incoming.raw)
        try:
            open_round.fold(incoming, keep=spool is None)
        except HeadwaterError:
            if spool is not None:
                spool.remove(incoming.round, spooled_as(incoming))
            raise
        if self._control.simulated and len(self._kept) < self._least:
            self._kept[incoming.address] = incoming  # with enough the round is not planned anew
