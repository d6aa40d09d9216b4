"""Exchange: requests out, replies in, over any Flower Grid; nothing is believed here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from headwater.errors import DecodeError
from headwater.flower import count_bytes, pack, unpack
from headwater.proto.wire import encode_request
from headwater.protocol.messages import EvaluateRequest, ProfileRequest, Request, TrainRequest

PULL_AT_ONCE = 16
"""Replies asked for in one pull: what bounds the memory of replies that wait to be folded."""

_TYPES = {
    ProfileRequest: MessageType.QUERY,
    TrainRequest: MessageType.TRAIN,
    EvaluateRequest: MessageType.EVALUATE,
}


@dataclass(frozen=True, slots=True)
class Incoming:
    """One reply: whose task it answers (not who claims to be), and its bytes or Flower's error."""

    address: str
    kind: type[Request]
    round: int
    data: bytes
    error: str
    bytes_up: int


@runtime_checkable
class Cancels(Protocol):
    """A grid that can be told that nobody waits for these messages any more."""

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop the messages, their work and their replies."""


class Exchange:
    """Outstanding messages by id.

    Args:
        grid: Flower's, or one of ours.
        nodes: Flower's node id by address (a client's name).
    """

    def __init__(self, grid: Grid, nodes: Mapping[str, int]) -> None:
        self._grid, self._nodes = grid, nodes
        self._outstanding: dict[str, tuple[str, type[Request], int]] = {}
        self._unsent: list[Incoming] = []

    def send(self, requests: Iterable[tuple[str, Request]], round: int) -> dict[str, int]:
        """Push requests; return the bytes that went to each address."""
        rows = list(requests)
        messages, sizes = [], {}
        for address, request in rows:
            envelope, state = encode_request(request)
            content = pack(envelope=envelope, state=state)
            sizes[address] = count_bytes(content)
            messages.append(
                Message(content, self._nodes[address], _TYPES[type(request)], group_id=str(round))
            )
        # Flower gives None for a message that it could not push, and no ids where all were too large
        ids: list[str | None] = list(self._grid.push_messages(messages))
        ids += [None] * (len(rows) - len(ids))
        for message_id, (address, request) in zip(ids, rows, strict=True):
            if message_id is None:
                reason = "Flower could not push the message"
                self._unsent.append(Incoming(address, type(request), round, b"", reason, 0))
            else:
                self._outstanding[message_id] = (address, type(request), round)
        return sizes

    def waiting(self, kind: type[Request], round: int) -> bool:
        """Whether a reply to such a request is still out."""
        return any(k is kind and r == round for _, k, r in self._outstanding.values()) or any(
            i.kind is kind and i.round == round for i in self._unsent
        )

    def poll(self) -> Iterator[Incoming]:
        """Every reply that is there now, a few at a time, late ones of earlier rounds too."""
        while self._unsent:
            yield self._unsent.pop()
        ids = list(self._outstanding)
        for start in range(0, len(ids), PULL_AT_ONCE):
            while group := [i for i in ids[start : start + PULL_AT_ONCE] if i in self._outstanding]:
                messages = list(self._grid.pull_messages(group))
                for message in messages:
                    sent = self._outstanding.pop(message.metadata.reply_to_message_id, None)
                    if sent is not None:
                        yield _incoming(message, *sent)
                if not messages:
                    break

    def forget(self, kind: type[Request], round: int) -> None:
        """Stop waiting for replies of this kind and round."""
        gone = [i for i, (_, k, r) in self._outstanding.items() if k is kind and r == round]
        for message_id in gone:
            del self._outstanding[message_id]
        if gone and isinstance(self._grid, Cancels):
            self._grid.cancel(gone)


def _incoming(message: Message, address: str, kind: type[Request], round: int) -> Incoming:
    if message.has_error():
        return Incoming(address, kind, round, b"", f"Flower: {message.error.reason}"[:2000], 0)
    try:
        (data,) = unpack(message.content, "reply")
    except DecodeError as error:
        return Incoming(address, kind, round, b"", str(error), count_bytes(message.content))
    return Incoming(address, kind, round, data, "", len(data))
