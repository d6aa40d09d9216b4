"""FederationServer: the rounds of a federation, over any Flower Grid.

It does what the coordinator says: sends plans, folds each reply the moment it arrives, merges,
evaluates, writes the round and the checkpoint. Which client, which rule and which state come from
the strategy; nothing of Flower's own aggregation is used. :mod:`.rounds` has the two kinds of rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from flwr.serverapp import Grid

from headwater.config import LoadedFederation
from headwater.config.federation import Federation
from headwater.errors import ConfigError, FederationStopped
from headwater.privacy.accounting import in_words
from headwater.protocol.messages import ClientProfile, ProfileRequest
from headwater.receipts.bundle import goes_on_from
from headwater.receipts.written import Head, ReceiptBook
from headwater.security.receipt_keys import ReceiptKey
from headwater.seeds.keys import Key
from headwater.server.clients.client_pool import ClientPool, FixedClients
from headwater.server.clients.downlink import Downlink
from headwater.server.clients.exchange import Exchange
from headwater.server.clients.handshake import collect_profiles
from headwater.server.clients.run_control import RunControl
from headwater.server.events import Notice, RunStarted, Waiting
from headwater.server.metrics import Tracker, metric_name
from headwater.server.round_record import RoundDraft, Traffic
from headwater.server.rounds.base import RoundResult, Rounds
from headwater.server.rounds.buffered import BufferedRounds
from headwater.server.rounds.commits import Commits
from headwater.server.rounds.contribution import Contributions
from headwater.server.rounds.evaluation import EvaluationRound
from headwater.server.rounds.evaluation_wait import EvaluationAborted
from headwater.server.rounds.quorum import Quorum, trainable
from headwater.server.rounds.releases import Releases, exhausted, recorded
from headwater.server.rounds.synchronous import SynchronousRounds
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.durability import Durability
from headwater.server.storage.run_folder import RunFolder
from headwater.strategies.broadcast import broadcast
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.links import noted
from headwater.strategies.strategy import ServerState
from headwater.tasks.batches import Example
from headwater.text import human_bytes, name_some
from headwater.training.context import TrainingContext


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        checkpoint: the last one.
        finished: whether every round was run, or patience ended the run; False after a stop.
        reason: ``rounds``, ``patience``, ``privacy`` (the budget is spent) or ``stopped``.
        clients: how many clients the federation has.
    """

    checkpoint: Checkpoint
    finished: bool
    reason: str
    clients: int


PoolOf: TypeAlias = Callable[[Exchange, Mapping[str, ClientProfile], Mapping[str, str]], ClientPool]
"""What makes a simulation's pool: of the exchange, profiles by name, and who was lost."""

_ROUNDS: Mapping[str, type[SynchronousRounds | BufferedRounds]] = {
    "synchronous": SynchronousRounds,
    "buffered": BufferedRounds,
}
"""What runs the rounds of each ``schedule.kind``."""


class FederationServer:
    """One run.

    Args:
        loaded: the federation file.
        run: the run's id.
        context: the base model, for evaluation and the initial adapter.
        folder: where rounds and checkpoints are written.
        test: the server's held-out examples, if any.
        control: observer, clock, and the requests to stop. Deadlines are the federation's.
        durability: what a daemon adds; without it too few clients end the run.
    """

    def __init__(
        self,
        loaded: LoadedFederation,
        run: str,
        context: TrainingContext,
        folder: RunFolder,
        *,
        test: Sequence[Example] | None,
        control: RunControl,
        durability: Durability | None = None,
    ) -> None:
        self._wire_run_id = durability.wire_run_id if durability else run
        self._loaded, self._run, self._context, self._folder, self._test = loaded, run, context, folder, test
        self._observer, self._should_stop = control.observer, control.should_stop
        self._durability = durability
        self._root = Key.root(loaded.settings.federation.seed)
        self._downlink = Downlink(self._root, context.initial_state().sha256())
        self.control = control
        noised = loaded.settings.privacy.noised
        self._releases = Releases(folder, context.spec) if noised else None
        own_key = partial(ReceiptKey.of_file, folder.path / "state" / "receipt.key")
        self._book = ReceiptBook(
            folder.receipts,
            run=run,
            wire=self._wire_run_id,
            spec=context.spec.fingerprint(),
            model=context.base_sha256,
            key=(durability and durability.receipt_key) or own_key,
        )
        self._apply_settings(loaded.settings)

    def _apply_settings(self, settings: Federation) -> None:
        """Go on under these settings.

        Raises:
            ConfigError: updates that are to be masked, and devices that do not.
        """
        if settings.privacy.masks and self.control.masking is None and self._durability is None:
            raise ConfigError(
                "privacy.masks",
                expected="headwater simulate, or a server with agents, which mask their updates",
                got="clients that send them as they are",
                hint="Leave it out, or use one of the two.",
            )
        self._settings = settings
        durability = self._durability
        live = None if durability is None else lambda: durability.settings().cohort.deadline_s
        self.control = replace(self.control, deadline_s=settings.cohort.deadline_s, live_deadline=live)
        self._strategy = FederatedStrategy(settings)
        self._quorum = Quorum(settings, self._strategy, durability)
        self._contributions = Contributions(settings, self._strategy, self._context, self._test, self._root)
        loaded = replace(self._loaded, settings=settings)
        self._commits = Commits(loaded, self._run, self._folder, durability, self._observer, self._book)
        self._evaluation_round = EvaluationRound(
            settings,
            self._wire_run_id,
            self._context,
            self._test,
            self._downlink,
            self.control,
            live=None if durability is None else durability.settings,
        )

    def run(
        self,
        grid: Grid,
        expected_clients: int | None = None,
        *,
        owners: Sequence[str] = (),
        pool: PoolOf = FixedClients,
    ) -> RunResult:
        """Run all rounds that are left, with the clients that are there now: a simulation.

        Args:
            grid: Flower's grid.
            expected_clients: wait until so many nodes are there; the cohort's minimum if absent.
            owners: names of all clients, a node for each: who of them cannot take part is a failure by name
                in every round.
            pool: makes the clients' pool.

        Raises:
            FederationStopped: too few clients; the last checkpoint stays.
        """
        least = self._settings.cohort.min_clients
        profiles, nodes, lost = collect_profiles(
            grid,
            self._run,
            self._context,
            self.control.in_real_time(),
            expected=expected_clients or len(owners) or least,
            owners=owners,
            min_clients=least,
        )
        padding = self._settings.privacy.padding
        exchange = Exchange(grid, nodes, tell=self._observer, padding=padding)
        return self.serve(pool(exchange, profiles, lost))

    def serve(self, pool: ClientPool) -> RunResult:
        """Run all remaining rounds with the clients of a pool.

        Raises:
            FederationStopped: too few clients, without durability; the last checkpoint stays.
            Interrupted: ``control`` says so.
        """
        checkpoint = self._start(pool)
        if checkpoint is None:
            raise FederationStopped(
                "federation",
                expected=f"{self._quorum.need} clients before the first round",
                got=f"{len(pool.ready())} when a stop was asked for",
            )
        self._tell_started(checkpoint, pool)
        rounds: Rounds | None = None
        while True:
            checkpoint = self._apply_operator_changes(checkpoint)
            self._quorum.drop_small_round(self._observer)
            reason = self._end_reason(checkpoint)
            if reason is None:
                gathered = self._gather(pool, checkpoint.server)
                reason = self._end_reason(checkpoint) if gathered else "stopped"
            if reason is not None:
                finished = reason in ("rounds", "patience", "privacy")
                return RunResult(checkpoint, finished, reason, _known(pool))
            if not isinstance(rounds, _ROUNDS[self._settings.schedule.kind]):
                rounds = self._rounds(checkpoint, pool)
            rounds.reconfigure(
                self._settings, self._strategy, self.control, self._contributions, self._releases
            )
            closed = rounds.run(checkpoint)
            if closed is not None:
                try:
                    checkpoint = self._close(checkpoint, closed, pool)
                except EvaluationAborted:  # as after a crash: the next start closes it from the spool
                    return RunResult(checkpoint, False, "stopped", _known(pool))
            elif self._durability is not None and not self._should_stop():
                why = "too many of its clients are lost to it"
                self._observer(Notice(f"{why}: the round is planned anew"))
                self._durability.open_round.unlink(missing_ok=True)
                rounds = None
            elif not self._should_stop():
                self._observer(Notice("too few updates by the deadline: the round is planned anew"))

    def _end_reason(self, checkpoint: Checkpoint) -> str | None:
        """Why no round follows; None if one does."""
        patience = self._settings.evaluation.patience
        if checkpoint.server.round >= self._settings.federation.rounds:
            return "rounds"
        if patience is not None and checkpoint.tracker.since >= patience:
            return "patience"
        if self._releases is not None and self._overspends(self._releases, checkpoint):
            return "privacy"
        return "stopped" if self._should_stop() else None

    def _overspends(self, releases: Releases, checkpoint: Checkpoint) -> bool:
        """Whether one more round would spend more than the budget; then it is told."""
        privacy, server = self._settings.privacy, checkpoint.server
        after = releases.overspends(privacy, self._strategy.release(server, "next"), server.state.sha256())
        if after is not None:
            self._observer(Notice(": ".join(("privacy budget", *exhausted(privacy, after).values()))))
        return after is not None

    def _rounds(self, checkpoint: Checkpoint, pool: ClientPool) -> Rounds:
        kind = _ROUNDS[self._settings.schedule.kind]
        done = checkpoint.server.round
        return kind(
            self._settings,
            self._wire_run_id,
            pool,
            self._root,
            self._durability,
            self._downlink,
            done=done,
        )

    # --- between rounds ---------------------------------------------------------------------------

    def _start(self, pool: ClientPool) -> Checkpoint | None:
        """The checkpoint to go on from: the saved one, or round 0, evaluated and saved.

        None if a stop was asked for before there were clients to evaluate it, or before they had.
        """
        saved = Checkpoint.load(self._folder.checkpoint, self._context.spec, self._run)
        if saved is not None:
            if self._releases is not None:
                self._releases.require_whole(saved.server.round)
            self._downlink.restore(saved.down)
            self._folder.keep_rounds(saved.server.round)
            self._book.keep_through(saved.receipt)
            if self._durability is not None:
                self._durability.versions.keep_through(saved.server.round, saved.server.state.sha256())
                self._durability.forget_through(saved.server.round)
            return saved
        self._folder.keep_rounds(-1)
        self._book.keep_through(Head())
        if self._durability is not None:
            self._durability.versions.keep_through(-1)
        if not self._gather(pool):
            return None
        server = self._strategy.init(self._context.initial_state())
        checkpoint = Checkpoint(self._run, server, Tracker(metric_name(self._settings)))
        started = self.control.stopwatch()
        draft = RoundDraft(0, {}, Traffic())
        draft.set_state(server.state.sha256())
        try:
            checkpoint, value = self._evaluation_round.after(checkpoint, pool, pool.profiles(), draft)
        except EvaluationAborted:
            return None
        pool.describe(draft)
        checkpoint = replace(checkpoint, down=self._downlink.record())
        record = draft.record(self.control.stopwatch() - started)
        start = self._context.start
        about = {} if start is None else goes_on_from(start.lineage)
        self._commits.commit(checkpoint, record, value, (), base="", about=about)
        return checkpoint

    def _tell_started(self, checkpoint: Checkpoint, pool: ClientPool) -> None:
        for notice in self._context.notices:
            self._observer(Notice(notice))
        clients = trainable(pool.profiles())
        spooled = self._durability is not None
        if (kept := self._strategy.kept_bytes(self._context.spec, clients, spooled=spooled)) is not None:
            text = (
                f"strategy '{self._settings.strategy.kind}' keeps the updates of a round until it is merged"
            )
            self._observer(Notice(f"{text}: up to {human_bytes(kept)} of memory"))
            if (codec := self._settings.codec.up).leaves_out():
                text = f"codec.up '{codec.kind}' sends few values, and the rule sees zeros for the others"
                self._observer(Notice(f'{text}: codec.up.kind = "dense" sends all'))
        sizes = [record.bytes for record in self._folder.each_round()]
        self._observer(
            RunStarted(
                self._settings.federation.rounds,
                checkpoint.server.round,
                len(pool.profiles()),
                best=checkpoint.tracker.best_value,
                bytes_up=sum(size.up or 0 for size in sizes),
                bytes_down=sum(size.down or 0 for size in sizes),
            )
        )

    def _gather(self, pool: ClientPool, server: ServerState | None = None) -> bool:
        """Wait until a round can begin; False if a stop is asked for first.

        An open round that a crash left behind goes on at once: who was asked is known.

        Args:
            pool: the clients.
            server: after the rounds that are finished; None before round 0.

        Raises:
            FederationStopped: in a simulation, which nobody joins.
        """
        told: Waiting | None = None
        while not self._quorum.reached(have := self._quorum.have(pool.ready(), server)):
            if self._should_stop():
                return False
            if server is not None and server.round >= self._settings.federation.rounds:
                return True  # the organiser has taken rounds away: none follows
            waiting = Waiting(have, self._quorum.need, self._quorum.missing(pool, server))
            lasting = self._durability is not None
            if not lasting and (not self.control.simulated or self._quorum.stuck(pool, server)):
                others = f"; not {name_some(waiting.missing)}" if waiting.missing else ""
                raise FederationStopped(
                    "federation" if server is None else f"round {server.round + 1}",
                    expected=f"at least {waiting.need} clients with data",
                    got=f"{have}{others}",
                )
            self._reload_settings()
            if told != waiting:
                told = waiting
                self._observer(waiting)
            for _ in pool.poll(ProfileRequest):
                pass  # profiles are dealt with on the way; updates wait where they are
            self.control.pause()
        if told is not None:
            self._observer(Waiting(self._quorum.need, self._quorum.need))
        return True

    def _apply_operator_changes(self, checkpoint: Checkpoint) -> Checkpoint:
        """Apply what the organiser changed, or go back to an earlier version's values."""
        if self._durability is None:
            return checkpoint
        self._reload_settings()
        version = self._durability.rollback()
        if version is None:
            return checkpoint
        if self._releases is not None and self._releases.made(checkpoint.server):
            return checkpoint  # its sum is out: the round ends first, and is not noised again
        versions = self._durability.versions
        state = versions.state(version, self._context.spec)
        seeded, base = checkpoint.server.seeded_state is not None, checkpoint.server.state.sha256()
        if leaving := self._durability.leaving():
            server = self._strategy.begun_again(checkpoint.server, state, leaving)
            accepted = {c: number for c, number in checkpoint.accepted.items() if c != leaving}
            tracker = Tracker(checkpoint.tracker.metric)
            checkpoint = replace(checkpoint, server=server, accepted=accepted, tracker=tracker, best=None)
        else:
            checkpoint = replace(checkpoint, server=self._strategy.rolled_back(checkpoint.server, state))
        self._commits.commit_rollback(checkpoint, version, base=base, leaving=leaving)
        if leaving:
            versions.drop_values(versions.holding(leaving))
        self._durability.rolled_back()
        why = f", which nothing of {leaving} is in" if leaving else ""
        self._observer(Notice(f"going on from version {version}{why}"))
        if seeded:
            self._observer(
                Notice("clients are sent the whole adapter from here on, not coefficients of seeds")
            )
        return checkpoint

    def _reload_settings(self) -> None:
        settings = self._settings if self._durability is None else self._durability.settings()
        if settings != self._settings:
            self._apply_settings(settings)
            self._observer(Notice("the organiser's new settings hold from here"))

    # --- after a round ----------------------------------------------------------------------------

    def _close(self, checkpoint: Checkpoint, finished: RoundResult, pool: ClientPool) -> Checkpoint:
        """Move the model, evaluate, write the round; only then is the open round forgotten."""
        pool.round_closed()
        self._downlink.note_held(finished.started_from)
        before, codec = checkpoint.server, self._settings.codec.down
        if finished.left_out:
            server, increment = replace(before, round=before.round + 1), None
        else:
            after = self._strategy.update(before, finished.merged)
            server, increment = broadcast(
                before, after, codec, key=self._root, travels=self._settings.sends(after.round)
            )
        if increment is not None:
            self._downlink.moved(before.state, server.state, increment)
        accepted = {**checkpoint.accepted, **finished.accepted}
        checkpoint = replace(checkpoint, server=server, accepted=accepted)
        draft = finished.draft
        if finished.players is not None:
            draft.contributed(self._contributions.measure(before, finished.players))
        if server.residual is not None:
            draft.kept_back(server.residual.norm())
        if self._releases is not None:
            privacy, planned = self._settings.privacy, self._settings.federation.rounds - server.round
            spent, budget, left = self._releases.spent(privacy), privacy.epsilon, None
            if planned > 0:
                left = self._releases.rounds_left(privacy, self._strategy.release(server, "next"), planned)
            draft.spent(recorded(spent, budget, left))
            self._observer(Notice(f"round {server.round}: {in_words(spent, budget)}"))
        known = pool.profiles()
        took_part = finished.accepted.keys()  # the same clients evaluate after a crash as before it
        checkpoint, value = self._evaluation_round.after(checkpoint, pool, known, draft, took_part=took_part)
        draft.lost(pool.lost())
        pool.describe(draft)
        if self._settings.cohort.upload_s is not None:
            links = noted(checkpoint.server.links, pool.uploads())
            checkpoint = replace(checkpoint, server=replace(checkpoint.server, links=links))
        draft.set_state(server.state.sha256())
        record = draft.record(self.control.stopwatch() - finished.started_s)
        checkpoint = replace(checkpoint, down=self._downlink.record())
        base = before.state.sha256()
        self._commits.commit(checkpoint, record, value, finished.received, base=base)
        if self._durability is not None:
            self._durability.forget_through(checkpoint.server.round)
        return checkpoint


def _known(pool: ClientPool) -> int:
    """How many clients the run has, with those that were lost before they could do anything."""
    return len(pool.profiles().keys() | pool.lost().keys())
