"""Exchange: requests out, replies in, over any Flower Grid; nothing is believed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.app import Array, Message, MessageType
from flwr.serverapp import Grid

from headwater.errors import DecodeError, HeadwaterError
from headwater.flower import as_array, count_bytes, pack, unpack
from headwater.flower.faults import end_of_run
from headwater.proto.wire import encode_request
from headwater.protocol.messages import EvaluateRequest, ProfileRequest, Request, TrainRequest
from headwater.server.events import ClientAsked, Observer

PULL_AT_ONCE = 16
"""Replies asked for in one pull: what bounds the memory of replies that wait to be folded."""

_TYPES = {
    ProfileRequest: MessageType.QUERY,
    TrainRequest: MessageType.TRAIN,
    EvaluateRequest: MessageType.EVALUATE,
}


_KINDS = {ProfileRequest: "profile", TrainRequest: "train", EvaluateRequest: "evaluate"}


@dataclass(frozen=True, slots=True)
class ReceivedReply:
    """One reply: whose task it answers (not who claims to be), and its bytes or what is wrong with it.

    ``data`` is the reply; ``raw`` is what arrived, for who wants to open it again. ``remote``: it came over a
    network, so that of a failure only the code is believed, and no text.
    """

    address: str
    kind: type[Request]
    round: int
    data: bytes
    error: str
    bytes_up: int
    raw: bytes = b""
    remote: bool = False


@runtime_checkable
class Cancels(Protocol):
    """A grid that can be told that nobody waits for these messages any more."""

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop the messages, their work and their replies."""


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
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        open_reply: Callable[[str, bytes], bytes] = unsigned,
        tell: Observer = lambda event: None,
    ) -> None:
        self._grid, self._nodes, self._open, self._tell = grid, nodes, open_reply, tell
        self._outstanding: dict[str, tuple[str, type[Request], int]] = {}
        self._unsent: list[ReceivedReply] = []
        self._pulled: dict[str, Message] = {}  # taken from the grid, not handed on yet

    def send(self, requests: Iterable[tuple[str, Request]], round: int) -> dict[str, int]:
        """Push requests; return the bytes that went to each address."""
        rows, messages, sizes = [], [], {}
        states: dict[bytes, Array] = {}  # mostly one for all
        for address, request in requests:
            envelope, state = encode_request(request)
            if state not in states:
                states[state] = as_array(state)
            content = pack(envelope=envelope, state=states[state])
            sizes[address] = count_bytes(content)
            kind = _TYPES[type(request)]
            node = self._nodes.get(address)
            if node is None:
                self._unsent.append(ReceivedReply(address, type(request), round, b"", "it has no node", 0))
                continue
            rows.append((address, request))
            messages.append(Message(content, node, kind, group_id=str(round)))
            self._tell(ClientAsked(round, address, _KINDS[type(request)], sizes[address]))
        # Flower gives None for a message that it could not push, and no ids where all were too large
        ids: list[str | None] = list(self._grid.push_messages(messages))
        ids += [None] * (len(rows) - len(ids))
        for message_id, (address, request) in zip(ids, rows, strict=True):
            if message_id is None:
                reason = "Flower could not push the message"
                self._unsent.append(ReceivedReply(address, type(request), round, b"", reason, 0))
            else:
                self._outstanding[message_id] = (address, type(request), round)
        return sizes

    def waiting(self, kind: type[Request], round: int) -> bool:
        """Whether a reply to such a request is still out."""
        return any(k is kind and r == round for _, k, r in self._outstanding.values()) or any(
            i.kind is kind and i.round == round for i in self._unsent
        )

    def poll(self, *kinds: type[Request]) -> Iterator[ReceivedReply]:
        """Every reply to requests of these kinds that is there now, a few at a time, late ones too.

        Replies of other kinds stay where they are; without kinds, all are taken. Whoever stops in the
        middle, because a buffer is full, finds the others at the next call.
        """
        for incoming in [i for i in self._unsent if not kinds or i.kind in kinds]:
            if incoming in self._unsent:
                self._unsent.remove(incoming)
                yield incoming
        ids = [i for i, (_, kind, _) in self._outstanding.items() if not kinds or kind in kinds]
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
                    sent = self._outstanding.pop(message_id, None)  # None: forgotten meanwhile
                    if sent is not None:
                        yield self._incoming(self._pulled.pop(message_id), *sent)

    def forget(self, kind: type[Request], round: int) -> None:
        """Stop waiting for replies of this kind and round."""
        self._drop([i for i, (_, k, r) in self._outstanding.items() if k is kind and r == round])

    def forget_address(self, kind: type[Request], address: str) -> None:
        """Stop waiting for replies of this kind from this address, of any round."""
        self._drop([i for i, (a, k, _) in self._outstanding.items() if k is kind and a == address])

    def forget_all(self) -> None:
        """Stop waiting for anything."""
        self._drop(list(self._outstanding))
        self._unsent.clear()

    def _drop(self, gone: list[str]) -> None:
        for message_id in gone:
            del self._outstanding[message_id]
            self._pulled.pop(message_id, None)
        if gone and isinstance(self._grid, Cancels):
            self._grid.cancel(gone)

    def verify(self, address: str, kind: type[Request], round: int, raw: bytes) -> ReceivedReply:
        """Verify and read what arrived at an address: now, or again when it comes from the spool."""
        try:
            reply = self._open(address, raw)
            return ReceivedReply(address, kind, round, reply, "", len(raw), raw, self._open is not unsigned)
        except HeadwaterError as error:
            return ReceivedReply(address, kind, round, b"", str(error), len(raw))

    def _incoming(self, message: Message, address: str, kind: type[Request], round: int) -> ReceivedReply:
        if message.has_error():
            if (end := end_of_run(message.error)) is not None:
                raise end
            return ReceivedReply(address, kind, round, b"", f"no reply: {message.error.reason}"[:2000], 0)
        try:
            (raw,) = unpack(message.content, "reply")
        except DecodeError as error:
            return ReceivedReply(address, kind, round, b"", str(error), count_bytes(message.content))
        return self.verify(address, kind, round, raw)
