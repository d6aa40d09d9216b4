"""Exchange: requests out, replies in, over any Flower Grid; nothing is believed here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol, runtime_checkable

from flwr.app import Array, Message, MessageType
from flwr.serverapp import Grid

from headwater.errors import DecodeError, HeadwaterError
from headwater.flower import as_array, count_bytes, pack, unpack
from headwater.flower.faults import end_of_run
from headwater.flower.padding import Padding, bucket
from headwater.proto.group_wire import decode_group_reply, encode_group_request
from headwater.proto.wire import decode_reply, encode_request
from headwater.protocol.messages import (
    ClientFailure,
    ClientProfile,
    EvaluateRequest,
    GroupReply,
    GroupRequest,
    MaskRequest,
    ProfileRequest,
    Request,
    TrainRequest,
)
from headwater.server.clients.upload_speeds import UploadSpeeds
from headwater.server.events import ClientAsked, Observer

GROUP_AT_ONCE = 1000
"""Clients behind one edge aggregator that one message asks."""
ASKED_AT_ONCE = 1000
"""Clients whose profile, or evaluation, is out at the same time where nothing ends the wait for one: what
bounds the memory of messages."""
PULL_AT_ONCE = 16
"""Replies asked for in one pull: what bounds the memory of replies that wait to be folded."""

_TYPES = {
    ProfileRequest: MessageType.QUERY,
    TrainRequest: MessageType.TRAIN,
    EvaluateRequest: MessageType.EVALUATE,
    MaskRequest: f"{MessageType.QUERY}.masks",
}
_KINDS = {ProfileRequest: "profile", TrainRequest: "train", EvaluateRequest: "evaluate"}


@dataclass(frozen=True, slots=True)
class ReceivedReply:
    """One reply: whose task it answers (not who claims to be), and its bytes or what is wrong with it.

    ``data`` is the reply; ``raw`` is what arrived, for who wants to open it again. ``remote``: it came over a
    network, so that of a failure only the code is believed, and no text.

    With ``rows`` it is a sum: of these clients, by the edge aggregator ``address``, which was asked for
    ``asked``; ``data`` is HWAC1 and ``gap`` its sketch.
    """

    address: str
    kind: type[Request]
    round: int
    data: bytes
    error: str
    bytes_up: int
    raw: bytes = b""
    remote: bool = False
    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    gap: bytes = b""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message that is out: to whom, and for which clients behind it."""

    address: str
    kind: type[Request]
    round: int
    members: frozenset[str] = frozenset()


@runtime_checkable
class Cancels(Protocol):
    """A grid that can be told that nobody waits for these messages any more."""

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop the messages, their work and their replies."""


@runtime_checkable
class Introduces(Protocol):
    """A grid whose clients may be in this process, so that no message has to ask what they have."""

    def introductions(self) -> Callable[[int], ClientProfile | ClientFailure] | None:
        """What says it, by node; None where they are asked by message."""


@runtime_checkable
class SaysWhen(Protocol):
    """A grid on which replies arrive in an order of their own, whatever order they are asked for."""

    def arrived(self, kinds: Collection[str]) -> str | None:
        """The id of the first reply to messages of these types that has arrived and was not pulled."""


def unsigned(address: str, data: bytes) -> bytes:
    """How replies are verified where transport and clients are our own: they are not signed."""
    return data


class Exchange:
    """Outstanding messages by id.

    Args:
        grid: Flower's, or one of ours.
        nodes: Flower's node id by address (a client's name).
        open_reply: from an address and what arrived there to the reply; raises ``HeadwaterError``.
        tell: is told what is asked of whom.
        edge_of: the edge aggregator that a client is behind; empty for one that is reached directly.
        padding: of what goes out; replies to it are padded so, too, and counted as they are padded.

    Attributes:
        speeds: how fast updates came; of those that an edge aggregator sums nobody sees the links.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        open_reply: Callable[[str, bytes], bytes] = unsigned,
        tell: Observer = lambda event: None,
        edge_of: Callable[[str], str] = lambda client: "",
        padding: Padding = "none",
    ) -> None:
        self._grid, self._nodes, self._open, self._tell = grid, nodes, open_reply, tell
        self._edge_of, self._padding = edge_of, padding
        self._outstanding: dict[str, _Sent] = {}
        self._ids_of: dict[str, set[str]] = {}  # by client, messages that concern it
        self._here: dict[int, ReceivedReply] = {}  # replies that no pull brings
        self._numbers = count()
        self._pulled: dict[str, Message] = {}  # taken from the grid, not handed on yet
        self.speeds = UploadSpeeds(grid)

    def send(
        self,
        requests: Iterable[tuple[str, Request]],
        round: int,
        merge_plan: Callable[[Sequence[str]], str] = lambda clients: "",
    ) -> dict[str, int]:
        """Push requests; return the bytes that go to each client's device.

        Those for clients behind one edge aggregator travel as one message, which it opens for them.

        Args:
            requests: by address.
            round: their number here.
            merge_plan: what an edge aggregator is told that adds up updates of these clients.
        """
        rows, messages, sizes = list[_Sent](), list[Message](), dict[str, int]()
        states: dict[bytes, Array] = {}  # mostly one for all
        groups: dict[tuple[str, type[Request], str, bytes], dict[str, bytes]] = {}
        for address, request in requests:
            envelope, state = encode_request(request)
            if state not in states:
                states[state] = as_array(state, self._padding)
            content = pack(envelope=as_array(envelope, self._padding), state=states[state])
            sizes[address], kind = count_bytes(content), type(request)
            edge = self._edge_of(address)
            node = self._nodes.get(edge or address)
            if node is None:
                why = f"its edge aggregator {edge} has no node" if edge else "it has no node"
                self._keep([ReceivedReply(address, kind, round, b"", why, 0)])
                continue
            if kind in _KINDS:  # the steps of a masked sum are told by nobody
                self._tell(ClientAsked(round, address, _KINDS[kind], sizes[address]))
            if edge:
                groups.setdefault((edge, kind, request.run, state), {})[address] = envelope
                continue
            rows.append(_Sent(address, kind, round))
            messages.append(Message(content, node, _TYPES[kind], group_id=str(round)))
        for (edge, kind, run, state), members in groups.items():
            names = list(members)
            for start in range(0, len(names), GROUP_AT_ONCE):
                part = names[start : start + GROUP_AT_ONCE]
                told = merge_plan(part) if kind is TrainRequest else ""
                group = GroupRequest(edge, run, round, tuple(members[name] for name in part), told)
                told_group = as_array(encode_group_request(group), self._padding)
                content = pack(envelope=told_group, state=states[state])
                rows.append(_Sent(edge, kind, round, frozenset(part)))
                messages.append(Message(content, self._nodes[edge], _TYPES[kind], group_id=str(round)))
        # Flower gives None for a message that it could not push, and no ids where all were too large
        ids: list[str | None] = list(self._grid.push_messages(messages))
        ids += [None] * (len(rows) - len(ids))
        for message_id, sent in zip(ids, rows, strict=True):
            if message_id is None:
                reason = "Flower could not push the message"
                self._keep(
                    ReceivedReply(client, sent.kind, round, b"", reason, 0)
                    for client in sorted(sent.members) or [sent.address]
                )
            else:
                self._outstanding[message_id] = sent
                for name in (sent.address, *sent.members):
                    self._ids_of.setdefault(name, set()).add(message_id)
        return sizes

    def waiting(self, kind: type[Request], round: int) -> bool:
        """Whether a reply to such a request is still out."""
        return any(s.kind is kind and s.round == round for s in self._outstanding.values()) or any(
            i.kind is kind and i.round == round for i in self._here.values()
        )

    @property
    def outstanding(self) -> int:
        """How many messages are out."""
        return len(self._outstanding)

    def poll(self, *kinds: type[Request]) -> Iterator[ReceivedReply]:
        """Every reply to requests of these kinds that is there now, a few at a time, late ones too.

        Replies of other kinds stay where they are; without kinds, all are taken. Whoever stops in the
        middle, because a buffer is full, finds the others at the next call.
        """
        yield from self._drain(kinds)
        if kinds and isinstance(self._grid, SaysWhen):
            yield from self._in_order(self._grid, [_TYPES[kind] for kind in kinds])
            return
        ids = [i for i, sent in self._outstanding.items() if not kinds or sent.kind in kinds]
        for start in range(0, len(ids), PULL_AT_ONCE):
            while group := [i for i in ids[start : start + PULL_AT_ONCE] if i in self._outstanding]:
                if not self._pulled.keys() & set(group):
                    for message in self._grid.pull_messages(group):
                        if (answered := message.metadata.reply_to_message_id) in self._outstanding:
                            self._pulled.setdefault(answered, message)
                here = [i for i in group if i in self._pulled]
                if not here:
                    break
                for message_id in here:
                    sent = self._take(message_id)  # None: forgotten meanwhile
                    if sent is not None and sent.members:
                        self._keep(self._opened(self._pulled.pop(message_id), sent))
                        yield from self._drain(kinds)
                    elif sent is not None:
                        incoming = self._incoming(self._pulled.pop(message_id), sent)
                        if sent.kind is TrainRequest and not incoming.error:
                            self.speeds.note(sent.address, message_id, incoming.data)
                        yield incoming

    def _in_order(self, grid: SaysWhen, kinds: Sequence[str]) -> Iterator[ReceivedReply]:
        """Replies as they arrive."""
        while (message_id := grid.arrived(kinds)) is not None:
            (message,) = self._grid.pull_messages([message_id])
            if (sent := self._take(message_id)) is not None:
                yield self._incoming(message, sent)

    def _drain(self, kinds: Sequence[type[Request]]) -> Iterator[ReceivedReply]:
        """What is here already: what could not be sent, and parts of an edge aggregator's reply."""
        for number in [n for n, i in self._here.items() if not kinds or i.kind in kinds]:
            incoming = self._here.pop(number, None)  # None: forgotten meanwhile
            if incoming is not None:
                yield incoming

    def _keep(self, replies: Iterable[ReceivedReply]) -> None:
        self._here.update((next(self._numbers), reply) for reply in replies)

    def forget(self, kind: type[Request], round: int) -> None:
        """Stop waiting for replies of this kind and round."""
        self._drop([i for i, sent in self._outstanding.items() if sent.kind is kind and sent.round == round])

    def forget_address(self, kind: type[Request], address: str) -> None:
        """Stop waiting for replies of this kind from this address, of any round."""
        gone = []
        for message_id in sorted(self._ids_of.get(address, ())):
            sent = self._outstanding[message_id]
            if sent.kind is not kind or (sent.members and address not in sent.members):
                continue
            rest = sent.members - {address}
            if rest:  # others behind the same edge aggregator are still waited for
                self._outstanding[message_id] = replace(sent, members=rest)
                self._unlink(message_id, [address])
            else:
                gone.append(message_id)
        self._drop(gone)

    def forget_all(self) -> None:
        """Stop waiting for anything."""
        self._drop(list(self._outstanding))
        self._here.clear()

    def _take(self, message_id: str) -> _Sent | None:
        """The message, which is out no more."""
        sent = self._outstanding.pop(message_id, None)
        if sent is not None:
            self._unlink(message_id, (sent.address, *sent.members))
        return sent

    def _unlink(self, message_id: str, names: Iterable[str]) -> None:
        """The message concerns these no more."""
        for name in names:
            ids = self._ids_of[name]
            ids.discard(message_id)
            if not ids:
                del self._ids_of[name]

    def _drop(self, gone: list[str]) -> None:
        for message_id in gone:
            sent, pulled = self._take(message_id), self._pulled.pop(message_id, None)
            if sent is not None and sent.kind is TrainRequest and not sent.members and pulled is None:
                self.speeds.note(sent.address, message_id)
        if gone and isinstance(self._grid, Cancels):
            self._grid.cancel(gone)

    def verify(self, address: str, kind: type[Request], round: int, raw: bytes) -> ReceivedReply:
        """Verify and read what arrived at an address: now, or again when it comes from the spool."""
        size = bucket(len(raw), self._padding)
        try:
            reply = self._open(address, raw)
            return ReceivedReply(address, kind, round, reply, "", size, raw, self._open is not unsigned)
        except HeadwaterError as error:
            return ReceivedReply(address, kind, round, b"", str(error), size)

    def verify_group(self, edge: str, kind: type[Request], round: int, raw: bytes) -> list[ReceivedReply]:
        """The same for what an edge aggregator answered; one that cannot be opened has no parts."""
        opened = self.verify(edge, kind, round, raw)
        return [] if opened.error else opened_group(opened, None)

    def _opened(self, message: Message, sent: _Sent) -> list[ReceivedReply]:
        """The parts of an edge aggregator's reply: one for each client, or a sum of some."""
        return opened_group(self._incoming(message, sent), sent.members)

    def _incoming(self, message: Message, sent: _Sent) -> ReceivedReply:
        address, kind, round = sent.address, sent.kind, sent.round
        if message.has_error():
            if (end := end_of_run(message.error)) is not None:
                raise end
            return ReceivedReply(address, kind, round, b"", f"no reply: {message.error.reason}"[:2000], 0)
        try:
            (raw,) = unpack(message.content, "reply")
        except DecodeError as error:
            return ReceivedReply(address, kind, round, b"", str(error), count_bytes(message.content))
        return self.verify(address, kind, round, raw)


def opened_group(incoming: ReceivedReply, members: frozenset[str] | None) -> list[ReceivedReply]:
    """What an edge aggregator answered, as replies of the clients it speaks for, and its sum.

    Args:
        incoming: from the edge aggregator.
        members: who is waited for; whoever it speaks of if None. One that it says nothing of has failed,
            and all have where its reply cannot be used.
    """
    edge, kind, number = incoming.address, incoming.kind, incoming.round
    try:
        if incoming.error:
            raise DecodeError(f"edge aggregator {edge}", expected="a reply", got=incoming.error)
        group = decode_group_reply(incoming.data, max_bytes=len(incoming.data))
        found = _parts(incoming, group)
        asked = tuple(sorted({*found, *group.rows}))
        if (group.client, group.round) != (edge, number) or len(asked) < len(found) + len(group.rows):
            got = f"one of {group.client}, round {group.round}, or clients in two parts of it"
            raise DecodeError(f"edge aggregator {edge}", expected=f"its reply of round {number}", got=got)
        if members is not None and group.rows.keys() - members:
            other = min(group.rows.keys() - members)
            raise DecodeError(
                f"edge aggregator {edge}", expected="a sum of clients that are waited for", got=other
            )
    except HeadwaterError as error:
        why = str(error)
        return [ReceivedReply(m, kind, number, b"", why, 0) for m in sorted(members or ())]
    wanted = set(asked) if members is None else members
    replies = [reply for client, reply in sorted(found.items()) if client in wanted]
    if group.rows:
        replies.append(replace(incoming, data=group.sum, rows=group.rows, asked=asked, gap=group.gap))
    why = f"its edge aggregator {edge} says nothing of it"
    return replies + [ReceivedReply(m, kind, number, b"", why, 0) for m in sorted(wanted - set(asked))]


def _parts(incoming: ReceivedReply, group: GroupReply) -> dict[str, ReceivedReply]:
    """By client, the replies that are handed on as they are. An update is summed, and never handed on."""
    found: dict[str, ReceivedReply] = {}
    for data in group.replies:
        reply = decode_reply(data, max_bytes=0)
        if reply.client in found or (incoming.kind is TrainRequest and not isinstance(reply, ClientFailure)):
            raise DecodeError(
                f"edge aggregator {incoming.address}, client {reply.client}",
                expected="one reply, or being in the sum",
                got=type(reply).__name__,
            )
        found[reply.client] = replace(
            incoming, address=reply.client, data=data, bytes_up=len(data), raw=b"", remote=True
        )
    return found
