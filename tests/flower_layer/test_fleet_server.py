"""The server's end without sockets: Flower's own handlers over our mail."""

from __future__ import annotations

import pytest
from fastapi import HTTPException
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.flower import unpack
from headwater.flower.fleet_server import FleetServer
from headwater.flower.message_objects import CHUNK_BYTES, open_objects, wrapped
from tests.flower_layer.devices import MAX, Device, blocks, pull, send, sizes


def test_a_request_and_its_reply(link, device):
    message_id = send(link, device.node, envelope=b"e", state=b"s" * (2 * CHUNK_BYTES + 1))
    asked, objects = device.fetch()
    assert (asked.message_id, asked.message_type) == (message_id, "train")
    parts = open_objects(message_id, objects, max_bytes=10**9)
    assert parts == {"envelope": b"e", "state": b"s" * (2 * CHUNK_BYTES + 1)}
    device.confirm(asked)
    assert device.fetch() is None
    assert pull(link, message_id) == []
    device.answer(asked, b"answer")
    (reply,) = pull(link, message_id)
    assert reply.metadata.reply_to_message_id == message_id
    assert unpack(reply.content, "reply") == (b"answer",)


@settings(max_examples=30)
@given(st.binary(max_size=50), st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7]))
def test_opening_gives_what_flower_inflates(seed, length):
    link = FleetServer(max_reply_bytes=lambda name: MAX)
    device = Device(link, "a")
    data = (seed + b"x") * (length // (len(seed) + 1) + 1)
    message_id = send(link, device.node, envelope=seed, state=data[:length])
    _, objects = device.fetch()
    ours = open_objects(message_id, objects, max_bytes=10**9)
    theirs = inflate_object_from_contents(message_id, objects).content
    assert unpack(theirs, *ours) == tuple(ours.values())
    assert set(ours) == {"envelope", "state"}


def test_a_thousand_rounds_leave_nothing(link, device):
    other = Device(link, "b")

    def answered_twice(asked):
        device.answer(asked, b"good")
        device.answer(asked, b"good")
        device.announce(asked, b"another, too late")

    def broken_off(asked):
        session, missing = device.announce(asked, b"half")
        device.upload(session, *next(iter(missing.items())))

    def begun_anew(asked):
        broken_off(asked)
        device.answer(asked, b"other bytes")

    def refused(asked):
        with pytest.raises(HTTPException):
            other.announce(asked, b"not mine")

    def nothing(asked):
        pass

    ways = [answered_twice, broken_off, begun_anew, refused, nothing]

    def one_round(k):
        ids = [send(link, d.node, envelope=b"%d" % k, state=b"same") for d in (device, other)]
        asked, _ = device.fetch()
        device.confirm(asked)
        ways[k % 5](asked)
        assert len(pull(link, *ids)) == (k % 5 in (0, 2))
        link.grid.cancel(ids)
        session, missing = device.announce(asked, b"late")
        assert not missing
        assert not device.upload(session, get_object_id(b"late"), b"late")
        assert link.stored_bytes("a") == link.stored_bytes("b") == 0

    counts = []
    for k in range(1000):
        one_round(k)
        if k + 1 in (10, 1000):
            counts.append((sizes(link), sizes(link._link_state), len(link._link_state.object_store)))
    assert counts[0] == counts[1]
    assert counts[0][2] == 0


def test_a_request_comes_until_it_is_confirmed_and_again_after_a_restart(link, device):
    first, second = (send(link, device.node, envelope=b"%d" % i, state=b"s") for i in range(2))
    assert device.fetch()[0].message_id == first
    asked, _ = device.fetch()
    assert asked.message_id == first
    device.confirm(asked)
    after, _ = device.fetch()
    assert after.message_id == second
    device.answer(after, b"done")
    assert device.fetch() is None
    assert len(pull(link, second)) == 1
    link._link_state.activate_node(device.node, 30)
    asked, objects = device.fetch()
    assert asked.message_id == first
    assert open_objects(first, objects, max_bytes=100)["envelope"] == b"0"
    device.confirm(asked)
    assert device.fetch() is None


def test_an_upload_goes_on_where_it_broke_off(link, device):
    message_id = send(link, device.node, envelope=b"e", state=b"s")
    asked, _ = device.fetch()
    data = blocks(2)
    session, missing = device.announce(asked, data)
    done = list(missing)[:2]
    for object_id in done:
        device.upload(session, object_id, missing[object_id])
    again, rest = device.announce(asked, data)
    assert set(rest) == set(missing) - set(done)
    assert not device.upload(session, *next(iter(rest.items())))  # the session before
    device.upload_all(again, rest)
    (reply,) = pull(link, message_id)
    assert unpack(reply.content, "reply") == (data,)


def test_a_reply_is_whole_or_not_there(link, device):
    message_id = send(link, device.node, envelope=b"e", state=b"s")
    session, missing = device.announce(device.fetch()[0], b"answer")
    for object_id, content in missing.items():
        assert pull(link, message_id) == []
        device.upload(session, object_id, content)
    assert len(pull(link, message_id)) == 1


def test_replies_never_fill_more_than_their_bound(link, device):
    ids = [send(link, device.node, envelope=b"%d" % i, state=b"s") for i in range(3)]
    replies = []
    for i in range(3):
        asked, _ = device.fetch()
        device.confirm(asked)
        replies.append((asked, blocks(2, first=10 * i)))
    device.answer(*replies[0])
    session, missing = device.announce(*replies[1])
    with pytest.raises(HTTPException) as refused:
        device.upload_all(session, missing)
    assert refused.value.status_code == 429  # later: the first one only waits to be pulled
    assert 2 * CHUNK_BYTES < link.stored_bytes("a") <= wrapped(MAX)
    assert link.room("a") < CHUNK_BYTES * 2
    assert len(pull(link, *ids)) == 1
    assert link.room("a") == wrapped(MAX)
    device.answer(*replies[1])
    assert len(pull(link, *ids)) == 2  # the first is gone, the second is here
    device.answer(replies[2][0], b"small")
    link.grid.cancel(ids)
    assert link.stored_bytes("a") == 0


def test_a_reply_beyond_the_bound_is_refused(link, device):
    send(link, device.node, envelope=b"e", state=b"s")
    asked, _ = device.fetch()
    with pytest.raises(HTTPException, match="at most 8 objects") as refused:
        device.announce(asked, blocks(5))
    assert refused.value.status_code == 422
    # as many chunks as allowed, but one byte too long
    session, missing = device.announce(asked, blocks(3) + b"+" * (wrapped(MAX) - MAX))
    with pytest.raises(HTTPException) as refused:
        device.upload_all(session, missing)
    assert refused.value.status_code == 413
    assert link.stored_bytes("a") == 0


def test_one_chunk_named_often_is_counted_often(link, device):
    """Ten kilobytes on the wire must not unfold to gigabytes: also zeros are a reply of full length."""
    message_id = send(link, device.node, envelope=b"e", state=b"s")
    asked, _ = device.fetch()
    device.answer(asked, bytes(MAX + wrapped(MAX) - MAX + CHUNK_BYTES))  # one distinct chunk
    assert link.stored_bytes("a") < 2 * CHUNK_BYTES
    (reply,) = pull(link, message_id)
    assert reply.has_error()
    assert "at most" in reply.error.reason
