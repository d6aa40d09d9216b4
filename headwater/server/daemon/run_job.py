"""RunJob: one submitted run from its folder to its result, under a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from flwr.serverapp import Grid

from headwater.compression.logquant import LogQuantCodec
from headwater.compression.seed_update import scalars_max_bytes
from headwater.compression.table import codec_for
from headwater.config.federation import Federation
from headwater.data.federated import FederatedData
from headwater.errors import FederationStopped, HeadwaterError
from headwater.flower.padding import bucket
from headwater.merging.accumulator_bytes import most_bytes
from headwater.merging.plan import MergePlan
from headwater.merging.product_gap import GapSketch
from headwater.proto.group_wire import MAX_GROUP
from headwater.proto.wire import MAX_ENVELOPE
from headwater.security.receipt_keys import ReceiptKey
from headwater.security.secagg.bounds import MOST
from headwater.seeds.keys import Key
from headwater.server.clients.discovery import DiscoveredClients, EnrolledClients
from headwater.server.clients.exchange import Exchange
from headwater.server.clients.run_control import RunControl
from headwater.server.events import Observer
from headwater.server.metrics import metric_name
from headwater.server.monitoring.monitor import Monitor
from headwater.server.rounds.federation_server import FederationServer, RunResult
from headwater.server.rounds.finish import finish, tell_trackers
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.durability import Durability
from headwater.server.storage.update_spool import Spool
from headwater.server.trackers.tracking import Tracking
from headwater.server.workspace.required_inputs import require_inputs
from headwater.server.workspace.run_queue import RunEntry, RunQueue, StopRequest
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.seeding import round_seeds
from headwater.strategies.strategy import RoundPlan
from headwater.training.context import TrainingContext

SIGNATURE_BYTES = 1024
"""What the signed envelope adds to a reply, with room."""


@dataclass(frozen=True)
class Network:
    """What a job needs of the daemon's network.

    Args:
        grid: messages to the enrolled clients' nodes.
        nodes: Flower's node id by name; live.
        open_reply: from an address and what arrived there to the reply.
        sessions: clients that are online, each with a number that changes when it comes back.
        enrolled: whether a name may take part.
        names: all such names.
        edges: those of them that are edge aggregators, each with how many clients it may speak for.
        keys: the signing key of each.
    """

    grid: Grid
    nodes: Mapping[str, int]
    open_reply: Callable[[str, bytes], bytes]
    sessions: Callable[[], Mapping[str, int]]
    enrolled: Callable[[str], bool]
    names: Callable[[], Iterable[str]] = tuple
    edges: Mapping[str, int] = field(default_factory=dict)
    keys: Callable[[], Mapping[str, bytes]] = dict


class RunJob:
    """The daemon's current work. :meth:`run` in one thread, :meth:`request_stop` from any.

    Args:
        entry: the run.
        book: where its state and its changes stand.
        network: the way to the clients.
        monitor: is told everything.
        keep: how many adapter versions stay.
        interrupted: True ends the job now, to go on after a restart.
        receipt_key: gives what signs the run's receipts; a key of the run's own if None.
    """

    def __init__(
        self,
        entry: RunEntry,
        book: RunQueue,
        network: Network,
        monitor: Monitor,
        *,
        keep: int,
        interrupted: Callable[[], bool],
        receipt_key: Callable[[], ReceiptKey] | None = None,
    ) -> None:
        self.entry = entry
        self._book, self._network, self._monitor = book, network, monitor
        self._keep, self._interrupted, self._receipt_key = keep, interrupted, receipt_key
        self.folder, self.loaded = book.open(entry.run)
        self.context: TrainingContext | None = None
        self.versions = Versions.of_run(self.folder.path, keep)
        self._reply_bytes = 2**20
        self._sum_bytes: Callable[[int], int] = lambda clients: 2**20
        self._stop_request: StopRequest = entry.stop_request
        self._changed: tuple[Mapping[str, str], Federation] | None = None

    def request_stop(self, request: Literal["pause", "stop"]) -> None:
        """End the open round, then pause or stop."""
        self._stop_request = request

    def max_reply_bytes(self, client: str) -> int:
        """How long a reply of a client, or of an edge aggregator, may be."""
        clients = self._network.edges.get(client)
        return self._reply_bytes if clients is None else self._sum_bytes(clients)

    def run(self) -> None:
        """Until the run ends, is paused, or the daemon is interrupted.

        Raises:
            Interrupted: the daemon ends.
            HeadwaterError: the run cannot go on.
        """
        if not self._book.begin(self.entry.run):
            return
        self._monitor.run_state(self.entry.run, "running")
        settings = self._settings()
        for told in require_inputs(self.loaded, f"headwater server resume DIR {self.entry.run}"):
            self._monitor.notice(told, run=self.entry.run)
        with self.folder.locked(), self._tracking(settings) as tracking:
            context = self.context = TrainingContext.open(self.loaded)
            self._reply_bytes = reply_bound(settings, context)
            self._sum_bytes = sum_bound(settings, context)
            root = Key.root(settings.federation.seed)
            data = FederatedData.held_out(self.loaded, context.tokenizer, root)
            started = {} if context.start is None else {"start": context.start.sha256}
            self.folder.keep_inputs(base=context.base_sha256, data=data.sha256, **started)
            self.folder.keep_start(context.start)
            self._monitor.run_restored(self.entry.run, self.folder.read_rounds(), metric_name(settings))
            server = FederationServer(
                replace(self.loaded, settings=settings),
                self.entry.run,
                context,
                self.folder,
                test=data.test(),
                control=RunControl(
                    tracking.observe, lambda: bool(self._stop_request), interrupted=self._interrupted
                ),
                durability=self._durability(),
            )
            network = self._network
            pool = DiscoveredClients(
                Exchange(
                    network.grid,
                    network.nodes,
                    network.open_reply,
                    self._observer,
                    lambda client: pool.edge_of(client),
                    self.loaded.settings.privacy.padding,
                ),
                self.entry.wire_run_id,
                self.loaded.settings,
                context,
                EnrolledClients(
                    network.sessions, network.enrolled, network.names, network.edges, network.keys
                ),
                self.folder.path / "state" / "profiles.json",
                server.control,
            )
            try:
                outcome = server.serve(pool)
            except FederationStopped:
                if not self._stop_request:
                    raise
                state: Literal["paused", "stopped"] = "paused" if self._stop_request == "pause" else "stopped"
                self._set(state, "by the organiser, before round 1")  # nothing to export
                return
            finally:
                pool.exchange.forget_all()
            self._finish(outcome, context, tracking)

    def _tracking(self, settings: Federation) -> Tracking:
        """The run's trackers: none where their tables are no longer right, which people are told."""
        try:
            trackers = self._book.trackers(self.entry.run)
        except HeadwaterError as error:  # its package is gone, or not allowed any more: no matter of the run
            self._monitor.error(f"the run goes on without trackers: {error}", run=self.entry.run)
            trackers = ()
        return Tracking(trackers, self.entry.run, settings, self.folder.path, self._observer)

    @property
    def _observer(self) -> Observer:
        return self._monitor.observer(self.entry.run)

    def _durability(self) -> Durability:
        state = self.folder.path / "state"
        return Durability(
            spool=Spool(state / "spool", notice=lambda text: self._monitor.error(text, run=self.entry.run)),
            versions=self.versions,
            open_round=state / "open_round.json",
            settings=self._settings,
            rollback=lambda: self._book.get(self.entry.run).rollback,
            rolled_back=self._rolled_back,
            wire_run_id=self.entry.wire_run_id,
            receipt_key=self._receipt_key,
            leaving=lambda: self._book.get(self.entry.run).leaving,
        )

    def _settings(self) -> Federation:
        """The federation with the organiser's changes; asked often, so read only when they change."""
        changes = self._book.get(self.entry.run).changes
        if self._changed is None or self._changed[0] != changes:
            self._changed = changes, self._book.settings(self._book.get(self.entry.run))
        return self._changed[1]

    def _rolled_back(self) -> None:
        self._book.request_rollback(self.entry.run, None)

    def _finish(self, outcome: RunResult, context: TrainingContext, tracking: Tracking) -> None:
        if outcome.reason == "stopped" and self._stop_request == "pause":
            self._set("paused", "by the organiser")
            return
        summary = finish(self.loaded, self.folder, context, outcome, engine="server", notices=context.notices)
        tell_trackers(tracking, self.folder, summary)
        ends = {"rounds": "all rounds are done", "patience": "no better adapter came"}
        ends["privacy"] = "the privacy budget is spent"
        self._set("finished" if outcome.finished else "stopped", ends.get(outcome.reason, "by the organiser"))

    def _set(self, state: Literal["paused", "finished", "stopped"], reason: str) -> None:
        self._book.set_state(self.entry.run, state, reason)
        self._monitor.run_state(self.entry.run, state, reason)


def reply_bound(settings: Federation, context: TrainingContext) -> int:
    """Bytes that one client's reply may have in this federation."""
    fisher = LogQuantCodec().max_bytes(context.spec) if settings.strategy.needs_fisher else 0
    seeds = round_seeds(settings, 1)
    scalars = 0 if seeds is None else scalars_max_bytes(seeds)
    values = max(codec_for(settings.codec.up).max_bytes(context.spec), scalars)
    if settings.privacy.masks:
        values = max(values, masked_bound(settings, context))
    return bucket(values + fisher + MAX_ENVELOPE + SIGNATURE_BYTES, settings.privacy.padding)


def masked_bound(settings: Federation, context: TrainingContext) -> int:
    """Bytes of a client's longest answer in a masked sum: its vector, or shares for all of its neighbours."""
    spec, seeds = context.spec, round_seeds(settings, 1)
    plan = MergePlan(spec, {"0": 1}, settings.strategy.value_bound, seeds=seeds)
    rule = FederatedStrategy(settings).aggregator(RoundPlan(1, {}, plan), context.initial_state())
    vector = 8 * sum(part.size for part in rule.sum_layout(plan).parts)
    return max(vector, 128 * MOST)


def sum_bound(settings: Federation, context: TrainingContext) -> Callable[[int], int]:
    """The same of an edge aggregator with so many clients: a sum, its gap sketch, and a row for each."""
    spec, seeds, start = context.spec, round_seeds(settings, 1), context.initial_state()
    names = {f"{number}": 1 for number in range(1 + len(settings.methods))}
    plan = MergePlan(spec, names, settings.strategy.value_bound, seeds=seeds, groups={n: n for n in names})
    rule = FederatedStrategy(settings).aggregator(RoundPlan(1, {}, plan), start)
    gap = GapSketch(start, key=Key.root(0))
    fixed = most_bytes(rule, plan) + most_bytes(gap, plan) + MAX_GROUP + SIGNATURE_BYTES

    def bound(clients: int) -> int:
        return bucket(fixed + rule.kept_bytes(spec, clients) + 2**10 * clients, settings.privacy.padding)

    return bound
