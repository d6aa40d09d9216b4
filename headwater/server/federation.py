"""FederationServer: the rounds of a federation, over any Flower Grid.

It does what the coordinator says: sends plans, folds each reply the moment it arrives, merges,
evaluates, writes the round and the checkpoint. Which client, which rule and which state come from
the strategy; nothing of Flower's own aggregation is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.serverapp import Grid

from headwater.compression.table import codec_for
from headwater.config import LoadedFederation
from headwater.config.federation import Federation
from headwater.data.batches import Example
from headwater.errors import FederationStopped, HeadwaterError
from headwater.protocol.coordinator import (
    Action,
    Arrived,
    Ask,
    Begin,
    Close,
    Coordinator,
    Discard,
    Failed,
    Fold,
    Folded,
    Halt,
    Stop,
    Tick,
)
from headwater.protocol.keys import Key
from headwater.protocol.messages import ClientProfile, TrainRequest
from headwater.server.checkpoint import Checkpoint
from headwater.server.evaluation import Tracker, metric_name
from headwater.server.events import (
    ClientDone,
    ClientFailed,
    Notice,
    Observer,
    RoundEnded,
    RoundStarted,
    RunStarted,
)
from headwater.server.exchange import Exchange, Incoming
from headwater.server.handshake import introduce
from headwater.server.measurement import Measurement
from headwater.server.open_round import OpenRound
from headwater.server.run_folder import RunFolder
from headwater.server.watch import Watch
from headwater.strategies.federated import FederatedStrategy
from headwater.training.build import Workbench


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        checkpoint: the last one.
        finished: whether every round was run, or patience ended the run; False after a stop.
        reason: ``rounds``, ``patience`` or ``stopped``.
        clients: how many clients the federation has.
    """

    checkpoint: Checkpoint
    finished: bool
    reason: str
    clients: int


class FederationServer:
    """One run.

    Args:
        loaded: the federation file.
        run: the run's id.
        bench: the base model, for evaluation and the initial adapter.
        folder: where rounds and checkpoints are written.
        test: the server's held-out examples, if any.
        observer: is told what happens.
        should_stop: asked often; True ends the run after the open round.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        loaded: LoadedFederation,
        run: str,
        bench: Workbench,
        folder: RunFolder,
        *,
        test: Sequence[Example] | None,
        observer: Observer,
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._federation: Federation = loaded.settings
        self._run, self._bench, self._folder = run, bench, folder
        self._watch = Watch(observer, should_stop, clock, self._federation.cohort.deadline_s)
        self._observer, self._should_stop, self._clock = observer, should_stop, clock
        self._strategy = FederatedStrategy(self._federation)
        self._root = Key.root(self._federation.federation.seed)
        self._metric = metric_name(self._federation)
        self._down = codec_for(self._federation.codec.down)
        self._measure = Measurement(self._federation, run, bench, test, self._down, self._root, self._watch)

    def run(self, grid: Grid, expected_clients: int | None = None) -> Outcome:
        """Run all rounds that are left.

        Args:
            grid: Flower's grid.
            expected_clients: wait until so many nodes are there; the cohort's minimum if absent.

        Raises:
            FederationStopped: too few clients; the last checkpoint stays.
        """
        least = self._federation.cohort.min_clients
        profiles, nodes = introduce(
            grid,
            self._run,
            self._bench,
            self._watch,
            expected=expected_clients or least,
            min_clients=least,
        )
        exchange = Exchange(grid, nodes)
        checkpoint = self._start(exchange, profiles)
        settings = self._federation
        sizes = [record["bytes"] for record in self._folder.read_rounds()]
        self._observer(
            RunStarted(
                settings.federation.rounds,
                checkpoint.server.round,
                len(profiles),
                best=checkpoint.tracker.best_value,
                bytes_up=sum(size["up"] for size in sizes),
                bytes_down=sum(size["down"] for size in sizes),
            )
        )
        coordinator = Coordinator(
            settings.federation.rounds,
            min_clients=settings.cohort.min_clients,
            deadline_s=settings.cohort.deadline_s,
            done=checkpoint.server.round,
        )
        patience = settings.evaluation.patience
        while checkpoint.server.round < settings.federation.rounds:
            if patience is not None and checkpoint.tracker.since >= patience:
                return Outcome(checkpoint, True, "patience", len(profiles))
            if coordinator.stopping or self._should_stop():
                return Outcome(checkpoint, False, "stopped", len(profiles))
            checkpoint = self._round(checkpoint, coordinator, exchange, profiles)
        return Outcome(checkpoint, True, "rounds", len(profiles))

    # --- before the first round -------------------------------------------------------------------

    def _start(self, exchange: Exchange, profiles: Mapping[str, ClientProfile]) -> Checkpoint:
        """The checkpoint to go on from: the saved one, or round 0, evaluated and saved."""
        saved = Checkpoint.load(self._folder.checkpoint, self._bench.spec, self._run)
        if saved is not None:
            self._folder.keep_rounds(saved.server.round)
            return saved
        self._folder.keep_rounds(-1)
        server = self._strategy.init(self._bench.initial_state())
        checkpoint = Checkpoint(self._run, server, Tracker(self._metric))
        started = self._clock()
        record: dict[str, Any] = {
            "round": 0,
            "clients": {},
            "bytes": {"up": 0, "down": 0, "up_dense": 0, "down_dense": 0},
            "state_sha256": server.state.sha256(),
        }
        checkpoint, value = self._measure.after(checkpoint, exchange, profiles, record)
        record["seconds"] = round(self._clock() - started, 3)
        self._commit(checkpoint, record, value)
        return checkpoint

    def _commit(self, checkpoint: Checkpoint, record: dict[str, Any], value: float) -> None:
        """The round's line first, then the checkpoint: a resume drops a line without its checkpoint."""
        self._folder.append_round(record)
        checkpoint.save(self._folder.checkpoint)
        self._observer(RoundEnded(record["round"], record, self._metric, value))

    # --- one round --------------------------------------------------------------------------------

    def _round(
        self,
        checkpoint: Checkpoint,
        coordinator: Coordinator,
        exchange: Exchange,
        profiles: Mapping[str, ClientProfile],
    ) -> Checkpoint:
        started = self._clock()
        plan = self._strategy.plan(checkpoint.server, profiles, key=self._root)
        encoded = self._down.encode(checkpoint.server.state, key=self._root.child("down", plan.round))
        base = self._down.decode(encoded, self._bench.spec)
        open_round = OpenRound(
            plan, base, encoded, self._run, profiles, self._strategy.aggregator(plan), self._root
        )
        self._observer(RoundStarted(plan.round, len(plan.clients)))
        actions = coordinator.receive(Begin(plan.round, tuple(plan.clients), self._clock()))
        asks = [a.client for a in actions if isinstance(a, Ask)]
        open_round.sent = exchange.send(
            [(c, open_round.request(c, checkpoint.accepted.get(c, 0))) for c in asks], plan.round
        )
        end = self._collect(open_round, coordinator, exchange)
        exchange.forget(TrainRequest, plan.round)
        if isinstance(end, Halt):
            raise FederationStopped(
                f"round {plan.round}",
                expected=f"at least {self._federation.cohort.min_clients} updates",
                got=f"{len(end.accepted)}{self._reasons(end)}",
                hint=f"The state after round {checkpoint.server.round} is kept: mend the "
                "clients, then --resume, or mend the file and start anew.",
            )
        merged = open_round.merge()
        server = self._strategy.update(checkpoint.server, merged)
        accepted = {**checkpoint.accepted, **dict.fromkeys(end.accepted, plan.round)}
        checkpoint = replace(checkpoint, server=server, accepted=accepted)
        record = open_round.record(end, merged, base + merged.delta)
        checkpoint, value = self._measure.after(checkpoint, exchange, profiles, record)
        record["state_sha256"] = server.state.sha256()
        record["seconds"] = round(self._clock() - started, 3)
        self._commit(checkpoint, record, value)
        return checkpoint

    def _collect(self, open_round: OpenRound, coordinator: Coordinator, exchange: Exchange) -> Close | Halt:
        """Take replies until the coordinator ends the round."""
        number = open_round.plan.round
        while True:
            if self._should_stop() and not coordinator.stopping:
                self._observer(Notice(f"stopping after round {number}"))
                coordinator.receive(Stop("asked to"))
            quiet = True
            for incoming in exchange.poll():
                quiet = False
                if incoming.kind is not TrainRequest:
                    continue
                actions = coordinator.receive(Arrived(incoming.address, incoming.round))
                for action in actions:
                    end = self._act(action, incoming, open_round, coordinator)
                    if end is not None:
                        return end
                if (end := self._tick(coordinator)) is not None:
                    return end
            if (end := self._tick(coordinator)) is not None:
                return end
            if quiet:
                self._watch.pause()

    def _tick(self, coordinator: Coordinator) -> Close | Halt | None:
        """Tell the coordinator the time."""
        actions = coordinator.receive(Tick(self._clock()))
        return next((a for a in actions if isinstance(a, Close | Halt)), None)

    def _act(
        self, action: Action, incoming: Incoming, open_round: OpenRound, coordinator: Coordinator
    ) -> Close | Halt | None:
        number = open_round.plan.round
        if isinstance(action, Discard):
            self._observer(ClientFailed(action.round, action.client, f"reply dropped: {action.reason}"))
        if not isinstance(action, Fold):
            return None
        try:
            open_round.fold(incoming)
            self._observer(ClientDone(number, action.client, incoming.bytes_up))
            after = coordinator.receive(Folded(action.client, number))
        except HeadwaterError as error:
            self._observer(ClientFailed(number, action.client, str(error)))
            after = coordinator.receive(Failed(action.client, number, str(error)))
        for next_action in after:
            if isinstance(next_action, Close | Halt):
                return next_action
        return None

    @staticmethod
    def _reasons(end: Halt) -> str:
        shown = [f"{client}: {reason}" for client, reason in end.failed[:3]]
        more = [f"and {len(end.failed) - 3} more"] if len(end.failed) > 3 else []
        return f" ({'; '.join(shown + more)})" if shown else ""
