"""HeadwaterStrategy: FedAvg's place in a Flower app, with Headwater's rules and codecs."""

from __future__ import annotations

import logging
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from headwater.compression.table import codec_for
from headwater.errors import DecodeError, EmptyRound, HeadwaterError
from headwater.flower import count_bytes
from headwater.flower_strategy.records import moved, payload_of, spec_of, state_of
from headwater.flower_strategy.settings import ASKED, Asked, Table, read_tables
from headwater.merging.aggregator import Merged
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.strategies.federated import MAX_WEIGHT
from headwater.strategies.rules import rule_for
from headwater.strategies.server_optimizers import Moments, optimizer_for

BYTES_UP = "headwater-bytes-up"
"""A round's metric: bytes of arrays in the replies that were merged."""
LEFT_OUT = "headwater-left-out"
"""A round's metric: replies that were not merged."""
_RAISED = 2
"""Flower's code of an error that a ClientApp raised; others are of nodes that are gone."""
_LOG = logging.getLogger("flwr")


@dataclass(frozen=True)
class _Round:
    """What clients were sent."""

    number: int
    arrays: ArrayRecord
    state: AdapterState


@dataclass(frozen=True)
class _Answer:
    """A reply that can be merged."""

    node: int
    content: RecordDict
    update: Update


class HeadwaterStrategy(FedAvg):
    """FedAvg whose merge is a rule of Headwater's, of changes that a codec of Headwater's compressed.

    Replies merge to the same bits in any order of arrival. With a codec, ClientApps need
    :func:`.headwater_mod`. Sampling, evaluation and metrics are FedAvg's.

    Args:
        rule: the name of a rule, such as ``"ties"``, or its table: ``{"kind": "ties", "density": 0.2}``,
            with the keys of ``[strategy]``, of the server's step too.
        codec: likewise, as ``[codec] up``: ``"compeft"``. ``"dense"`` sends plain arrays, without the mod.
        skip_bad: go on without a reply that cannot be merged, and log why; else it raises.
        seed: of rules and codecs that draw.
        options: of :class:`flwr.serverapp.strategy.FedAvg`.

    Raises:
        ConfigError: no such rule or codec, or one that plain Flower clients cannot answer.
    """

    def __init__(
        self,
        rule: Table = "mean",
        codec: Table = "dense",
        *,
        skip_bad: bool = False,
        seed: int = 0,
        **options: Any,  # noqa: ANN401 - Flower's own types
    ) -> None:
        super().__init__(**options)
        self._strategy, self._codec = read_tables(rule, codec)
        self._skip_bad, self._seed, self._root = skip_bad, seed, Key.root(seed)
        self._optimizer = optimizer_for(self._strategy)
        self._series, self._number = "", 0
        self._accepted: dict[int, int] = {}
        self._moments = Moments()
        self._round: _Round | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages; with a codec, each says what its node's mod is to do.

        Raises:
            SpecMismatch: an array is not of floats.
        """
        spec = spec_of(arrays, "initial_arrays")
        state = state_of(arrays, spec, "initial_arrays")
        if self._round is None or server_round == 1 or spec != self._round.state.spec:
            # a start: what clients hold back, and the optimiser remembers, is of other arrays
            self._series, self._accepted = secrets.token_hex(8), {}
            self._moments = self._optimizer.init(spec)
        self._number += 1
        self._round = _Round(self._number, arrays, state)
        messages = super().configure_train(server_round, arrays, config, grid)
        return messages if self._codec is None else [self._asking(message) for message in messages]

    def _asking(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        places = self._root.child("round", self._number, "places").digest[:16].hex()
        assert self._codec is not None, "asked for by configure_train"
        codec, accepted = self._codec.for_round(places), self._accepted.get(node, 0)
        told = Asked(codec, self._series, self._number, accepted, self._seed).to_text()
        config = message.content.config_records[self.configrecord_key]
        content = RecordDict(dict(message.content))
        content[self.configrecord_key] = ConfigRecord({**config, ASKED: told})
        return Message(content, node, message.metadata.message_type)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The arrays after one step of the server, and FedAvg's metrics with bytes and replies left out.

        Raises:
            HeadwaterError: a reply cannot be merged, unless ``skip_bad``; or none can.
        """
        replies = list(replies)
        if not replies and self.fraction_train == 0.0:
            return None, None
        answers = self._answers(replies)
        if not answers:
            raise EmptyRound(
                f"round {server_round}", expected="a reply that can be merged", got=f"none of {len(replies)}"
            )
        arrays = self._step(self._merge([answer.update for answer in answers]))
        self._accepted.update((answer.node, self._number) for answer in answers)
        contents = [answer.content for answer in answers]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        metrics[BYTES_UP] = sum(count_bytes(content) for content in contents)
        metrics[LEFT_OUT] = len(replies) - len(answers)
        return arrays, metrics

    def _answers(self, replies: Sequence[Message]) -> list[_Answer]:
        """Those that can be merged, by node."""
        answers = dict[int, _Answer]()
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            with self._bad():
                if (answer := self._answer(reply)) is None:
                    continue
                if node in answers:
                    raise DecodeError(f"node {node}", expected="one reply", got="two")
                answers[node] = answer
        names = {node: frozenset(_metrics(a.content, node)) for node, a in answers.items()}
        usual = Counter(names.values()).most_common(1)[0][0] if names else frozenset()
        for node, found in names.items():
            with self._bad():
                if found != usual:  # of most nodes: one alone leaves nobody else out
                    del answers[node]
                    raise DecodeError(
                        f"node {node}", expected=f"metrics {sorted(usual)}", got=f"{sorted(found)}"
                    )
        return list(answers.values())

    @contextmanager
    def _bad(self) -> Iterator[None]:
        """Inside, a reply that cannot be merged raises, or with ``skip_bad`` is logged."""
        try:
            yield
        except HeadwaterError as error:
            if not self._skip_bad:
                raise
            _LOG.error("left out: %s", error)

    def _answer(self, reply: Message) -> _Answer | None:
        """The reply, read; None of a node that is gone, or that has trained on nothing."""
        node = reply.metadata.src_node_id
        who = f"node {node}"
        if reply.has_error():
            if reply.error.code == _RAISED:
                raise DecodeError(who, expected="a reply", got=f"an error: {reply.error.reason}"[:2000])
            _LOG.warning("%s: no reply: %s", who, reply.error.reason)
            return None
        examples = _examples(_metrics(reply.content, node), self.weighted_by_key, who)
        if examples == 0:
            return None
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise DecodeError(who, expected="one ArrayRecord", got=f"{len(records)}")
        delta = self._delta(records[0], who)
        if not delta.isfinite():
            bad = [name for name, value in delta.items() if not bool(value.isfinite().all())]
            raise DecodeError(who, expected="finite values", got=f"others in {', '.join(bad[:3])}")
        return _Answer(node, reply.content, Update(f"{node:020}", self._number, delta, examples))

    def _delta(self, record: ArrayRecord, who: str) -> AdapterState:
        base, payload = self._sent.state, payload_of(record)
        if self._codec is None:
            return state_of(record, base.spec, who) - base
        codec = codec_for(self._codec)
        if payload is None or payload.codec != codec.id:
            raise DecodeError(
                who,
                expected=f"a change as {codec.id}",
                got="plain arrays" if payload is None else payload.codec,
                hint="The node's app needs ClientApp(mods=[headwater_mod]).",
            )
        return codec.decode(payload, base.spec)

    def _merge(self, updates: Sequence[Update]) -> Merged:
        """By the rule, which may look at every update more than once."""
        equal = self._strategy.weighting == "equal"
        weights = {u.client: 1 if equal else min(u.examples, MAX_WEIGHT) for u in updates}
        plan = MergePlan(self._sent.state.spec, weights, self._strategy.value_bound)
        rule = rule_for(self._strategy, self._root.child("merge", self._number))
        rule.require_room(plan.spec, len(updates))
        acc = rule.init(plan)
        while True:
            for update in updates:
                acc = rule.add(acc, update)
            following = rule.next_pass(acc)
            if following is None:
                return rule.finalize(acc)
            acc = following

    def _step(self, merged: Merged) -> ArrayRecord:
        """The server's step from what clients were sent."""
        before = self._sent
        state, self._moments = self._optimizer.step(before.state, self._moments, merged.delta)
        return moved(before.arrays, before.state, state)

    @property
    def _sent(self) -> _Round:
        assert self._round is not None, "Flower configures a round before it aggregates it"
        return self._round


def _metrics(content: RecordDict, node: int) -> MetricRecord:
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise DecodeError(f"node {node}", expected="one MetricRecord", got=f"{len(records)}")
    return records[0]


def _examples(metrics: MetricRecord, key: str, who: str) -> int:
    """The reply's weight.

    Raises:
        DecodeError: there is none, or it is no count.
    """
    found = metrics.get(key)
    whole = isinstance(found, int | float) and math.isfinite(found) and found >= 0 and found == int(found)
    if not whole or not isinstance(found, int | float):
        raise DecodeError(who, expected=f"metric {key!r}: a count of examples", got=repr(found)[:80])
    return int(found)
