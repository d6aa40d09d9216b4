"""Rounds that merge what is in a buffer: :class:`BufferedRounds` (FedBuff, arXiv 2106.06639).

The first ``buffer`` updates are merged, whichever version they started from. Their weights depend on their
staleness, which is known when the buffer is full, so they wait in the spool and are folded then, with the
same additive rules as in a synchronous round.
"""

from __future__ import annotations

from dataclasses import replace

from headwater.config.federation import Federation
from headwater.config.schedule import BufferedSchedule
from headwater.errors import HeadwaterError, UpdateRejected
from headwater.protocol.buffered import BufferedCoordinator, BufferedRules, staleness_weight
from headwater.protocol.machine import Begin, Close, Gone, Halt
from headwater.protocol.messages import TrainRequest
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.events import ClientFailed
from headwater.server.rounds.base import RoundResult, Rounds, entries_of
from headwater.server.rounds.open_round import OpenRound
from headwater.server.rounds.round_driver import DrivenRound, RoundDriver
from headwater.server.storage.checkpoint import Checkpoint
from headwater.strategies.strategy import RoundPlan


class BufferedRounds(Rounds):
    """Asynchronous rounds: a version is the merge of the first ``buffer`` updates."""

    kind = "buffered"
    _coordinator: BufferedCoordinator

    def _begin(self, settings: Federation, done: int) -> None:
        buffer = _schedule(settings).buffer
        self._coordinator = BufferedCoordinator(
            BufferedRules(settings.federation.rounds, buffer=buffer), done=done
        )
        left = self._pool.at_work()
        self._bases: dict[int, str] = {task.round: task.base_sha256 for task in left}
        self._coordinator.go_on({t.client: (t.round, t.asked_s) for t in left})
        self._waiting: dict[str, ReceivedReply] = {}  # accepted updates, where no spool keeps them

    def _reconfigure(self, settings: Federation) -> None:
        self._schedule, cohort = _schedule(settings), settings.cohort
        self._coordinator.reconfigure(
            rounds=settings.federation.rounds,
            buffer=self._schedule.buffer,
            max_staleness=self._schedule.max_staleness,
            min_clients=cohort.min_clients,
            deadline_s=cohort.deadline_s,
            retry_s=cohort.retry_s if self._lasting else None,
            at_once=cohort.clients_per_round,
        )

    def run(self, checkpoint: Checkpoint) -> RoundResult | None:  # noqa: D102 - inherited
        number, started_s = checkpoint.server.round + 1, self._control.stopwatch()
        left = self._left_open(number)
        known = dict(self._pool.profiles()) if left is None else dict(left.profiles)
        if self._too_few(checkpoint, known, left):
            return None
        open_round = self._open(checkpoint, known, left)
        self._bases |= {} if left is None else left.bases
        self._bases[number] = open_round.base_sha256
        oldest = number - self._schedule.max_staleness
        self._bases = {n: digest for n, digest in self._bases.items() if n >= oldest and self._is_ancestor(n)}
        self._write_down(open_round, self._bases, left)
        ready, clients = self._pool.ready(), tuple(open_round.plan.clients)
        there = tuple(c for c in clients if c in ready)
        self._tell_begun(number, len(there))
        self._waiting = self._rechecked(open_round)
        begin = Begin(
            number,
            there,
            self._control.clock(),
            accepted=tuple(self._waiting),
            started=tuple((client, i.round) for client, i in self._waiting.items()),
            absent=tuple(c for c in clients if c not in ready),
        )
        for client in self._coordinator.working.keys() - open_round.plan.clients.keys():
            self._coordinator.receive(Gone(client, number, "no longer enrolled"))
        self._release_rolled_back()
        actions = self._coordinator.receive(begin)
        driven = DrivenRound(
            self._coordinator,
            self._pool,
            self._control,
            number,
            open_round.profiles,
            there,
            self._settings.cohort.min_clients,
            ask=lambda names: self._ask(open_round, checkpoint, names),
            fold=lambda incoming: self._keep(open_round, incoming),
            repaired=self._repairing(open_round, checkpoint),
            retime=self._retime,
        )
        end = RoundDriver(driven, begin.accepted).run(actions)
        if end is None:
            return None
        if isinstance(end, Halt):
            raise self._halted(end)
        return self._merge(checkpoint, open_round, end, started_s)

    def _is_ancestor(self, origin: int) -> bool:
        """Whether what clients started from in this version is behind the adapter as it is now."""
        return self._durability is None or self._durability.versions.descends_from(origin - 1)

    def _release_rolled_back(self) -> None:
        """Who works from what a rollback gave up is asked anew; its reply is not waited for."""
        for client, origin in sorted(self._coordinator.working.items()):
            if not self._is_ancestor(origin):
                self._control.observer(ClientFailed(origin, client, str(_rolled_back(client, origin))))
                self._coordinator.receive(Gone(client, origin, "a rollback"))
                self._pool.exchange.forget_address(TrainRequest, client)

    def _rechecked(self, open_round: OpenRound) -> dict[str, ReceivedReply]:
        """What an earlier process had accepted, as far as it can be folded still.

        Not what started from a base that is forgotten (the round was planned anew, or the organiser takes
        less stale updates now, or went back to an earlier version), or what was signed with keys that the
        client has no more.
        """
        kept, number = {}, open_round.plan.round
        for incoming in self._spooled(number, open_round.plan.clients):
            try:
                if not self._is_ancestor(incoming.round):
                    raise _rolled_back(incoming.address, incoming.round)
                open_round.check(incoming, self._origin(incoming.round))
                kept[incoming.address] = replace(incoming, data=b"", raw=b"")
            except HeadwaterError as error:
                self._refused(number, incoming, error)
        return kept

    def _keep(self, open_round: OpenRound, incoming: ReceivedReply) -> None:
        """Check the update as if it were folded now; keep it until the buffer is full."""
        open_round.check(incoming, self._origin(incoming.round))
        if self._durability is not None:
            number = open_round.plan.round
            self._durability.spool.put(number, incoming.address, incoming.raw, started=incoming.round)
            incoming = replace(incoming, data=b"", raw=b"")  # read back when it is folded
        self._waiting[incoming.address] = incoming

    def _kept(self, number: int, client: str) -> ReceivedReply:
        incoming = self._waiting.pop(client)
        if self._durability is None:
            return incoming
        raw = self._durability.spool.read(number, client) or b""
        return self._pool.exchange.verify(client, TrainRequest, incoming.round, raw)

    def _origin(self, number: int) -> tuple[int, str]:
        return number, self._bases.get(number, "")

    def _merge(
        self, checkpoint: Checkpoint, open_round: OpenRound, end: Close, started_s: float
    ) -> RoundResult:
        """Fold what is in the buffer, each update with its weight."""
        plan, number = open_round.plan, open_round.plan.round
        started = {client: self._waiting[client].round for client in end.accepted}
        weights = {
            client: staleness_weight(
                plan.merge.weights[client], number - origin, self._schedule.staleness_exponent
            )
            for client, origin in started.items()
        }
        merge = replace(plan.merge, weights=weights)
        rule = self._strategy.aggregator(plan, open_round.base)
        weighed = RoundPlan(number, {c: plan.clients[c] for c in end.accepted}, merge)
        origins = {client: self._origin(origin) for client, origin in started.items()}
        folding = open_round.again(weighed, origins, rule)
        folding.players = self._players(weighed, rule)
        for client in end.accepted:
            incoming = self._kept(number, client)
            try:
                folding.fold(incoming, keep=self._durability is None)
            except HeadwaterError as error:  # the spool is damaged, or the client has other keys since
                self._refused(number, incoming, error)
                del started[client]
                failed = tuple(sorted({**dict(end.failed), client: str(error)}.items()))
                end = replace(end, accepted=tuple(started), failed=failed)
        merged = folding.merge(lambda client: self._again(number, client, started[client]))
        self._tell_marks(number, merged)
        draft = folding.draft(end, merged, folding.base + merged.delta)
        for client, origin in started.items():
            draft.stale(client, number - origin)
        started_from = {client: self._bases[origin] for client, origin in started.items()}
        received = entries_of(folding, started)
        return RoundResult(merged, draft, started, started_from, started_s, received, folding.players)


def _rolled_back(client: str, origin: int) -> UpdateRejected:
    return UpdateRejected(
        f"client {client}",
        expected="an update of the adapter that the run goes on from",
        got=f"one that started from version {origin}, which a rollback gave up",
        hint="Nothing needs to be done: the client is asked anew.",
    )


def _schedule(settings: Federation) -> BufferedSchedule:
    assert isinstance(settings.schedule, BufferedSchedule)
    return settings.schedule
