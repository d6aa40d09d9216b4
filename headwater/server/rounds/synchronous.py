"""One round, planned, talked through and merged: :class:`SynchronousRounds` and :class:`BufferedRounds`.

A synchronous round folds each update the moment it arrives, so memory does not grow with clients. A
buffered one (FedBuff, arXiv 2106.06639) merges the first ``buffer`` updates, whichever version they
started from; their weights depend on their staleness, which is known when the buffer is full, so
they wait in the spool and are folded then. Both merge with the same additive rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from headwater.config.federation import Federation
from headwater.config.schedule import BufferedSchedule
from headwater.errors import FederationStopped, HeadwaterError, UpdateRejected
from headwater.merging.aggregator import Merged
from headwater.protocol.buffered import BufferedCoordinator, staleness_weight
from headwater.protocol.coordinator import Coordinator
from headwater.protocol.machine import Begin, Close, Gone, Halt
from headwater.protocol.messages import ClientProfile, TrainRequest
from headwater.seeds.keys import Key
from headwater.server.clients.client_pool import ClientPool
from headwater.server.clients.downlink import Downlink
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.handshake import name_reasons
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Notice, RoundStarted
from headwater.server.rounds.open_round import OpenRound
from headwater.server.rounds.round_driver import RoundDriver
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.durability import Durability, OpenRoundRecord
from headwater.strategies.assignment import names_of
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.strategy import RoundPlan
from headwater.training.context import TrainingContext


@dataclass(frozen=True)
class RoundResult:
    """A round that ended.

    Args:
        merged: the rule's result.
        record: its line in ``rounds.jsonl``, without what comes after the merge.
        accepted: for every client whose update is in it, the round that the update answered.
        started_s: when it began, on the watch's clock.
    """

    merged: Merged
    record: dict[str, Any]
    accepted: Mapping[str, int]
    started_s: float


class Rounds(ABC):
    """What both kinds have in common; :meth:`run` is the way in.

    Args:
        settings: of the federation.
        run: id of the run.
        context: the base model.
        members: the clients.
        root: the federation's root key.
        deployment: where what was accepted outlives a crash; None in a simulation.
        downlink: how the adapter travels.
        done: rounds that are finished.
    """

    kind: ClassVar[str]
    _coordinator: Coordinator | BufferedCoordinator

    def __init__(
        self,
        settings: Federation,
        run: str,
        context: TrainingContext,
        members: ClientPool,
        root: Key,
        deployment: Durability | None,
        downlink: Downlink,
        *,
        done: int,
    ) -> None:
        self._downlink = downlink
        self._run, self._bench, self._members = run, context, members
        self._root, self._deployment = root, deployment
        self._begin(settings, done)

    def reconfigure(self, settings: Federation, strategy: FederatedStrategy, watch: RunControl) -> None:
        """Go on under these settings, between rounds; call it before the first one too."""
        self._settings, self._strategy, self._watch = settings, strategy, watch
        self._times = settings.cohort.deadline_s, settings.cohort.retry_s
        self._take(settings)

    @abstractmethod
    def _begin(self, settings: Federation, done: int) -> None:
        """Make the coordinator."""

    @abstractmethod
    def _take(self, settings: Federation) -> None:
        """Tell it other rules."""

    @abstractmethod
    def run(self, checkpoint: Checkpoint) -> RoundResult | None:
        """The round after the checkpoint's.

        None if it cannot end: a stop was asked for, or too many clients are gone. It stays open.

        Raises:
            FederationStopped: too few updates, in a simulation.
            Interrupted: the run is to end now; what was accepted is in the spool.
        """

    def _retime(self) -> None:
        """Apply the times that the organiser has changed since they were last asked for, at once."""
        if self._deployment is None:
            return
        cohort = self._deployment.settings().cohort
        times = cohort.deadline_s, cohort.retry_s
        if times != self._times:
            self._times = times
            self._coordinator.retime(deadline_s=cohort.deadline_s, retry_s=cohort.retry_s)
            shown = "none" if cohort.deadline_s is None else f"{cohort.deadline_s:g} s"
            text = f"the open round has new times: deadline {shown}, a failed client is asked again after "
            self._watch.observer(Notice(f"{text}{cohort.retry_s:g} s"))

    def _too_few(self, known: Mapping[str, ClientProfile]) -> bool:
        """Whether clients have left since they were counted, so that the round could never end."""
        there = sum(profile.train_examples > 0 for profile in known.values())
        return self._deployment is not None and there < self._settings.cohort.min_clients

    def _halted(self, end: Halt) -> FederationStopped:
        """Too few updates, and nobody is asked again: a simulation ends."""
        return FederationStopped(
            f"round {end.round}",
            expected=f"at least {self._settings.cohort.min_clients} updates",
            got=f"{len(end.accepted)}{name_reasons(end.failed)}",
            hint=f"The state after round {end.round - 1} is kept: mend the clients, then --resume, or mend "
            "the file and start anew.",
        )

    def _open(
        self, checkpoint: Checkpoint, roster: Mapping[str, ClientProfile], left: OpenRoundRecord | None
    ) -> OpenRound:
        """Plan the next round for these clients; one that was left open, as it was planned then."""
        strategy = self._strategy if left is None else FederatedStrategy(_as_then(self._settings, left))
        plan = strategy.plan(checkpoint.server, roster, key=self._root, dealt=self._dealt(roster, left))
        down = self._downlink.open(checkpoint.server, self._settings.codec.down, checkpoint.accepted)
        rule = self._strategy.aggregator(plan)
        return OpenRound(plan, down, self._run, roster, rule, self._root)

    def _dealt(self, roster: Mapping[str, ClientProfile], left: OpenRoundRecord | None) -> Mapping[str, str]:
        """The names of the clients' methods: quotas of all that are known, whoever is there now."""
        if left is not None and left.methods:
            return left.methods
        everyone = {**self._members.profiles(), **roster}
        return names_of(self._settings, [n for n, p in everyone.items() if p.train_examples > 0])

    def _left_open(self, number: int) -> OpenRoundRecord | None:
        """The roster of this round, if an earlier process had begun it."""
        roster = OpenRoundRecord.load(self._deployment.roster) if self._deployment else None
        return roster if roster is not None and roster.round == number else None

    def _write_down(
        self, open_round: OpenRound, bases: Mapping[int, str], left: OpenRoundRecord | None = None
    ) -> None:
        """Who is in the round, for a process that has to go on with it."""
        if self._deployment is not None:
            rounds = self._settings.federation.rounds if left is None else left.rounds
            number = open_round.plan.round
            methods = {c: plan.method for c, plan in open_round.plan.clients.items() if plan.method}
            OpenRoundRecord(number, open_round.roster, bases, rounds, methods).save(self._deployment.roster)

    def _spooled(self, number: int, clients: Mapping[str, Any]) -> list[ReceivedReply]:
        """What an earlier process had accepted into this round."""
        if self._deployment is None:
            return []
        spool, opened = self._deployment.spool, self._members.exchange.opened
        started = spool.started(number)
        found = []
        for client in spool.clients(number):
            raw = spool.read(number, client) if client in clients else None
            if raw is not None:  # else it is damaged: the client is asked again, and sends the same bytes
                found.append(opened(client, TrainRequest, started.get(client, number), raw))
        return found

    def _ask(self, open_round: OpenRound, checkpoint: Checkpoint, clients: Sequence[str]) -> None:
        for client in clients:
            self._members.exchange.forget_address(TrainRequest, client)
        requests = [(c, open_round.request(c, checkpoint.accepted.get(c, 0))) for c in clients]
        sizes = self._members.exchange.send(requests, open_round.plan.round)
        for client, request in requests:
            open_round.note_sent(request, sizes[client])

    def _heeding(
        self, checkpoint: Checkpoint, fold: Callable[[ReceivedReply], None]
    ) -> Callable[[ReceivedReply], None]:
        """``fold``, and whoever cannot make its base of what it was sent is sent everything next time."""

        def fold_or_note(incoming: ReceivedReply) -> None:
            try:
                fold(incoming)
            except HeadwaterError as error:
                client = incoming.address
                self._downlink.heard(client, error, checkpoint.accepted.get(client, 0))
                raise

        return fold_or_note

    def _tell_begun(self, number: int, clients: int) -> None:
        """A round is open; clients that were lost before it are failures of it."""
        lost = self._members.lost()
        self._watch.observer(RoundStarted(number, clients + len(lost)))
        for client, reason in lost.items():
            self._watch.observer(ClientFailed(number, client, reason))

    def _refused(self, number: int, incoming: ReceivedReply, error: HeadwaterError) -> None:
        """An update from the spool of this round that cannot be folded after all: asked for again."""
        assert self._deployment is not None
        self._deployment.spool.remove(number, incoming.address)
        self._watch.observer(ClientFailed(number, incoming.address, f"from the spool: {error}"))


class SynchronousRounds(Rounds):
    """One version at a time."""

    kind = "synchronous"
    _coordinator: Coordinator

    def _begin(self, settings: Federation, done: int) -> None:
        self._coordinator = Coordinator(settings.federation.rounds, done=done)

    def _take(self, settings: Federation) -> None:
        cohort = settings.cohort
        self._coordinator.reconfigure(
            rounds=settings.federation.rounds,
            min_clients=cohort.min_clients,
            target=cohort.target_clients,
            deadline_s=cohort.deadline_s,
            retry_s=cohort.retry_s if self._deployment else None,
        )

    def run(self, checkpoint: Checkpoint) -> RoundResult | None:  # noqa: D102 - inherited
        number, started_s = checkpoint.server.round + 1, self._watch.clock()
        left = self._left_open(number)
        known = self._planned_anew(number) if left is None else left.profiles
        if self._too_few(known):
            return None
        open_round = self._open(checkpoint, known, left)
        clients = open_round.plan.clients
        if left is None:
            self._write_down(open_round, {})
        self._tell_begun(number, len(clients))
        accepted = self._refold(open_round)
        actions = self._coordinator.receive(Begin(number, tuple(clients), self._watch.clock(), accepted))
        conversation = RoundDriver(
            self._coordinator,
            self._members,
            self._watch,
            number,
            open_round.roster,
            tuple(clients),
            self._settings.cohort.min_clients,
            ask=lambda names: self._ask(open_round, checkpoint, names),
            fold=self._heeding(checkpoint, lambda incoming: self._fold(open_round, incoming)),
            replaceable=self._deployment is not None,
            retime=self._retime,
        )
        end = conversation.run(actions, accepted)
        self._members.exchange.forget(TrainRequest, number)
        if end is None:
            return None
        if isinstance(end, Halt):
            raise self._halted(end)
        merged = open_round.merge()
        record = open_round.record(end, merged, open_round.base + merged.delta)
        return RoundResult(merged, record, dict.fromkeys(end.accepted, number), started_s)

    def _planned_anew(self, number: int) -> Mapping[str, ClientProfile]:
        """Who is there, and whose update was accepted before the round had to be planned anew."""
        ready, known = self._members.ready(), self._members.profiles()
        spooled = self._deployment.spool.clients(number) if self._deployment else ()
        return dict(sorted({**{c: known[c] for c in spooled if c in known}, **ready}.items()))

    def _refold(self, open_round: OpenRound) -> tuple[str, ...]:
        accepted = []
        for incoming in self._spooled(open_round.plan.round, open_round.plan.clients):
            try:
                open_round.fold(incoming)
                accepted.append(incoming.address)
            except HeadwaterError as error:
                self._refused(open_round.plan.round, incoming, error)
        return tuple(accepted)

    def _fold(self, open_round: OpenRound, incoming: ReceivedReply) -> None:
        """To disk, then into the accumulator: once it is said to be accepted, a crash cannot lose it."""
        spool = self._deployment.spool if self._deployment else None
        if spool is not None and not incoming.error:
            spool.put(incoming.round, incoming.address, incoming.raw)
        try:
            open_round.fold(incoming)
        except HeadwaterError:
            if spool is not None:
                spool.remove(incoming.round, incoming.address)
            raise


class BufferedRounds(Rounds):
    """Asynchronous rounds: a version is the merge of the first ``buffer`` updates."""

    kind = "buffered"
    _coordinator: BufferedCoordinator

    def _begin(self, settings: Federation, done: int) -> None:
        buffer = _schedule(settings).buffer
        self._coordinator = BufferedCoordinator(settings.federation.rounds, buffer=buffer, done=done)
        self._bases: dict[int, str] = {}
        self._waiting: dict[str, ReceivedReply] = {}  # accepted updates, where no spool keeps them

    def _take(self, settings: Federation) -> None:
        self._schedule, cohort = _schedule(settings), settings.cohort
        self._coordinator.reconfigure(
            rounds=settings.federation.rounds,
            buffer=self._schedule.buffer,
            max_staleness=self._schedule.max_staleness,
            min_clients=cohort.min_clients,
            deadline_s=cohort.deadline_s,
            retry_s=cohort.retry_s if self._deployment else None,
            at_once=cohort.clients_per_round,
        )

    def run(self, checkpoint: Checkpoint) -> RoundResult | None:  # noqa: D102 - inherited
        number, started_s = checkpoint.server.round + 1, self._watch.clock()
        left = self._left_open(number)
        known = dict(self._members.profiles()) if left is None else dict(left.profiles)
        if self._too_few(known):
            return None
        open_round = self._open(checkpoint, known, left)
        self._bases |= {} if left is None else left.bases
        self._bases[number] = open_round.base_sha256
        oldest = number - self._schedule.max_staleness
        self._bases = {n: digest for n, digest in self._bases.items() if n >= oldest and self._is_ancestor(n)}
        self._write_down(open_round, self._bases, left)
        ready, clients = self._members.ready(), tuple(open_round.plan.clients)
        there = tuple(c for c in clients if c in ready)
        self._tell_begun(number, len(there))
        self._waiting = self._rechecked(open_round)
        begin = Begin(
            number,
            there,
            self._watch.clock(),
            accepted=tuple(self._waiting),
            started=tuple((client, i.round) for client, i in self._waiting.items()),
            absent=tuple(c for c in clients if c not in ready),
        )
        for client in self._coordinator.working.keys() - open_round.plan.clients.keys():
            self._coordinator.receive(Gone(client, number, "no longer enrolled"))
        self._free_the_given_up()
        actions = self._coordinator.receive(begin)
        conversation = RoundDriver(
            self._coordinator,
            self._members,
            self._watch,
            number,
            open_round.roster,
            there,
            self._settings.cohort.min_clients,
            ask=lambda names: self._ask(open_round, checkpoint, names),
            fold=self._heeding(checkpoint, lambda incoming: self._keep(open_round, incoming)),
            retime=self._retime,
        )
        end = conversation.run(actions, begin.accepted)
        if end is None:
            return None
        if isinstance(end, Halt):
            raise self._halted(end)
        return self._merge(checkpoint, open_round, end, started_s)

    def _is_ancestor(self, origin: int) -> bool:
        """Whether what clients started from in this version is behind the adapter as it is now."""
        return self._deployment is None or self._deployment.versions.descends_from(origin - 1)

    def _free_the_given_up(self) -> None:
        """Who works from what a rollback gave up is asked anew; its reply is not waited for."""
        for client, origin in sorted(self._coordinator.working.items()):
            if not self._is_ancestor(origin):
                self._watch.observer(ClientFailed(origin, client, str(_given_up(client, origin))))
                self._coordinator.receive(Gone(client, origin, "a rollback"))
                self._members.exchange.forget_address(TrainRequest, client)

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
                    raise _given_up(incoming.address, incoming.round)
                open_round.check(incoming, self._origin(incoming.round))
                kept[incoming.address] = replace(incoming, data=b"", raw=b"")
            except HeadwaterError as error:
                self._refused(number, incoming, error)
        return kept

    def _keep(self, open_round: OpenRound, incoming: ReceivedReply) -> None:
        """Check the update as if it were folded now; keep it until the buffer is full."""
        open_round.check(incoming, self._origin(incoming.round))
        if self._deployment is not None:
            number = open_round.plan.round
            self._deployment.spool.put(number, incoming.address, incoming.raw, started=incoming.round)
            incoming = replace(incoming, data=b"", raw=b"")  # read back when it is folded
        self._waiting[incoming.address] = incoming

    def _kept(self, number: int, client: str) -> ReceivedReply:
        incoming = self._waiting.pop(client)
        if self._deployment is None:
            return incoming
        raw = self._deployment.spool.read(number, client) or b""
        return self._members.exchange.opened(client, TrainRequest, incoming.round, raw)

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
        folding = open_round.again(
            RoundPlan(number, {c: plan.clients[c] for c in end.accepted}, merge),
            {client: self._origin(origin) for client, origin in started.items()},
            self._strategy.aggregator(plan),
        )
        for client in end.accepted:
            incoming = self._kept(number, client)
            try:
                folding.fold(incoming)
            except HeadwaterError as error:  # the spool is damaged, or the client has other keys since
                self._refused(number, incoming, error)
                del started[client]
                failed = tuple(sorted({**dict(end.failed), client: str(error)}.items()))
                end = replace(end, accepted=tuple(started), failed=failed)
        merged = folding.merge()
        record = folding.record(end, merged, folding.base + merged.delta)
        for client, origin in started.items():
            record["clients"][client]["staleness"] = number - origin
        return RoundResult(merged, record, started, started_s)


def _given_up(client: str, origin: int) -> UpdateRejected:
    return UpdateRejected(
        f"client {client}",
        expected="an update of the adapter that the run goes on from",
        got=f"one that started from version {origin}, which a rollback gave up",
        hint="Nothing needs to be done: the client is asked anew.",
    )


def _schedule(settings: Federation) -> BufferedSchedule:
    assert isinstance(settings.schedule, BufferedSchedule)
    return settings.schedule


def _as_then(settings: Federation, left: OpenRoundRecord) -> Federation:
    """The settings under which a round that was left open is planned again to the same plan."""
    federation = settings.federation.model_copy(update={"rounds": left.rounds or settings.federation.rounds})
    cohort = settings.cohort.model_copy(update={"clients_per_round": None})  # its clients are known
    return settings.model_copy(update={"federation": federation, "cohort": cohort})
