"""WithheldRound: a round whose devices keep their updates, until they are summed under masks.

A device answers to its task that it has trained, and on how much; the server folds nothing. When the round
closes, those who have trained are asked for one sum (:mod:`.masked_exchange`). So a crash of the server, or
an attempt that fails, costs no training: devices have their vectors on disk. The server has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from headwater.errors import DecodeError, HeadwaterError
from headwater.merging.aggregator import Aggregator, Merged
from headwater.proto.wire import decode_reply
from headwater.protocol.machine import Close
from headwater.protocol.messages import (
    WITHHELD,
    ClientFailure,
    ClientProfile,
    EncodedUpdate,
    TrainRequest,
    reported,
)
from headwater.security.secagg.group import SumRound, task_of
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Outgoing
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.rounds.masked_exchange import MaskedExchange, NoSum
from headwater.server.rounds.open_round import SHOWN_METRICS, OpenRound
from headwater.state import AdapterState
from headwater.strategies.masked_task import common_digest, plan_digest
from headwater.strategies.strategy import RoundPlan


class WithheldRound(OpenRound):
    """One round of devices that mask.

    Args:
        plan: who is asked what.
        down: the state that the clients start from, and how it travels to them.
        run: id of the run.
        profiles: what the clients said of themselves.
        rule: the merge rule.
        root: the federation's root key.
        through: how they are asked, and what is promised of it.

    Raises:
        ConfigError: a rule or plan that needs single updates.
    """

    def __init__(
        self,
        plan: RoundPlan,
        down: Outgoing,
        run: str,
        profiles: Mapping[str, ClientProfile],
        rule: Aggregator[Any],
        root: Key,
        through: MaskedExchange,
    ) -> None:
        super().__init__(plan, down, run, profiles, rule, root)
        self._gap = self._gap_acc = None
        self._layout = rule.sum_layout(plan.merge)
        self._common = common_digest(self.base_sha256, plan.merge)
        self._through = through
        self._dropped: dict[str, str] = {}

    def request(self, client: str, accepted_round: int) -> TrainRequest:
        """The client's task, with the weight that decides the units of its vector."""
        task = super().request(client, accepted_round)
        return replace(task, masked_weight=self.plan.merge.total_weight)

    def fold(self, incoming: ReceivedReply, *, keep: bool = False) -> None:
        """Note that a client has trained.

        Raises:
            DecodeError: not this client's answer of this round, or one with values of an update.
            UpdateRejected: the client reports a failure.
        """
        client = incoming.address
        row = self._rows[client] = {"bytes_up": incoming.bytes_up}
        if incoming.error:
            raise DecodeError(f"client {client}", expected="word of its update", got=incoming.error)
        reply = decode_reply(incoming.data, max_bytes=0)
        if isinstance(reply, ClientFailure):
            raise reported(reply, f"client {client}", expected="word of its update", remote=incoming.remote)
        if not isinstance(reply, EncodedUpdate):
            raise DecodeError(f"client {client}", expected="word of its update", got=type(reply).__name__)
        self._check(client, reply, (self.plan.round, self.base_sha256))
        if (reply.delta.codec, reply.delta.body) != (WITHHELD, self._common):
            raise DecodeError(
                f"client {client}", expected="an update that it keeps, of this round's state and units",
                got=f"{reply.delta.codec}, {len(reply.delta.body)} bytes",
            )  # fmt: skip
        row |= {name: reply.metrics[name] for name in SHOWN_METRICS if name in reply.metrics}
        row |= {"examples": reply.examples, "steps": reply.steps}
        row["bytes_up_dense"] = incoming.bytes_up + self._dense_bytes

    def _statistics(self, client: str) -> set[str]:
        """None leave the device."""
        return set()

    def merge(self, again: Callable[[str], ReceivedReply] | None = None) -> Merged:
        """Have the vectors of those that have trained summed, and merge the sum.

        Raises:
            NoSum: too many dropped out of each attempt, or no updates add up to the sum: a client sent
                something else.
        """
        names = tuple(sorted(self.rows))
        plans = {plan_digest(self.plan.clients[name]) for name in names}
        task = task_of(self._common, plans)
        draft = SumRound(self._run, self.plan.round, b"", names, self._layout, self._through.promise, task)
        try:
            found = self._through.sum(draft, plans)
        finally:
            self._count(names)
        self._acc = self._rule.from_sums(self.plan.merge, found.names, found.values)
        try:
            self._rule.require_sound(self._acc)
        except HeadwaterError as error:  # and nobody sends another vector
            raise NoSum(str(error), told=True) from error
        traffic = self._through.traffic
        self.received = {name: (traffic.vectors[name], "") for name in found.names}
        self._drop(set(names) - set(found.names))
        return super().merge(again)

    def left_out(self) -> Merged:
        """What a round comes to whose sum was not to be had: nothing moves."""
        self._drop(set(self.rows))
        return Merged(AdapterState.zeros(self.base.spec), (), 0)

    def settled(self, end: Close) -> Close:
        """The round's end, with those who trained and are in no sum among the failed."""
        accepted = tuple(name for name in end.accepted if name not in self._dropped)
        return replace(
            end, accepted=accepted, failed=tuple(sorted({**dict(end.failed), **self._dropped}.items()))
        )

    def _count(self, names: tuple[str, ...]) -> None:
        """Add what the sum took to the clients' rows."""
        traffic = self._through.traffic
        for name in names:
            self.sent[name] = self.sent.get(name, 0) + traffic.down.get(name, 0)
            self._rows[name]["bytes_up"] += traffic.up.get(name, 0)

    def _drop(self, names: set[str]) -> None:
        for name in names:
            why = self._through.traffic.failed.get(name, "is in no masked sum")
            self._dropped[name] = why
            self._rows[name] = {"bytes_up": self._rows[name]["bytes_up"]}
