"""EdgeHandler: answers the server for the clients behind an edge aggregator.

Profiles, evaluations and failures are handed on as its clients sent them. Updates are checked as the server
would check them, added up, and only their sum goes on (:class:`~headwater.server.rounds.open_round.OpenRound`
does both). Nothing is kept but the last states that passed through, in memory: a client that is asked again
answers from its outbox with the same bytes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping

from headwater.bits import require
from headwater.client.agent.known_runs import KnownRun, KnownRuns
from headwater.client.agent.task_clock import AgentStopping
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.seed_state import SEEDS
from headwater.compression.seed_update import scalars_max_bytes
from headwater.compression.table import codec_for
from headwater.edge.members import EdgeMembers
from headwater.edge.passing_states import PassingStates
from headwater.errors import ConnectionLost, DecodeError, HeadwaterError
from headwater.merging.merge_plan_json import merge_plan_from_json
from headwater.merging.plan import MergePlan
from headwater.proto.group_wire import decode_group_request, encode_group_reply
from headwater.proto.wire import MAX_ENVELOPE, decode_reply, decode_request, encode_reply, encode_signed
from headwater.protocol.failures import UNSPECIFIED, FailureCode, coded, failure_of
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    ClientProfile,
    EvaluateRequest,
    GroupReply,
    GroupRequest,
    MaskRequest,
    ProfileRequest,
    TrainRequest,
)
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Outgoing
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.rounds.open_round import OpenRound
from headwater.state import AdapterState
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.strategy import RoundPlan

SETTLED_S = 2.0
"""The server is told of other clients when they have been the same for so long."""
PROFILE_S = 120.0
"""Clients that do not say who they are within it are left out until they come back."""
LONGEST_S = 7 * 86400.0
SIGNATURE_BYTES = 1024


class EdgeHandler:
    """One request at a time.

    Args:
        name: enrolled, of this edge aggregator.
        members: the clients behind it.
        runs: what it was told of the runs.
        sign: its signature over a reply.
        say: takes a line for the log.
        patience_s: how long a round's clients are waited for; 0.8 of the federation's deadline if None.
    """

    metered = False
    rows = None

    def __init__(
        self,
        name: str,
        members: EdgeMembers,
        runs: KnownRuns,
        sign: Callable[[bytes], bytes],
        say: Callable[[str], None],
        patience_s: float | None = None,
    ) -> None:
        self._name, self._members, self._runs = name, members, runs
        self._sign, self._say, self._patience_s = sign, say, patience_s
        self._profiles: dict[str, dict[str, ClientProfile]] = {}  # by run, then client
        self._states = PassingStates()

    # --- what an agent's loop asks of whoever answers -----------------------------------------------

    def paused(self) -> str | None:
        """Never."""
        return None

    def rest(self) -> None:
        """Nothing: an edge aggregator has no worker."""

    def count(self, size: int) -> None:
        """Nothing: it has no daily cap."""

    def recheck(self, doing: Callable[[str], None] = lambda what: None) -> None:
        """Introduce the clients anew, by coming back as a device does, when others are here.

        Raises:
            ConnectionLost: so that the connection is made again.
        """
        if self._members.settled_change(SETTLED_S):
            self._members.told = None  # once
            raise ConnectionLost(
                f"clients of {self._name}", expected="those that the server was told of", got="others"
            )

    def answer(self, parts: Mapping[str, bytes]) -> bytes:
        """The signed reply to one delivery.

        Raises:
            AgentStopping: the edge aggregator is to end.
        """
        group: GroupRequest | None = None
        try:
            envelope, state = parts.get("envelope", b""), parts.get("state", b"")
            group = decode_group_request(envelope)
            reply = self._introduce(envelope, state) if group is None else self._ask(group, state)
        except AgentStopping:
            raise
        except HeadwaterError as error:
            reply = self._failed(group, error)
        except Exception as error:  # the server waits for something, and must not wait for ever
            self._say("a fault in the edge aggregator: " + traceback.format_exc().replace("\n", " | "))
            reply = self._failed(group, error)
        data = encode_group_reply(reply)
        return encode_signed(data, self._sign(data))

    def instead_of(self, signed: bytes, status: int, reason: str) -> bytes | None:
        """Nothing smaller can be said for all clients: the round's deadline ends the wait for them."""
        self._say(f"the server refused a reply of {len(signed):,} bytes ({status}): {reason}")
        return None

    def _failed(self, group: GroupRequest | None, error: Exception) -> GroupReply:
        """The same failure of every client that was to be asked."""
        self._say(str(error))
        if group is None:
            return GroupReply(self._name, "unknown", 0, (), {})
        names = []
        for envelope in group.envelopes:
            try:
                request = decode_request(envelope, b"")
            except HeadwaterError:
                continue
            names += [] if isinstance(request, ProfileRequest) else [request.client]
        failures = [_failure(name, group, str(error), error) for name in names]
        return GroupReply(self._name, group.run, group.round, tuple(failures), {})

    # --- what it is asked -----------------------------------------------------------------------------

    def _introduce(self, envelope: bytes, state: bytes) -> GroupReply:
        """What the clients that are here say of themselves, word for word."""
        request = decode_request(envelope, state)
        if not isinstance(request, ProfileRequest):
            raise DecodeError(
                f"edge aggregator {self._name}",
                expected="a group's request: this device is enrolled as an edge aggregator",
                got=type(request).__name__,
                hint=f"Has the server's server.toml a line for it? [edges] {self._name} = CLIENTS",
            )
        require(self._runs.join(request).settings.federation.bits)
        replies: dict[str, bytes] = {}
        profiles = self._profiles.setdefault(request.run, {})

        def take(incoming: ReceivedReply) -> None:
            reply = _usable(incoming)
            replies[incoming.address] = incoming.data
            if isinstance(reply, ClientProfile):
                profiles[incoming.address] = reply

        online = self._members.online()
        self._members.max_reply_bytes = 2**20
        lost = self._members.ask(
            dict.fromkeys(online, request), ProfileRequest, 0, PROFILE_S, _catching(take, self._say)
        )
        for name, reason in lost.items():
            self._say(f"client {name}: {reason}")
        self._members.told = online
        self._say(f"run {request.run}: {len(replies)} of {len(online)} clients have said what they have")
        return GroupReply(self._name, request.run, 0, tuple(replies.values()), {})

    def _ask(self, group: GroupRequest, state: bytes) -> GroupReply:
        """Have every client asked of this group answer, and add up what can be added."""
        joined = self._runs.get(group.run)
        if group.client != self._name or joined is None or group.run not in self._profiles:
            error = DecodeError(
                f"edge aggregator {self._name}",
                expected="requests for it, of a run that it was told of",
                got=f"run {group.run}, for {group.client}",
            )
            raise coded(error, FailureCode.UNKNOWN_RUN)
        self._runs.use(joined)
        requests = [decode_request(envelope, state) for envelope in group.envelopes]
        trained = {r.client: r for r in requests if isinstance(r, TrainRequest)}
        evaluated = {r.client: r for r in requests if isinstance(r, EvaluateRequest)}
        if not requests or len(requests) not in (len(trained), len(evaluated)):
            raise DecodeError("group request", expected="tasks of one kind, one of each client", got="others")
        first = requests[0]
        assert not isinstance(first, ProfileRequest | MaskRequest)
        if first.state.codec != SEEDS:
            self._states.note(first.state, first.state_sha256)
        if trained:
            return self._train(group, joined, trained)
        return self._evaluate(group, joined, evaluated)

    def _evaluate(
        self, group: GroupRequest, joined: KnownRun, requests: Mapping[str, EvaluateRequest]
    ) -> GroupReply:
        replies: dict[str, bytes] = {}

        def take(incoming: ReceivedReply) -> None:
            _usable(incoming)
            replies[incoming.address] = incoming.data

        lost = self._members.ask(
            requests, EvaluateRequest, group.round, self._patience(joined), _catching(take, self._say)
        )
        return GroupReply(self._name, group.run, group.round, _with_failures(replies, lost, group), {})

    def _train(
        self, group: GroupRequest, joined: KnownRun, requests: Mapping[str, TrainRequest]
    ) -> GroupReply:
        """The sum of what can be added up, and by name who has failed."""
        plan = merge_plan_from_json(group.merge_plan)
        open_round = self._open(group, joined, requests, plan)
        failures: dict[str, bytes] = {}

        def take(incoming: ReceivedReply) -> None:
            try:
                open_round.fold(incoming)
            except HeadwaterError as error:
                name = incoming.address
                self._say(f"round {group.round}, client {name}: {error}")
                own = not incoming.error and isinstance(decode_reply_or_none(incoming.data), ClientFailure)
                failures[name] = incoming.data if own else _failure(name, group, str(error))

        lost = self._members.ask(requests, TrainRequest, group.round, self._patience(joined), take)
        summed, gap = open_round.sums() if open_round.rows else (b"", b"")
        rows = {
            client: {name: float(value) for name, value in row.items()}
            for client, row in open_round.rows.items()
        }
        count = f"{len(rows)} of {len(requests)} updates"
        self._say(f"run {group.run} round {group.round}: {count} are in the sum")
        replies = _with_failures(failures, lost, group)
        return GroupReply(self._name, group.run, group.round, replies, rows, summed, gap)

    def _open(
        self,
        group: GroupRequest,
        joined: KnownRun,
        requests: Mapping[str, TrainRequest],
        merge: MergePlan,
    ) -> OpenRound:
        """The round of these clients alone, as the server would open it for them."""
        first = next(iter(requests.values()))
        known = self._profiles[group.run]
        if merge.weights.keys() != requests.keys() or not requests.keys() <= known.keys():
            error = DecodeError("group request", expected="clients that are known here", got="others")
            raise coded(error, FailureCode.UNKNOWN_RUN)
        if any(
            (r.state_sha256, r.spec, r.round) != (first.state_sha256, merge.spec.fingerprint(), group.round)
            for r in requests.values()
        ):
            raise DecodeError("group request", expected="one round's tasks from one state", got="several")
        if merge.seeds is None:
            down = codec_for(joined.settings.codec.down)
            base = self._states.state(first.state, first.state_sha256, merge.spec, down)
        else:  # nothing is computed from it: coefficients of seeds have no gap
            base = AdapterState.zeros(merge.spec)
        plans = {client: request.plan for client, request in requests.items()}
        self._members.max_reply_bytes = max(reply_bytes(plan, merge) for plan in plans.values())
        plan, strategy = RoundPlan(group.round, plans, merge), FederatedStrategy(joined.settings)
        opened = OpenRound(
            plan,
            Outgoing(base, first.state),
            group.run,
            known,
            strategy.aggregator(plan, base),
            Key.root(joined.settings.federation.seed),
        )
        opened.base_sha256 = first.state_sha256
        return opened

    def _patience(self, joined: KnownRun) -> float:
        deadline_s = joined.settings.cohort.deadline_s
        if self._patience_s is not None:
            return self._patience_s
        return LONGEST_S if deadline_s is None else 0.8 * deadline_s


def reply_bytes(plan: ClientPlan, merge: MergePlan) -> int:
    """Bytes that the signed reply to such a task may have."""
    values = codec_for(plan.codec).max_bytes(merge.spec)
    values = values if plan.seeds is None else scalars_max_bytes(plan.seeds)
    fisher = LogQuantCodec().max_bytes(merge.spec) if plan.fisher else 0
    return values + fisher + MAX_ENVELOPE + SIGNATURE_BYTES


def decode_reply_or_none(data: bytes) -> object:
    """The reply, if it is a small one that can be read."""
    try:
        return decode_reply(data, max_bytes=0)
    except DecodeError:
        return None


def _usable(incoming: ReceivedReply) -> object:
    """A small reply, of the client that was asked.

    Raises:
        DecodeError: it is none.
    """
    who = f"client {incoming.address}"
    if incoming.error:
        raise DecodeError(who, expected="a reply", got=incoming.error)
    reply = decode_reply(incoming.data, max_bytes=0)
    if reply.client != incoming.address:
        raise DecodeError(who, expected="a reply of its own", got=f"one of {reply.client}")
    return reply


def _catching(
    take: Callable[[ReceivedReply], None], say: Callable[[str], None]
) -> Callable[[ReceivedReply], None]:
    """``take``, with what cannot be used left out: the server notes that nothing was said of its client."""

    def catching(incoming: ReceivedReply) -> None:
        try:
            take(incoming)
        except HeadwaterError as error:
            say(str(error))

    return catching


def _with_failures(
    replies: Mapping[str, bytes], lost: Mapping[str, str], group: GroupRequest
) -> tuple[bytes, ...]:
    failures = {name: _failure(name, group, reason) for name, reason in lost.items()}
    return tuple(data for _, data in sorted({**replies, **failures}.items()))


def _failure(client: str, group: GroupRequest, reason: str, error: Exception | None = None) -> bytes:
    """A failure that the edge aggregator reports in a client's place."""
    failure = UNSPECIFIED if error is None else failure_of(error)
    return encode_reply(ClientFailure(client, group.round, reason, group.run, failure))
