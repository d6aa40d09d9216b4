"""OpenRound: what the server holds while a round is open: accumulators, sizes, one row per client."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headwater.compression.dense import DenseCodec
from headwater.compression.just_made import decode_once
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.seed_update import decode_scalars, scalars_max_bytes
from headwater.compression.table import codec_for
from headwater.errors import DecodeError, UpdateRejected
from headwater.merging.accumulator_bytes import dump, load
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.control_variates import ControlPlan, ControlSums
from headwater.merging.merge_plan_json import merge_plan_to_json
from headwater.merging.plan import Update
from headwater.merging.product_gap import GapSketch
from headwater.merging.update_moments import require_noise
from headwater.privacy.sensitivity import ROUNDING
from headwater.proto.wire import decode_reply
from headwater.protocol.machine import Close
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    ClientProfile,
    EncodedUpdate,
    Payload,
    TrainRequest,
    reported,
)
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Outgoing
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.round_record import RoundDraft, SentStates, Traffic
from headwater.server.rounds.contribution import PlayerSums
from headwater.server.rounds.norm_bound import within
from headwater.state import AdapterState
from headwater.strategies.strategy import RoundPlan

SHOWN_METRICS = ("loss", "first_loss", "last_loss", "seconds", "fisher_seconds")
"""What of a client's metrics is written down; a client may send others, under any names."""


class OpenRound:
    """One round from the first request to the merge. Memory does not grow with clients but for rows.

    Args:
        plan: who is asked what.
        down: the state that the clients start from, and how it travels to them.
        run: id of the run.
        profiles: what the clients said of themselves.
        rule: the merge rule.
        root: the federation's root key.
        origins: for a client that started from an older version: its number and its base's hash.

    Attributes:
        profiles: the profiles of the clients in the plan.
        sent: bytes that went to each client so far.
        received: by client that is in, the hash of what arrived, and the edge aggregator that summed it.
        players: the same sums apart by player, in a round whose contributions are measured.
    """

    def __init__(
        self,
        plan: RoundPlan,
        down: Outgoing,
        run: str,
        profiles: Mapping[str, ClientProfile],
        rule: Aggregator[Any],
        root: Key,
        origins: Mapping[str, tuple[int, str]] = MappingProxyType({}),
    ) -> None:
        base = down.base
        self.plan, self.base, self.sent = plan, base, dict[str, int]()
        self._sent_dense, self._states = dict[str, int](), SentStates()
        self.profiles = {client: profiles[client] for client in plan.clients}
        self._origins, self._root = origins, root
        self._down, self._run, self._rule = _with_control(down, plan.control), run, rule
        self.base_sha256 = base.sha256()
        self._acc = rule.init(plan.merge)
        self._control = None if plan.control is None else ControlSums(plan.merge, plan.control)
        # coefficients have no factors of their own whose products could be compared
        # and what EF21 sends is no change of a client's state
        # and of a sum with noise nothing else is to be kept
        no_gap = plan.merge.seeds is not None or plan.shift is not None or plan.merge.private is not None
        self._gap = None if no_gap else GapSketch(base, key=root.child("gap", plan.round))
        self._gap_acc = None if self._gap is None else self._gap.init(plan.merge)
        self._dense_bytes = base.spec.nbytes
        self._rows: dict[str, dict[str, Any]] = {}
        self.received: dict[str, tuple[str, str]] = {}
        self.players: PlayerSums[Any] | None = None
        self._folded: dict[str, ReceivedReply | None] = {}
        self._sums: dict[str, int] = {}  # bytes by edge aggregator

    def request(self, client: str, accepted_round: int) -> TrainRequest:
        """The client's task."""
        return TrainRequest(
            run=self._run,
            round=self.plan.round,
            client=client,
            spec=self.base.spec.fingerprint(),
            state_sha256=self.base_sha256,
            state=self._down.payload(client),
            accepted_round=accepted_round,
            plan=self.plan.clients[client],
        )

    def note_sent(self, request: TrainRequest, size: int) -> None:
        """Count a request that went out, in ``size`` bytes."""
        client = request.client
        dense = size - len(request.state.body) + self._dense_bytes
        self._down.count(client, request.state, self._states)
        self.sent[client] = self.sent.get(client, 0) + size
        self._sent_dense[client] = self._sent_dense.get(client, 0) + dense

    def again(
        self, plan: RoundPlan, origins: Mapping[str, tuple[int, str]], rule: Aggregator[Any]
    ) -> OpenRound:
        """The same round with another plan for some of its clients, nothing folded yet."""
        other = OpenRound(plan, self._down, self._run, self.profiles, rule, self._root, origins)
        other.sent, other._sent_dense, other._states = self.sent, self._sent_dense, self._states
        return other

    def fold(self, incoming: ReceivedReply, *, keep: bool = False) -> None:
        """Decode, check and add one reply; nothing of it is kept but a row of numbers.

        Args:
            incoming: the reply.
            keep: of a rule of several passes, keep the reply as well: there is no spool to read it from.

        Raises:
            DecodeError: not this client's update of this round, or bytes that are not a state.
            UpdateRejected: the client reports a failure, or its values must not be merged.
        """
        if incoming.rows:
            self._fold_sum(incoming)
            return
        client = incoming.address
        row = self._rows[client] = {"bytes_up": incoming.bytes_up}
        update, reply = self.check(incoming, self._origins.get(client))
        update = self._within_bound(update, row)
        if self._control is not None:
            self._control.require(update)
        self._add(update)
        self.received[client] = self._arrived(incoming), ""
        self._folded[client] = incoming if keep and self._rule.passes > 1 else None
        row |= {**update.metrics, "examples": reply.examples, "steps": reply.steps}
        row |= {"noise": update.noise} if update.noise else {}
        row["bytes_up_dense"] = incoming.bytes_up - len(reply.delta.body) + self._dense_bytes
        row |= {f"bytes_{name}": len(p.body) for name, p in sorted(reply.statistics.items())}

    def _add(self, update: Update) -> None:
        """Add a checked update."""
        self._acc = self._rule.add(self._acc, update)
        if self.players is not None:
            self.players.add(update)
        if self._gap is not None and self._gap_acc is not None:
            self._gap_acc = self._gap.add(self._gap_acc, update)
        if self._control is not None:
            self._control.add(update)

    def _arrived(self, incoming: ReceivedReply) -> str:
        """The hash of what arrived, for the receipt."""
        return hashlib.sha256(incoming.raw).hexdigest()

    def merge_plan_of(self, clients: Sequence[str]) -> str:
        """What an edge aggregator is told that adds up the updates of these clients: JSON."""
        return merge_plan_to_json(self.plan.merge.part(clients))

    def sums(self) -> tuple[bytes, bytes]:
        """What was folded so far, and its gap sketch, as an edge aggregator sends them."""
        gap = b"" if self._gap is None or self._gap_acc is None else dump(self._gap, self._gap_acc)
        return dump(self._rule, self._acc), gap

    @property
    def rows(self) -> Mapping[str, Mapping[str, float]]:
        """By client that is in, the numbers of its row."""
        return {client: row for client, row in self._rows.items() if "examples" in row}

    def _fold_sum(self, incoming: ReceivedReply) -> None:
        """Add what an edge aggregator added up: all of it or nothing."""
        names, who = incoming.rows.keys(), f"edge aggregator {incoming.address}"
        if unknown := set(incoming.asked) - self.plan.clients.keys():
            raise DecodeError(who, expected="clients of this round", got=min(unknown))
        part, plan = self.plan.merge.part(incoming.asked), self.plan.merge
        if self.plan.merge.private is not None:
            self._rule.require_sound(self._acc)  # which says why there is no such sum
        acc = load(self._rule, part, incoming.data)
        parts = [acc.participants]
        gap_acc = None
        if self._gap is not None:
            gap_acc = load(self._gap, part, incoming.gap)
            parts.append(gap_acc.participants)
        for participants in parts:
            if participants.clients != names:
                raise DecodeError(who, expected="rows of the clients in its sum", got="of others")
            participants.plan = plan
        rows = {client: self._row_of(client, row) for client, row in incoming.rows.items()}
        if self.players is not None:
            self.players.join(incoming.address, copy.deepcopy(acc, {id(plan): plan}))
        self._acc = self._rule.combine(self._acc, acc)
        if self._gap is not None and self._gap_acc is not None and gap_acc is not None:
            self._gap_acc = self._gap.combine(self._gap_acc, gap_acc)
        self._rows |= rows
        digest = hashlib.sha256(incoming.raw).hexdigest()
        self.received |= dict.fromkeys(rows, (digest, incoming.address))
        self._sums[incoming.address] = self._sums.get(incoming.address, 0) + incoming.bytes_up

    def _row_of(self, client: str, row: Mapping[str, float]) -> dict[str, Any]:
        """A client's row by its edge aggregator's word, with no other keys than a row of ours."""
        examples = self.profiles[client].train_examples
        if row.get("examples") != examples:
            got = str(row.get("examples"))
            raise DecodeError(f"client {client}: examples", expected=str(examples), got=got)
        known = (*SHOWN_METRICS, "noise", "clipped_from")
        numbers: dict[str, Any] = {"bytes_up": 0}
        numbers |= {n: int(v) for n, v in row.items() if n in ("examples", "steps") or n.startswith("bytes_")}
        return numbers | {name: row[name] for name in known if name in row}

    def _within_bound(self, update: Update, row: dict[str, Any]) -> Update:
        """The update as it may be added; its client's row has the norm it came with, if that was too much."""
        if self.plan.merge.norm_bound is None:
            return update
        update, norm = within(update, self.plan.merge.norm_bound)
        row |= {} if norm is None else {"clipped_from": norm}
        return update

    def check(
        self, incoming: ReceivedReply, origin: tuple[int, str] | None = None
    ) -> tuple[Update, EncodedUpdate]:
        """Decode and check one reply, without adding it.

        Args:
            incoming: the reply.
            origin: number and base hash of the version it must have started from; this one's if absent.

        Raises:
            DecodeError, UpdateRejected: as :meth:`fold`.
        """
        client, plan = incoming.address, self.plan.clients[incoming.address]
        if incoming.error:
            raise DecodeError(f"client {client}", expected="an update", got=incoming.error)
        codec, fisher, spec = codec_for(plan.codec), LogQuantCodec(), self.base.spec
        limit = codec.max_bytes(spec) if plan.seeds is None else scalars_max_bytes(plan.seeds)
        limit += fisher.max_bytes(spec) if plan.fisher else 0
        reply = decode_reply(incoming.data, max_bytes=limit)
        if isinstance(reply, ClientFailure):
            raise reported(reply, f"client {client}", expected="an update", remote=incoming.remote)
        if not isinstance(reply, EncodedUpdate):
            raise DecodeError(f"client {client}", expected="an update", got=type(reply).__name__)
        self._check(client, reply, origin or (self.plan.round, self.base_sha256))
        metrics = {name: reply.metrics[name] for name in SHOWN_METRICS if name in reply.metrics}
        statistics = {n: fisher.decode(p, spec) for n, p in reply.statistics.items()}
        delta: AdapterState | SeedCoefficients
        if plan.seeds is not None:
            delta = decode_scalars(reply.delta, plan.seeds)
        else:
            delta = decode_once(codec, reply.delta, spec)
            if plan.clip_l2 is not None and (norm := delta.norm()) > plan.clip_l2 * ROUNDING:
                raise UpdateRejected(
                    f"client {client}", expected=f"an L2 norm of at most {plan.clip_l2:g}", got=f"{norm:g}"
                )
        noise = _noise(client, plan, delta, reply, spec.numel)
        update = Update(
            client, reply.round, delta, reply.examples, reply.steps, statistics, metrics, noise=noise
        )
        return update, reply

    def _check(self, client: str, reply: EncodedUpdate, origin: tuple[int, str]) -> None:
        wanted = self._statistics(client)
        number, base_sha256 = origin
        for what, expected, got in (
            ("run", self._run, reply.run),
            ("round", number, reply.round),
            ("client", client, reply.client),
            ("spec", self.base.spec.fingerprint(), reply.spec),
            ("base state", base_sha256, reply.base_sha256),
            ("examples", self.profiles[client].train_examples, reply.examples),
            ("statistics", wanted, set(reply.statistics)),
        ):
            if expected != got:
                raise DecodeError(f"client {client}: {what}", expected=str(expected), got=str(got))

    def _statistics(self, client: str) -> set[str]:
        """Which ones its update must have."""
        return {"fisher"} if self.plan.clients[client].fisher else set()

    def settled(self, end: Close) -> Close:
        """The round's end, with who turned out to be in the merge."""
        return end

    def merge(self, again: Callable[[str], ReceivedReply] | None = None) -> Merged:
        """The rule's result. A rule of several passes is given every update again.

        Args:
            again: reads the reply of a client; None where all were kept.

        Raises:
            EmptyRound: nothing was folded.
        """
        while (following := self._rule.next_pass(self._acc)) is not None:
            for client, kept in sorted(self._folded.items()):
                incoming = kept or (again and again(client))
                assert incoming is not None, "neither kept nor to be read again"
                update, _ = self.check(incoming, self._origins.get(client))
                update = self._within_bound(update, self._rows[client])
                following = self._rule.add(following, update)
            self._acc = following
        merged = self._rule.finalize(self._acc)
        if self.plan.shift is not None:
            merged = self.plan.shift.after(merged)
        if self._control is None:
            return merged
        control = self._control.finalize()
        return replace(merged, control=control, report={**merged.report, "control_norm": control.norm()})

    def draft(self, end: Close, merged: Merged, after: AdapterState) -> RoundDraft:
        """The round's line as far as the merge goes: per client, bytes, gap, the rule's report."""
        failed = dict(end.failed)
        rows: dict[str, dict[str, Any]] = {}
        for client in sorted(self.plan.clients):
            method = {"method": name} if (name := self.plan.clients[client].method) else {}
            edge = {"edge": edge} if (edge := self.profiles[client].edge) else {}
            budget = getattr(self.plan.clients[client].codec, "budget_bytes", None)
            rows[client] = {"bytes_down": self.sent.get(client, 0), **method, **edge}
            rows[client] |= {} if budget is None else {"budget_bytes": budget}
            rows[client] |= self._rows.get(client, {})
            if client in merged.marks:
                rows[client] |= merged.marks[client].row()
            if client in failed:
                rows[client]["failed"] = failed[client]
            if client in end.spared:
                rows[client]["spared"] = True
        sizes = Traffic(
            up=sum(r.get("bytes_up", 0) for r in rows.values()),
            down=sum(self.sent.values()),  # in buffered rounds others have been asked, too
            up_dense=sum(r.get("bytes_up_dense", r.get("bytes_up", 0)) for r in rows.values()),
            down_dense=sum(self._sent_dense.values()),
        )
        draft = RoundDraft(self.plan.round, rows, sizes)
        clipped = sum("clipped_from" in row and client not in failed for client, row in rows.items())
        bounded = {} if self.plan.merge.norm_bound is None else {"clipped": float(clipped)}
        draft.merged(self._found_gap(after), {**merged.report, **bounded})
        draft.summed(self._sums)
        draft.states = self._states
        return draft

    def _found_gap(self, after: AdapterState) -> dict[str, Any] | None:
        """The gap as the record has it; None where it is not measured."""
        if self._gap is None or self._gap_acc is None:
            return None
        gap = self._gap.finalize(self._gap_acc, after)
        return {
            "exact": gap.exact,
            "absolute": gap.total.gap,
            "relative": gap.total.relative,
            "saturated": gap.saturated,
            "modules": {name: m.relative for name, m in gap.modules.items()},
        }


def _with_control(down: Outgoing, control: ControlPlan | None) -> Outgoing:
    """The state with the server's control variate behind it, cut off again by ``plan.control_bytes``."""
    if control is None:
        return down
    assert isinstance(down.sent, Payload), "control variates go with deltas"
    # lossless: draws nothing
    return replace(down, behind=DenseCodec("fp32").encode(control.control, key=Key.root(0)).body)


def _noise(
    client: str, plan: ClientPlan, delta: AdapterState | SeedCoefficients, reply: EncodedUpdate, size: int
) -> float:
    """The update's noise: 0 without random directions, what coefficients of seeds imply, else the claim.

    What a claim counts for: see :mod:`headwater.merging.method_weights`, and ``MergePlan.claimed``.

    Raises:
        UpdateRejected: a method along random directions that reports no noise, or not a number ≥ 0.
    """
    if isinstance(delta, SeedCoefficients) and plan.training.noise == "from coefficients":
        return delta.noise(size)
    if plan.training.noise == "none":
        return 0.0
    if "noise" not in reply.metrics:
        raise UpdateRejected(
            f"client {client}",
            expected=f"the noise of its update, which '{plan.training.kind}' tells",
            got="none",
            hint="Update the client's software.",
        )
    require_noise(reply.metrics["noise"], client)
    return reply.metrics["noise"]
