"""The exchange alone: a reply belongs to the address that was asked."""

from __future__ import annotations

import pytest
from flwr.app import Error, Message
from flwr.serverapp import Grid

from headwater.flower import assume_task_identity, pack
from headwater.protocol.messages import ProfileRequest, TrainRequest
from headwater.server.clients.exchange import Exchange


class Scripted(Grid):
    """Hands back what it is told to."""

    def __init__(self):
        self.pushed, self.replies, self.asked = [], [], []

    def get_node_ids(self):
        return [2, 3]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"id-{len(self.pushed)}"
            self.pushed.append(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids):
        ids = set(message_ids)
        self.asked.append(ids)
        found, self.replies = self.replies, []
        return found

    def answer(self, index, data=b"data"):
        self.replies.append(Message(pack(reply=data), reply_to=self.pushed[index]))

    def set_run(self, run): ...
    def create_message(self, *arguments, **options): ...
    def send_and_receive(self, messages, *, timeout=None): ...

    @property
    def run(self): ...


@pytest.fixture
def scripted():
    assume_task_identity(run_id=1, node_id=1)
    return Scripted()


def test_a_reply_belongs_to_the_address_that_was_asked(scripted):
    exchange = Exchange(scripted, {"a": 2, "b": 3})
    sizes = exchange.send([("a", ProfileRequest("r")), ("b", ProfileRequest("r"))], 4)
    assert set(sizes) == {"a", "b"}
    assert [m.metadata.dst_node_id for m in scripted.pushed] == [2, 3]
    scripted.answer(1, b"from b")
    (incoming,) = exchange.poll()
    assert (incoming.address, incoming.round, incoming.data, incoming.bytes_up) == ("b", 4, b"from b", 6)
    assert exchange.waiting(ProfileRequest, 4)
    assert not exchange.waiting(TrainRequest, 4)
    assert not exchange.waiting(ProfileRequest, 5)


def test_a_second_reply_and_a_reply_to_nothing_are_dropped(scripted):
    exchange = Exchange(scripted, {"a": 2, "b": 3})
    exchange.send([("a", ProfileRequest("r")), ("b", ProfileRequest("r"))], 1)
    scripted.answer(0)
    scripted.answer(0, b"again")
    assert [i.data for i in exchange.poll()] == [b"data"]
    scripted.answer(0, b"and again")
    assert list(exchange.poll()) == []
    other = Exchange(scripted, {"a": 2})
    other.send([("a", ProfileRequest("r"))], 1)
    scripted.answer(1, b"b's, not asked by this exchange")
    assert list(other.poll()) == []


def test_forgotten_requests_are_not_asked_for(scripted):
    exchange = Exchange(scripted, {"a": 2, "b": 3})
    exchange.send([("a", ProfileRequest("r"))], 1)
    exchange.send([("b", ProfileRequest("r"))], 2)
    exchange.forget(ProfileRequest, 1)
    assert not exchange.waiting(ProfileRequest, 1)
    list(exchange.poll())
    assert scripted.asked == [{"id-1"}]
    exchange.forget(ProfileRequest, 2)
    list(exchange.poll())
    assert scripted.asked == [{"id-1"}]  # nothing is out: the grid is not bothered


def test_flowers_reason_is_kept_short(scripted):
    exchange = Exchange(scripted, {"a": 2})
    exchange.send([("a", ProfileRequest("r"))], 1)
    scripted.replies.append(Message(Error(code=3, reason="x" * 10_000), reply_to=scripted.pushed[0]))
    (incoming,) = exchange.poll()
    assert incoming.data == b""
    assert incoming.error.startswith("no reply: xxx")
    assert len(incoming.error) == 2000


def test_who_stops_in_the_middle_loses_no_reply(scripted):
    """A buffer is full after the first of three that came together: the others are for the next version."""
    exchange = Exchange(scripted, {"a": 2, "b": 3, "c": 4})
    exchange.send([(name, ProfileRequest("r")) for name in "abc"], 1)
    for index in range(3):
        scripted.answer(index, b"%d" % index)
    for incoming in exchange.poll():
        assert incoming.data == b"0"
        break
    exchange.forget_address(ProfileRequest, "b")
    assert exchange.waiting(ProfileRequest, 1)
    assert [i.data for i in exchange.poll()] == [b"2"]
    assert not exchange.waiting(ProfileRequest, 1)
    assert not exchange._pulled


def test_who_stops_in_the_middle_hears_of_every_request_that_had_no_node(scripted):
    exchange = Exchange(scripted, {})
    exchange.send([(name, ProfileRequest("r")) for name in "abc"], 1)
    assert next(exchange.poll()).address == "a"
    assert [i.address for i in exchange.poll()] == ["b", "c"]
