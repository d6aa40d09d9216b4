"""How fast a reply comes, by the server's clock: no sockets, and time that a test moves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config import load_federation
from headwater.flower.fleet_server import FleetServer
from headwater.flower.link_state import CUT_S
from headwater.flower.message_objects import CHUNK_BYTES
from headwater.proto.wire import encode_reply
from headwater.protocol.messages import ClientFailure, ClientPlan, EncodedUpdate, Payload, TrainRequest
from headwater.server.clients.exchange import Exchange
from tests.flower_layer.devices import MAX, Device, blocks, pull, send
from tests.support.federation_text import vector_text

PAUSE = st.floats(0, 1e4)


class Line:
    """A server whose clock a test moves, and one device."""

    def __init__(self):
        self.now = 5.0
        self.link = FleetServer(max_reply_bytes=lambda name: MAX, clock=lambda: self.now)
        self.device = Device(self.link, "a")

    def ask(self, kind="train"):
        message_id = send(self.link, self.device.node, kind=kind, envelope=b"e", state=b"s")
        asked, _ = self.device.fetch()
        self.device.confirm(asked)
        return message_id, asked

    def speed(self, message_id):
        return self.link.grid.bytes_per_s(message_id)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2), st.lists(PAUSE, min_size=12, max_size=12), st.integers(0, 12))
def test_a_whole_reply_took_from_its_announcement_to_its_last_object(chunks, pauses, breaks):
    line = Line()
    message_id, asked = line.ask()
    line.now += 77.0  # computing is no way
    began = line.now
    session, missing = line.device.announce(asked, blocks(chunks))
    size = sum(map(len, missing.values()))
    for i, (object_id, content) in enumerate(missing.items()):
        if i == breaks:  # the line broke, and the same reply goes on
            session, _ = line.device.announce(asked, blocks(chunks))
        line.now += pauses[i]
        line.device.upload(session, object_id, content)
    took = line.now - began
    line.now += 33.0  # waiting to be pulled is none either
    assert line.speed(message_id) is None  # whole, but what it says is not known
    assert len(pull(line.link, message_id)) == 1
    speed = line.speed(message_id)
    assert 0 <= speed <= size / max(took, 1e-3) < speed + 1
    assert line.speed(message_id) is None  # said once


@settings(max_examples=40, deadline=None)
@given(st.floats(CUT_S, 1e4), st.integers(0, CHUNK_BYTES), st.integers(0, 6))
def test_of_a_reply_that_is_cut_short_the_part_that_came_counts(took, under_way, whole):
    line = Line()
    message_id, asked = line.ask()
    line.link.received("a", 10**6)  # of earlier replies
    session, missing = line.device.announce(asked, blocks(2))
    assert line.speed(message_id) is None  # nobody can say yet
    came = 0
    for object_id, content in list(missing.items())[:whole]:
        if len(missing) - 1 > list(missing).index(object_id):
            line.link.received("a", len(content))
            line.device.upload(session, object_id, content)
            came += len(content)
    line.link.received("a", under_way)
    line.now += took
    assert line.speed(message_id) == pytest.approx((came + under_way) / took, abs=1.001)
    line.link.grid.cancel([message_id])
    assert line.speed(message_id) is None


def test_another_reply_in_its_place_is_timed_anew_and_a_device_that_left_is_forgotten():
    line = Line()
    message_id, asked = line.ask()
    line.device.announce(asked, b"one" * 1000)
    line.now += 1000.0
    session, missing = line.device.announce(asked, b"two" * 1000)
    line.now += 2.0
    line.device.upload_all(session, missing)
    pull(line.link, message_id)
    assert line.speed(message_id) == sum(map(len, missing.values())) // 2
    line.link.received("a", 5)
    line.link.unregister("a")
    line.link.received("a", 5)
    line.link.received("nobody", 5)
    assert not line.link._link_state._received


def update(size):
    return encode_reply(
        EncodedUpdate("run", 1, "a", "0" * 64, "0" * 64, Payload("dense-fp32.v1", b"d" * size), {}, 1, 1, {})
    )


@pytest.fixture
def plan(tmp_path: Path):
    (tmp_path / "f.toml").write_text(vector_text("t"))
    loaded = load_federation(tmp_path / "f.toml").settings
    return ClientPlan(loaded.training, loaded.codec.up, 1.0)


def test_updates_are_timed_and_failures_are_not(plan):
    line = Line()
    exchange = Exchange(line.link.grid, {"a": line.device.node})

    def ask(number):
        request = TrainRequest("run", number, "a", "0" * 64, "0" * 64, Payload("dense-fp32.v1", b""), 0, plan)
        exchange.send([("a", request)], number)
        asked, _ = line.device.fetch()
        line.device.confirm(asked)
        return asked

    def answer(asked, reply, seconds):
        session, missing = line.device.announce(asked, reply)
        line.now += seconds
        line.device.upload_all(session, missing)
        return sum(map(len, missing.values())) // seconds

    speeds = [answer(ask(1), update(size), 4) for size in (90_000, 10)]
    assert exchange.speeds.take() == {}
    assert len(list(exchange.poll())) == 2
    assert exchange.speeds.take() == {"a": tuple(speeds)}  # however short
    answer(ask(2), encode_reply(ClientFailure("a", 2, "no", "run")), 4)
    assert len(list(exchange.poll())) == 1
    asked = ask(3)
    line.device.announce(asked, update(90_000))
    line.link.received("a", 8000)
    line.now += 4
    exchange.forget(TrainRequest, 3)  # the round has closed
    assert exchange.speeds.take() == {"a": (2000,)}
    for number in range(4, 14):
        answer(ask(number), update(100 * number), 1)
        list(exchange.poll())
    (kept,) = exchange.speeds.take().values()
    assert len(kept) == 5  # what nobody asks for does not grow
    assert sorted(kept) == list(kept)
