"""What synchronous and buffered rounds share: :class:`Rounds` opens, merges, measures and keeps them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.config.codec import CodecSettings
from headwater.config.federation import Federation
from headwater.config.schedule import CohortSettings
from headwater.errors import FederationStopped, HeadwaterError, StorageError
from headwater.merging.aggregator import Aggregator, Merged
from headwater.proto.wire import decode_failure
from headwater.protocol.buffered import BufferedCoordinator
from headwater.protocol.coordinator import Coordinator
from headwater.protocol.machine import Halt
from headwater.protocol.messages import ClientProfile, TrainRequest, reported
from headwater.receipts.receipt import Entry
from headwater.security.secagg.bounds import Promise
from headwater.seeds.keys import Key
from headwater.server.clients.client_pool import ClientPool
from headwater.server.clients.downlink import Downlink
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.handshake import name_reasons
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Notice, RoundStarted
from headwater.server.round_record import RoundDraft
from headwater.server.rounds.contribution import Contributions, PlayerSums
from headwater.server.rounds.masked_exchange import MaskedExchange
from headwater.server.rounds.masked_round import MaskedRound, Masks
from headwater.server.rounds.open_round import OpenRound
from headwater.server.rounds.releases import Releases
from headwater.server.rounds.withheld_round import WithheldRound
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.durability import Durability, OpenRoundRecord
from headwater.strategies.assignment import names_of
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.strategy import RoundPlan

SUM = "+"
"""In the spool a sum stands under its edge aggregator's name, this sign, and its first client."""


def spooled_as(incoming: ReceivedReply) -> str:
    """The name of a reply in the spool."""
    return f"{incoming.address}{SUM}{min(incoming.rows)}" if incoming.rows else incoming.address


@dataclass(frozen=True)
class RoundResult:
    """A round that ended.

    Args:
        merged: the rule's result.
        draft: its line in ``rounds.jsonl``, without what comes after the merge.
        accepted: for every client whose update is in it, the round that the update answered.
        started_from: for each of them the hash of the state that it started from.
        started_s: when it began, on the run control's stopwatch.
        received: the accepted updates as they arrived.
        players: the sums apart by player, in a round whose contributions are measured.
        left_out: whether its updates could not be summed, so that it moves nothing.
    """

    merged: Merged
    draft: RoundDraft
    accepted: Mapping[str, int]
    started_from: Mapping[str, str]
    started_s: float
    received: tuple[Entry, ...] = ()
    players: PlayerSums[Any] | None = None
    left_out: bool = False


def entries_of(open_round: OpenRound, accepted: Mapping[str, int]) -> tuple[Entry, ...]:
    """The accepted updates, for the round's receipt."""
    received = open_round.received
    return tuple(Entry(client, started, *received[client]) for client, started in accepted.items())


class Rounds(ABC):
    """What both kinds have in common; :meth:`run` is the way in.

    Args:
        settings: of the federation.
        run: id of the run.
        pool: the clients.
        root: the federation's root key.
        durability: where what was accepted outlives a crash; None in a simulation.
        downlink: how the adapter travels.
        done: rounds that are finished.
    """

    kind: ClassVar[str]
    _coordinator: Coordinator | BufferedCoordinator

    def __init__(
        self,
        settings: Federation,
        run: str,
        pool: ClientPool,
        root: Key,
        durability: Durability | None,
        downlink: Downlink,
        *,
        done: int,
    ) -> None:
        self._downlink = downlink
        self._run, self._pool = run, pool
        self._root, self._durability = root, durability
        nobody: Mapping[str, ClientProfile] = {}
        self._dealt: tuple[Federation | None, Mapping[str, ClientProfile], Mapping[str, str]]
        self._dealt = None, nobody, {}
        self._begin(settings, done)

    def reconfigure(
        self,
        settings: Federation,
        strategy: FederatedStrategy,
        control: RunControl,
        contributions: Contributions | None = None,
        releases: Releases | None = None,
    ) -> None:
        """Go on under these settings, between rounds; call it before the first one too.

        Args:
            settings: of the federation.
            strategy: theirs.
            control: time and stop.
            contributions: measures who brought what; None without.
            releases: what leaves with noise; None without.
        """
        self._settings, self._strategy, self._control = settings, strategy, control
        self._contributions, self._releases = contributions, releases
        self._times = settings.cohort.deadline_s, settings.cohort.retry_s
        self._reconfigure(settings)

    @property
    def _lasting(self) -> bool:
        """Whether a round with too few updates waits for clients: on a server, and in simulated time."""
        return self._durability is not None or self._control.simulated

    @abstractmethod
    def _begin(self, settings: Federation, done: int) -> None:
        """Make the coordinator."""

    @abstractmethod
    def _reconfigure(self, settings: Federation) -> None:
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
        if self._durability is None:
            return
        cohort = self._durability.settings().cohort
        times = cohort.deadline_s, cohort.retry_s
        if times != self._times:
            self._times = times
            self._coordinator.retime(deadline_s=cohort.deadline_s, retry_s=cohort.retry_s)
            shown = "none" if cohort.deadline_s is None else f"{cohort.deadline_s:g} s"
            text = f"the open round has new times: deadline {shown}, a failed client is asked again after "
            self._control.observer(Notice(f"{text}{cohort.retry_s:g} s"))

    def _too_few(
        self, checkpoint: Checkpoint, known: Mapping[str, ClientProfile], left: OpenRoundRecord | None
    ) -> bool:
        """Whether clients have left since they were counted, so that the round could never end.

        Or, with noise of a sequence, so that it would spend one of its rounds on fewer.
        """
        if self._durability is None:
            return False
        able, least = [name for name, profile in known.items() if profile.train_examples > 0], self._least
        if self._settings.privacy.correlated and left is None:
            least = self._settings.cohort.min_clients
        waiting = self._strategy.not_in_turn(checkpoint.server, able)
        return len(able) - len(waiting) < least

    @property
    def _least(self) -> int:
        """With fewer updates no round ends.

        One with the server's noise ends with any: how many there are would tell. Shares need so many.
        """
        of_server = self._releases is not None and not self._settings.privacy.shares
        return 0 if of_server else self._settings.cohort.min_clients

    def _halted(self, end: Halt) -> FederationStopped:
        """The error of a simulation's round with too few updates."""
        return FederationStopped(
            f"round {end.round}",
            expected=f"at least {self._settings.cohort.min_clients} updates",
            got=f"{len(end.accepted)}{name_reasons(end.failed)}",
            hint=f"The state after round {end.round - 1} is kept: mend the clients, then --resume, or mend "
            "the file and start anew.",
        )

    def _open(
        self, checkpoint: Checkpoint, profiles: Mapping[str, ClientProfile], left: OpenRoundRecord | None
    ) -> OpenRound:
        """Plan the next round for these clients; one that was left open, as it was planned then."""
        strategy = self._strategy
        if left is not None:
            strategy = FederatedStrategy(_settings_of(self._settings, left), drawn=True)
        self._planned_by = strategy
        everyone = self._everyone(profiles)
        population = None
        if checkpoint.server.control is not None or checkpoint.server.shift is not None:
            population = {name: profile.train_examples for name, profile in everyone.items()}
        if checkpoint.server.shift is not None:
            population = _with_all_of_the_sum(checkpoint, population or {})
        plan = strategy.plan(
            checkpoint.server,
            profiles,
            key=self._root,
            method_names=self._method_names(everyone, left),
            population=population,
        )
        codec = self._settings.codec.down
        down = self._downlink.open(checkpoint.server, codec, checkpoint.accepted, everyone)
        correlated = None if self._releases is None else self._releases.draw
        rule = self._strategy.aggregator(plan, down.base, correlated)
        privacy = self._settings.privacy
        if privacy.masks:
            cohort = self._settings.cohort
            promise = Promise(privacy.mask_dropouts, privacy.mask_colluding, cohort.min_clients)
            if (devices := self._control.masking) is not None:
                masks = Masks(devices, promise)
                return MaskedRound(plan, down, self._run, profiles, rule, self._root, masks)
            if self._durability is not None:
                path = self._durability.masked_round
                times = {"patience_s": privacy.mask_wait_s, "retry_s": cohort.retry_s}
                once = privacy.shares
                through = MaskedExchange(self._pool, self._control, path, promise, once=once, **times)
                return WithheldRound(plan, down, self._run, profiles, rule, self._root, through)
        open_round = OpenRound(plan, down, self._run, profiles, rule, self._root)
        if self._settings.schedule.has_rounds:
            open_round.players = self._players(plan, rule)
        return open_round

    def _players(self, plan: RoundPlan, rule: Aggregator[Any]) -> PlayerSums[Any] | None:
        """What a round adds its updates to by player; None where it is not measured."""
        measured = self._contributions
        return None if measured is None else measured.opened(rule, plan.merge, plan.round)

    def _everyone(self, profiles: Mapping[str, ClientProfile]) -> Mapping[str, ClientProfile]:
        """The round's clients, and those who are known and not here."""
        known = self._pool.profiles()
        return known if profiles is known else {**known, **profiles}

    def _method_names(
        self, everyone: Mapping[str, ClientProfile], left: OpenRoundRecord | None
    ) -> Mapping[str, str]:
        """The method's name of each client: quotas count all known clients, online or not."""
        if left is not None and left.methods:
            return left.methods
        settings, dealt_to, dealt = self._dealt
        if settings is not self._settings or dealt_to is not everyone:  # else the same are here as before
            dealt = names_of(self._settings, [n for n, p in everyone.items() if p.train_examples > 0])
            self._dealt = self._settings, everyone, dealt
        return dealt

    def _left_open(self, number: int) -> OpenRoundRecord | None:
        """The record of this round, if an earlier process had begun it."""
        record = OpenRoundRecord.load(self._durability.open_round) if self._durability else None
        return record if record is not None and record.round == number else None

    def _write_down(
        self, open_round: OpenRound, bases: Mapping[int, str], left: OpenRoundRecord | None = None
    ) -> None:
        """Who is in the round, for a process that has to go on with it."""
        if self._durability is not None:
            rounds = self._settings.federation.rounds if left is None else left.rounds
            number = open_round.plan.round
            methods = {c: plan.method for c, plan in open_round.plan.clients.items() if plan.method}
            codec = (left.codec if left else "") or self._settings.codec.model_dump_json(include={"up"})
            drawn = self._settings.cohort.model_dump_json(include={"clients_per_round"})
            drawn = drawn if left is None else left.cohort
            record = OpenRoundRecord(number, open_round.profiles, bases, rounds, methods, codec, drawn)
            record.save(self._durability.open_round)

    def _spooled(self, number: int, clients: Mapping[str, Any]) -> list[ReceivedReply]:
        """What an earlier process had accepted into this round."""
        if self._durability is None:
            return []
        spool, verify = self._durability.spool, self._pool.exchange.verify
        started = spool.started(number)
        found = []
        for client in spool.clients(number):
            edge, _, summed = client.partition(SUM)
            raw = spool.read(number, client) if summed or client in clients else None
            if raw is not None and summed:
                parts = self._pool.exchange.verify_group(edge, TrainRequest, number, raw)
                found += [part for part in parts if part.rows]  # failures were told when they came
            elif raw is not None:  # else it is damaged: the client is asked again, and sends the same bytes
                found.append(verify(client, TrainRequest, started.get(client, number), raw))
        return found

    def _again(self, number: int, client: str, started: int) -> ReceivedReply:
        """A reply that was accepted into this round, for a rule that needs it once more.

        Raises:
            StorageError: it was damaged since; a restart asks the client again.
        """
        assert self._durability is not None, "a simulation keeps such replies"
        raw = self._durability.spool.read(number, client)
        if raw is None:
            raise StorageError(
                f"round {number}, second pass over the update of client {client}",
                expected="the reply that was accepted",
                got="a damaged file in the spool, which is set aside",
                hint="Check the disk and start the server again: it asks the client anew.",
            )
        return self._pool.exchange.verify(client, TrainRequest, started, raw)

    def _ask(self, open_round: OpenRound, checkpoint: Checkpoint, clients: Sequence[str]) -> None:
        for client in clients:
            self._pool.exchange.forget_address(TrainRequest, client)
        requests = [(c, open_round.request(c, checkpoint.accepted.get(c, 0))) for c in clients]
        sizes = self._pool.exchange.send(requests, open_round.plan.round, open_round.merge_plan_of)
        for client, request in requests:
            open_round.note_sent(request, sizes[client])

    def _repairing(self, open_round: OpenRound, checkpoint: Checkpoint) -> Callable[[ReceivedReply], bool]:
        """What asks a client again, at once, that lacks what its state was made from: with all of it.

        Once: one that lacks it still has failed. Who started from an earlier version is asked in its turn.
        """

        def repaired(incoming: ReceivedReply) -> bool:
            failure = None if incoming.error else decode_failure(incoming.data)
            client, number = incoming.address, open_round.plan.round
            if failure is None or (failure.client, failure.run) != (client, self._run):
                return False
            error = reported(failure, f"client {client}", expected="an update", remote=incoming.remote)
            again = self._downlink.needs_full(client, error, checkpoint.accepted.get(client, 0))
            if not again or incoming.round != number or client not in self._coordinator.waiting_for:
                return False
            self._control.observer(Notice(f"round {number}: client {client} is sent the whole adapter"))
            self._ask(open_round, checkpoint, [client])
            return True

        return repaired

    def _tell_begun(self, number: int, clients: int) -> None:
        """A round is open; clients that were lost before it are failures of it."""
        lost = self._pool.lost()
        self._control.observer(RoundStarted(number, clients + len(lost)))
        for client, reason in lost.items():
            self._control.observer(ClientFailed(number, client, reason))

    def _tell_marks(self, number: int, merged: Merged) -> None:
        """Whose updates stood out."""
        for client, mark in sorted(merged.marks.items()):
            if mark.suspect:
                told = f"round {number}: the update of client {client} stands out: {mark.suspect}"
                self._control.observer(Notice(told + (", left out" if mark.left_out else "")))

    def _refused(self, number: int, incoming: ReceivedReply, error: HeadwaterError) -> None:
        """An update from the spool of this round that cannot be folded after all: asked for again."""
        assert self._durability is not None
        self._durability.spool.remove(number, spooled_as(incoming))
        for client in sorted(incoming.rows) or [incoming.address]:
            self._control.observer(ClientFailed(number, client, f"from the spool: {error}"))


def _settings_of(settings: Federation, left: OpenRoundRecord) -> Federation:
    """The settings under which a round that was left open is planned again to the same plan."""
    federation = settings.federation.model_copy(update={"rounds": left.rounds or settings.federation.rounds})
    codec = settings.codec
    if left.codec:
        then = CodecSettings.model_validate_json(left.codec)
        codec = codec.model_copy(update={"up": then.up})
    cohort = settings.cohort  # with noise a sum is divided, and priced, as it was drawn
    if left.cohort:
        asked = CohortSettings.model_validate_json(left.cohort).clients_per_round
        cohort = cohort.model_copy(update={"clients_per_round": asked})
    return settings.model_copy(update={"federation": federation, "codec": codec, "cohort": cohort})


def _with_all_of_the_sum(checkpoint: Checkpoint, population: Mapping[str, int]) -> dict[str, int]:
    """Train examples of all clients of EF21: who has sent something counts, also without any now.

    Raises:
        FederationStopped: what a client that left had sent cannot be taken out of the sum.
    """
    if gone := sorted(checkpoint.accepted.keys() - population.keys()):
        raise FederationStopped(
            f"round {checkpoint.server.round + 1}",
            expected="all clients whose updates EF21 has added up",
            got=f"{len(gone)} that are not enrolled any more, such as {gone[0]}",
            hint="Enrol them again, or start a new run: error_feedback = 'ef14' lets clients leave.",
        )
    return {name: count or int(name in checkpoint.accepted) for name, count in population.items()}
