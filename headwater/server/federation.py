"""FederationServer: the rounds of a federation, over any Flower Grid.

It does what the coordinator says: sends plans, folds each reply the moment it arrives, merges,
evaluates, writes the round and the checkpoint. Which client, which rule and which state come from
the strategy; nothing of Flower's own aggregation is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.serverapp import Grid

from headwater.compression.table import codec_for
from headwater.config import LoadedFederation
from headwater.config.federation import Federation
from headwater.data.batches import Example
from headwater.errors import DecodeError, FederationStopped, HeadwaterError, TrainingError
from headwater.proto.wire import decode_reply
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
from headwater.protocol.messages import (
    ClientProfile,
    EvaluateRequest,
    Evaluation,
    ProfileRequest,
    TrainRequest,
)
from headwater.server.checkpoint import Checkpoint
from headwater.server.evaluation import Tracker, checked, decisive, metric_name, over_clients, per_client
from headwater.server.events import (
    ClientDone,
    ClientFailed,
    Evaluating,
    Notice,
    Observer,
    RoundEnded,
    RoundStarted,
    RunStarted,
)
from headwater.server.exchange import Exchange, Incoming
from headwater.server.open_round import OpenRound
from headwater.server.run_folder import RunFolder
from headwater.state import AdapterState
from headwater.strategies.federated import FederatedStrategy
from headwater.training.build import Workbench

POLL_S = 0.02
"""Pause between two looks at the grid when nothing came."""


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
        self._run, self._bench, self._folder, self._test = run, bench, folder, test
        self._observer, self._should_stop, self._clock = observer, should_stop, clock
        self._strategy = FederatedStrategy(self._federation)
        self._root = Key.root(self._federation.federation.seed)
        self._metric = metric_name(self._federation)
        self._down = codec_for(self._federation.codec.down)

    def run(self, grid: Grid, expected_clients: int | None = None) -> Outcome:
        """Run all rounds that are left.

        Args:
            grid: Flower's grid.
            expected_clients: wait until so many nodes are there; the cohort's minimum if absent.

        Raises:
            FederationStopped: too few clients; the last checkpoint stays.
        """
        profiles, nodes = self._profiles(grid, expected_clients or self._federation.cohort.min_clients)
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

    def _profiles(self, grid: Grid, expected: int) -> tuple[dict[str, ClientProfile], dict[str, int]]:
        """Ask every node who it is; keep those that fit this federation."""
        while len(ids := sorted(grid.get_node_ids())) < expected:
            if self._should_stop():
                raise FederationStopped(
                    "federation", expected=f"{expected} nodes", got=f"{len(ids)}, then a stop"
                )
            time.sleep(POLL_S)
        exchange = Exchange(grid, {str(i): i for i in ids})
        exchange.send([(str(i), ProfileRequest(self._run)) for i in ids], 0)
        profiles: dict[str, ClientProfile] = {}
        nodes: dict[str, int] = {}
        ends_s = self._deadline()
        while exchange.waiting(ProfileRequest, 0) and self._clock() < ends_s and not self._should_stop():
            quiet = True
            for incoming in exchange.poll():
                quiet = False
                try:
                    profile = self._profile(incoming)
                    if profile.client in profiles:
                        raise DecodeError(f"client {profile.client}", expected="one node", got="two")
                    profiles[profile.client], nodes[profile.client] = profile, int(incoming.address)
                except HeadwaterError as error:
                    self._observer(ClientFailed(0, f"node {incoming.address}", str(error)))
            if quiet:
                time.sleep(POLL_S)
        exchange.forget(ProfileRequest, 0)
        if len(profiles) < self._federation.cohort.min_clients:
            raise FederationStopped(
                "federation",
                expected=f"at least {self._federation.cohort.min_clients} clients",
                got=f"{len(profiles)}",
                hint="The reasons are printed above.",
            )
        return dict(sorted(profiles.items())), nodes

    def _deadline(self) -> float:
        """When a wait that begins now ends."""
        deadline_s = self._federation.cohort.deadline_s
        return math.inf if deadline_s is None else self._clock() + deadline_s

    def _profile(self, incoming: Incoming) -> ClientProfile:
        if incoming.error:
            raise DecodeError(f"node {incoming.address}", expected="a profile", got=incoming.error)
        reply = decode_reply(incoming.data, max_bytes=0)
        if not isinstance(reply, ClientProfile):
            raise DecodeError(f"node {incoming.address}", expected="a profile", got=str(reply)[:200])
        for what, theirs, ours in (
            ("base model sha256", reply.model_sha256, self._bench.base_sha256),
            ("adapter spec", reply.spec, self._bench.spec.fingerprint()),
        ):
            if theirs != ours:
                raise DecodeError(f"client {reply.client}", expected=f"{what} {ours[:12]}", got=theirs[:12])
        return reply

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
        checkpoint, evaluation, value = self._evaluate(checkpoint, exchange, profiles)
        record = {
            "round": 0,
            "clients": {},
            "bytes": {"up": 0, "down": 0, "up_dense": 0, "down_dense": 0},
            "state_sha256": server.state.sha256(),
        }
        _add_evaluation(record, evaluation)
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
                hint=f"The state after round {checkpoint.server.round} is kept; mend that, then --resume.",
            )
        merged = open_round.merge()
        server = self._strategy.update(checkpoint.server, merged)
        accepted = {**checkpoint.accepted, **dict.fromkeys(end.accepted, plan.round)}
        checkpoint = replace(checkpoint, server=server, accepted=accepted)
        record = open_round.record(end, merged, base + merged.delta)
        due = self._federation.evaluation.every
        last = end.last or server.round == self._federation.federation.rounds
        if due and (server.round % due == 0 or last):
            checkpoint, evaluation, value = self._evaluate(checkpoint, exchange, profiles)
            _add_evaluation(record, evaluation)
        else:
            value = math.nan
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
                time.sleep(POLL_S)

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

    # --- evaluation -------------------------------------------------------------------------------

    def _evaluate(
        self, checkpoint: Checkpoint, exchange: Exchange, profiles: Mapping[str, ClientProfile]
    ) -> tuple[Checkpoint, dict[str, Any], float]:
        """Evaluate the global adapter; return the tracker's checkpoint, the record's part, the value."""
        settings = self._federation.evaluation
        sizes = {"up": 0, "down": 0, "up_dense": 0, "down_dense": 0}
        if not settings.every:
            return checkpoint, {"evaluation_bytes": sizes}, math.nan
        number, state = checkpoint.server.round, checkpoint.server.state
        self._observer(Evaluating(number))
        record: dict[str, Any] = {"evaluation_bytes": sizes}
        asked = [n for n, p in profiles.items() if p.validation_examples] if settings.clients else []
        self._send_evaluations(number, state, asked, exchange, sizes)  # workers begin while we test
        test: dict[str, float] | None = None
        if self._test:
            test = {}
            try:
                count, test = self._bench.evaluate(state, self._test)
                record["test"] = {**test, "examples": count}
            except TrainingError as error:  # a diverged adapter: an earlier one may still be the best
                self._observer(Notice(f"round {number}: {error}"))
        if asked:
            evaluations = self._collect_evaluations(number, exchange, profiles, sizes)
            record["clients_pooled"] = over_clients(evaluations)
            record["clients_each"] = per_client(evaluations, profiles, settings.min_client_examples)
        value = decisive(self._metric, test, record.get("clients_pooled", {}))
        tracker = checkpoint.tracker.after(number, value)
        best = state if tracker.best_round == number else checkpoint.best
        return replace(checkpoint, tracker=tracker, best=best), record, value

    def _send_evaluations(
        self,
        number: int,
        state: AdapterState,
        asked: Sequence[str],
        exchange: Exchange,
        sizes: dict[str, int],
    ) -> None:
        encoded = self._down.encode(state, key=self._root.child("down", number + 1))
        digest = self._down.decode(encoded, self._bench.spec).sha256()
        spec = self._bench.spec.fingerprint()
        sent = exchange.send(
            [(c, EvaluateRequest(self._run, number, c, spec, digest, encoded)) for c in asked], number
        )
        sizes["down"] += sum(sent.values())
        sizes["down_dense"] += sum(n - len(encoded.body) + self._bench.spec.nbytes for n in sent.values())

    def _collect_evaluations(
        self,
        number: int,
        exchange: Exchange,
        profiles: Mapping[str, ClientProfile],
        sizes: dict[str, int],
    ) -> list[Evaluation]:
        """What the clients answer; one that fails, or is late, is left out and named."""
        found: list[Evaluation] = []
        ends_s = self._deadline()
        while exchange.waiting(EvaluateRequest, number) and self._clock() < ends_s:
            quiet = True
            for incoming in exchange.poll():
                quiet = False
                if incoming.kind is not EvaluateRequest or incoming.round != number:
                    continue
                sizes["up"] += incoming.bytes_up
                sizes["up_dense"] += incoming.bytes_up
                try:
                    evaluation = _evaluation(incoming, number)
                    found.append(checked(evaluation, profiles[incoming.address], self._federation))
                except HeadwaterError as error:
                    self._observer(ClientFailed(number, incoming.address, str(error)))
            if quiet:
                time.sleep(POLL_S)
        exchange.forget(EvaluateRequest, number)
        return found


def _add_evaluation(record: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Put an evaluation into its round's line; its messages count among the round's bytes."""
    sizes = evaluation.pop("evaluation_bytes")
    record["bytes"] = {direction: count + sizes[direction] for direction, count in record["bytes"].items()}
    record.update(evaluation)


def _evaluation(incoming: Incoming, number: int) -> Evaluation:
    """The reply to an evaluation, believed only for the client and round it was asked of."""
    if incoming.error:
        raise DecodeError(f"client {incoming.address}", expected="an evaluation", got=incoming.error)
    reply = decode_reply(incoming.data, max_bytes=0)
    if not isinstance(reply, Evaluation) or (reply.client, reply.round) != (incoming.address, number):
        raise DecodeError(
            f"client {incoming.address}", expected=f"its evaluation of round {number}", got=str(reply)[:200]
        )
    return reply
