"""MaskedExchange: the messages of masked sums between a server and its clients' agents.

A sum has five steps (:class:`headwater.protocol.messages.MaskStep`); in each the server asks, and waits until
all have answered, are away, or :attr:`patience_s` is over. Who has not answered has dropped out. An attempt
that fails is begun anew, with new keys of all; once a list of survivors has been shown, for that list alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from headwater.errors import DecodeError, EmptyRound, HeadwaterError, UpdateRejected
from headwater.proto.mask_wire import encode_sum
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import ClientFailure, MaskReply, MaskRequest, MaskStep, reported
from headwater.security.secagg import messages
from headwater.security.secagg.bounds import Promise
from headwater.security.secagg.group import Advert, SumRound, later_attempt
from headwater.security.secagg.server import MaskedSum, MaskingServer
from headwater.server.clients.client_pool import ClientPool
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.events import Notice
from headwater.server.storage.masked_record import MaskedRecord

ATTEMPTS = 4
"""A sum that was not found in so many is given up."""


class NoSum(Exception):
    """A round's updates could not be summed.

    Args:
        why: for people.
        told: whether a client may have sent its masked vector: then the round cannot be planned anew, since
            no client sends another one.
        stopped: whether a stop was asked for; the sum can be gone on with.
    """

    def __init__(self, why: str, *, told: bool, stopped: bool = False) -> None:
        super().__init__(why)
        self.told, self.stopped = told, stopped


@dataclass
class Traffic:
    """What a sum took, in all attempts.

    Attributes:
        up, down: bytes by client.
        vectors: SHA-256 of the signed reply that a client's masked vector came in, of the last attempt.
        failed: by client, why it dropped out.
    """

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    vectors: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class MaskedExchange:
    """Of one round.

    Args:
        pool: the clients.
        control: time, stop and observer.
        path: file of the round's :class:`MaskedRecord`.
        promise: what the federation states of drop-outs, collusion and the fewest clients.
        patience_s: how long a step waits for a client that is there.
        retry_s: how long after an attempt that clients have refused they are asked for another.
        once: whether clients send their vectors in one attempt only.
    """

    def __init__(
        self,
        pool: ClientPool,
        control: RunControl,
        path: Path,
        promise: Promise,
        *,
        patience_s: float,
        retry_s: float,
        once: bool = False,
    ) -> None:
        self.promise = promise
        self._pool, self._control, self._path = pool, control, path
        self._patience_s, self._retry_s, self._once = patience_s, retry_s, once
        self.traffic = Traffic()
        self._refusals = dict[str, str]()  # of this attempt, by client

    def sum(self, draft: SumRound, plans: Collection[bytes]) -> MaskedSum:
        """Sum the vectors of the round's clients.

        Args:
            draft: the round, without an attempt.
            plans: digests of what they were asked to train.

        Raises:
            NoSum: too many clients dropped out of each attempt.
            StorageError: the record cannot be written.
            Interrupted: the run is to end now.
        """
        record, why = MaskedRecord.load(self._path, draft.round), ""
        for _ in range(ATTEMPTS):
            if self._once and record.vectors:
                raise NoSum(why or "it ended after noised vectors had been asked for", told=True)
            self._wait_for(draft, record)
            attempt = later_attempt(bytes.fromhex(record.attempt))
            record = replace(record, attempt=attempt.hex())
            record.save(self._path)
            self._refusals.clear()
            try:
                return self._attempt(replace(draft, attempt=attempt, exactly=record.survivors), plans)
            except HeadwaterError as error:
                if not isinstance(error, EmptyRound | UpdateRejected | DecodeError):
                    raise
                why = f"{error}{self._told_refusals()}"
                self._control.observer(Notice(f"round {draft.round}: no sum under masks yet: {why}"))
            finally:
                self._pool.exchange.forget(MaskRequest, draft.round)
            record = MaskedRecord.load(self._path, draft.round)
            if self._control.should_stop():
                raise NoSum(why, told=record.vectors, stopped=True)
            if self._refusals:  # at once: without a rest they would be asked, and train, over and over
                self._wait(self._retry_s, lambda: False)
        raise NoSum(why, told=record.vectors)

    def _wait_for(self, draft: SumRound, record: MaskedRecord) -> None:
        """Give clients that are away time to come back, where without them there is no sum."""
        asked = len(draft.names)
        need = len(record.survivors) or asked - draft.promise.dropped(asked)
        wanted = record.survivors or draft.names
        self._wait(self._patience_s, lambda: sum(not self._pool.is_away(n) for n in wanted) >= need)

    def _wait(self, seconds: float, over: Callable[[], bool]) -> None:
        """Let time pass until it is over, or a stop is asked for."""
        ends_s = self._control.clock() + seconds
        while self._control.clock() < ends_s and not self._control.should_stop() and not over():
            for _ in self._pool.poll(MaskRequest):
                pass
            self._control.pause()

    def _told_refusals(self) -> str:
        """What one of those said who took no part in the attempt: most often all mean the same."""
        if not self._refusals:
            return ""
        name = min(self._refusals)
        return f" {len(self._refusals)} refused, among them {name}: {self._refusals[name]}"

    def _attempt(self, sum_round: SumRound, plans: Collection[bytes]) -> MaskedSum:
        """One attempt, with keys of its own.

        Raises:
            EmptyRound: too many dropped out, or a client sent false shares.
        """
        keys = self._pool.signing_keys()
        if lacking := [name for name in sum_round.names if name not in keys]:
            raise EmptyRound(
                f"masked sum of round {sum_round.round}", expected="enrolled clients", got=f"no {lacking[0]}"
            )
        enrolled = {name: keys[name] for name in sum_round.names}
        server, ask = MaskingServer(sum_round, enrolled), _Asking(self, sum_round)
        small, sealed = 2**10 + 128 * len(sum_round.names), messages.SEALED_BYTES
        told = encode_sum(sum_round, enrolled, plans)
        ask.each(
            MaskStep.KEYS, dict.fromkeys(sum_round.names, told), Advert.BYTES,
            lambda name, data: server.take_advert(name, Advert.from_bytes(data)),
        )  # fmt: skip
        group = server.close_adverts()
        count, told = len(group.adverts), messages.dump_group(group)
        members = [sum_round.names[advert.index] for advert in group.adverts]
        ask.each(
            MaskStep.SHARES, dict.fromkeys(members, told), small,
            lambda name, data: server.take_shares(name, messages.load_rows(data, sealed, count)),
        )  # fmt: skip
        deliveries = server.close_shares()
        wanted = sum_round.exactly or tuple(deliveries)
        self._save(sum_round, vectors=True)
        ask.each(
            MaskStep.VECTOR,
            {name: messages.dump_delivery(d) for name, d in deliveries.items() if name in wanted},
            sum_round.layout.packed_bytes,
            server.take_masked,
        )
        server.close_masked()
        self._save(sum_round, survivors=server.survivor_names)
        flags = messages.dump_flags(server.survivors)
        signed = ask.each(
            MaskStep.LIST, dict.fromkeys(server.survivor_names, flags), 64, server.take_signature
        )
        certificate = messages.dump_rows(server.close_signatures())
        ask.each(
            MaskStep.REVEAL, dict.fromkeys(signed, certificate), small,
            lambda name, data: server.take_reveal(name, messages.load_reveal(data, count)),
        )  # fmt: skip
        return server.finish()

    def _save(self, sum_round: SumRound, *, vectors: bool = True, survivors: tuple[str, ...] = ()) -> None:
        """Note what clients are about to be asked that they tell once."""
        MaskedRecord(
            sum_round.round, sum_round.attempt.hex(), vectors, survivors or sum_round.exactly
        ).save(self._path)  # fmt: skip

    def exchange(
        self, requests: Mapping[str, MaskRequest], limit: int, take: Callable[[str, bytes], None]
    ) -> list[str]:
        """Ask these clients a step; who has answered it well, in their order.

        Args:
            requests: by client, all of one step.
            limit: bytes of an answer's content.
            take: takes it; what it raises is the client's fault.
        """
        traffic, round = self.traffic, next((r.round for r in requests.values()), 0)
        sizes = self._pool.exchange.send(list(requests.items()), round)
        for name, size in sizes.items():
            traffic.down[name] = traffic.down.get(name, 0) + size
        waiting, well = set(requests), set[str]()
        ends_s = self._control.clock() + self._patience_s
        while waiting:
            quiet = True
            for incoming in self._pool.poll(MaskRequest):
                quiet = False
                name = incoming.address
                traffic.up[name] = traffic.up.get(name, 0) + incoming.bytes_up
                if name not in waiting:
                    continue
                waiting.discard(name)
                try:
                    take(name, _content(incoming, requests[name], limit))
                except HeadwaterError as error:
                    traffic.failed[name] = self._refusals[name] = str(error)
                else:
                    well.add(name)
                    if requests[name].step is MaskStep.VECTOR:
                        traffic.vectors[name] = hashlib.sha256(incoming.raw).hexdigest()
            late = self._control.clock() > ends_s
            for name in [n for n in sorted(waiting) if late or self._pool.is_away(n)]:
                waiting.discard(name)
                why = f"no answer within {self._patience_s:g} s" if late else "away"
                traffic.failed[name] = f"dropped out of the masked sum: {why}"
            if quiet and waiting:
                self._control.pause()
        self._pool.exchange.forget(MaskRequest, round)
        return [name for name in requests if name in well]


@dataclass(frozen=True)
class _Asking:
    """The steps of one attempt."""

    through: MaskedExchange
    sum_round: SumRound

    def each(
        self, step: MaskStep, contents: Mapping[str, bytes], limit: int, take: Callable[[str, bytes], None]
    ) -> list[str]:
        """Ask each of these clients; see :meth:`MaskedExchange.exchange`."""
        which = self.sum_round
        requests = {
            name: MaskRequest(which.run, which.round, name, which.attempt, step, content)
            for name, content in contents.items()
        }
        return self.through.exchange(requests, limit, take)


def _content(incoming: ReceivedReply, asked: MaskRequest, limit: int) -> bytes:
    """What the client answers to this step.

    Raises:
        DecodeError: not such an answer, or one of another step, attempt or client.
        UpdateRejected: the client reports a failure.
    """
    who = f"client {incoming.address}, masked sum"
    if incoming.error:
        raise DecodeError(who, expected="an answer", got=incoming.error)
    reply = decode_reply(incoming.data, max_bytes=limit)
    if isinstance(reply, ClientFailure):
        raise reported(reply, who, expected=f"its {asked.step.name.lower()}", remote=incoming.remote)
    of = asked.client, asked.run, asked.round, asked.attempt, asked.step
    if not isinstance(reply, MaskReply) or of != (
        reply.client, reply.run, reply.round, reply.attempt, reply.step
    ):  # fmt: skip
        raise DecodeError(who, expected=f"its answer to step {asked.step.name.lower()}", got="another")
    if len(reply.content) > limit:
        raise DecodeError(who, expected=f"at most {limit} bytes", got=str(len(reply.content)))
    return reply.content
