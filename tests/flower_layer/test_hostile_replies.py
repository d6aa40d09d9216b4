"""Replies of another shape, in another's name or with false contents are refused, and not kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from fastapi import HTTPException
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.superlink.servicer.fleet import fleet_handlers
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import DecodeError
from headwater.flower import fleet_server as link_module
from headwater.flower import unpack
from headwater.flower.fleet_client import sealed_reply
from headwater.flower.message_objects import most_objects, open_objects
from tests.flower_layer.devices import MAX, Device, pull, send, sizes


def tree(*levels, chunks=1):
    node = ObjectTree(
        object_id=get_object_id(b"array"),
        children=[ObjectTree(object_id=get_object_id(b"%d" % i)) for i in range(chunks)],
    )
    for level in levels:
        node = ObjectTree(object_id=get_object_id(level), children=[node])
    return node


def deeper(request):
    t = tree(b"record", b"content", b"message", b"more")
    request.message_object_trees[0].CopyFrom(t)
    request.messages_list[0].metadata.message_id = t.object_id


def wider(request):
    t = tree(b"record", b"content", b"message", chunks=most_objects(MAX))
    request.message_object_trees[0].CopyFrom(t)
    request.messages_list[0].metadata.message_id = t.object_id


def two_arrays(request):
    t = tree(b"record", b"content", b"message")
    t.children[0].children[0].children.append(ObjectTree(object_id=get_object_id(b"second")))
    request.message_object_trees[0].CopyFrom(t)
    request.messages_list[0].metadata.message_id = t.object_id


def no_hash(request):
    request.message_object_trees[0].children[0].object_id = "0x" + "1" * 62


def a_cycle(request):
    request.message_object_trees[0].children[0].object_id = request.message_object_trees[0].object_id


def other_id(request):
    request.messages_list[0].metadata.message_id = "0" * 64


def other_kind(request):
    request.messages_list[0].metadata.message_type = "query"


def two_messages(request):
    request.messages_list.append(request.messages_list[0])


def no_message(request):
    del request.messages_list[:]


@pytest.mark.parametrize(
    "change",
    [deeper, wider, two_arrays, no_hash, a_cycle, other_id, other_kind, two_messages, no_message],
)
def test_a_reply_of_another_shape_is_refused_and_not_kept(link, device, change):
    send(link, device.node, envelope=b"e", state=b"s")
    asked, _ = device.fetch()
    before = sizes(link._link_state)
    with pytest.raises(HTTPException) as refused:
        device.announce(asked, b"answer", change)
    assert refused.value.status_code == 422
    assert sizes(link._link_state) == before


def other_run(request):
    request.messages_list[0].metadata.run_id += 1


def as_another(request):
    request.messages_list[0].metadata.src_node_id += 1


@pytest.mark.parametrize(("change", "status"), [(other_run, 410), (as_another, 403)])
def test_a_reply_in_anothers_name_is_refused(link, device, change, status):
    send(link, device.node, envelope=b"e", state=b"s")
    asked, _ = device.fetch()
    with pytest.raises(HTTPException) as refused:
        device.announce(asked, b"answer", change)
    assert refused.value.status_code == status


def test_nobody_answers_confirms_or_fills_for_another(link, device):
    message_id = send(link, device.node, envelope=b"e", state=b"s")
    asked, _ = device.fetch()
    thief = Device(link, "thief")

    def as_thief(request):
        request.messages_list[0].metadata.src_node_id = thief.node

    for change in (as_thief, lambda request: None):
        with pytest.raises(HTTPException, match="another node"):
            thief.announce(asked, b"mine", change)
    with pytest.raises(HTTPException, match="another node"):
        thief.confirm(asked)
    session, missing = device.announce(asked, b"answer")
    with pytest.raises(HTTPException, match="another node"):
        thief.upload(session, *next(iter(missing.items())))
    assert not thief.upload("", *next(iter(missing.items())))
    device.answer(asked, b"answer")
    (reply,) = pull(link, message_id)
    assert unpack(reply.content, "reply") == (b"answer",)


def test_a_message_of_an_earlier_start_is_gone(link, device):
    send(link, device.node, envelope=b"e", state=b"s")
    asked, objects = device.fetch()
    node = Node(node_id=device.node)
    for request in (
        PullObjectRequest(node=node, run_id=asked.run_id + 1, object_id=next(iter(objects))),
        PushObjectRequest(node=node, run_id=asked.run_id + 1),
        ConfirmMessageReceivedRequest(node=node, run_id=asked.run_id + 1),
    ):
        with pytest.raises(HTTPException) as refused:
            link_module._check(device.link_state, request)
        assert refused.value.status_code == 410


def test_an_object_is_what_its_hash_says(link, device):
    send(link, device.node, envelope=b"e", state=b"s")
    session, missing = device.announce(device.fetch()[0], b"answer")
    object_id, content = next(iter(missing.items()))
    with pytest.raises(HTTPException, match="hash"):
        device.upload(session, object_id, content + b"x")
    assert not device.upload(session, get_object_id(b"stranger"), b"stranger")
    assert link.stored_bytes("a") == 0


def test_whom_a_reply_answers_is_not_what_it_says(link, device):
    """Flower's metadata inside the reply's own object is the sender's word."""
    mine, other = (send(link, device.node, envelope=b"%d" % i, state=b"s") for i in range(2))
    asked, _ = device.fetch()
    claimed = SimpleNamespace(
        **{k.lstrip("_"): v for k, v in vars(asked).items()} | {"message_id": other, "group_id": "99"}
    )
    lie, objects = sealed_reply(claimed, b"answer")
    lie.node.node_id = device.node
    lie.messages_list[0].metadata.reply_to_message_id = mine
    answer = fleet_handlers.push_messages(request=lie, state=device.link_state)
    for object_id in answer.objects_to_push:
        assert device.upload(answer.session_id, object_id, objects[object_id].deflate())
    (reply,) = pull(link, mine, other)
    assert reply.metadata.reply_to_message_id == mine
    assert reply.metadata.group_id == ""


@settings(max_examples=200)
@given(data=st.data())
def test_any_objects_open_or_are_refused(data):
    request, objects = sealed_reply(ASKED, b"a" * 100)
    contents = {i: o.deflate() for i, o in objects.items()}
    root = request.message_object_trees[0].object_id
    target = data.draw(st.sampled_from(sorted(contents)))
    content = contents[target]
    at = data.draw(st.integers(0, len(content)))
    patch = data.draw(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from([b"null", b"[[[", b"-1", b"[0,0,0,0,0,0]", b'{"a":1}', b"\0", b" ", b"99999999"]),
        )
    )
    contents[target] = content[:at] + patch + content[at + data.draw(st.integers(0, 40)) :]
    try:
        parts = open_objects(root, contents, max_bytes=500)
    except DecodeError:
        return
    assert sum(map(len, parts.values())) <= 500


ASKED = SimpleNamespace(
    run_id=1,
    message_id="0" * 64,
    src_node_id=1,
    dst_node_id=2,
    group_id="",
    created_at=1.8e9,
    ttl=1e6,
    message_type="train",
)


@pytest.mark.parametrize("order", ["[0] * 10**9", "[[0]]", '["0"]', "[1]", "null", "1"])
def test_a_false_index_is_a_decode_error(order):
    request, objects = sealed_reply(ASKED, b"a" * 100)
    contents = {i: o.deflate() for i, o in objects.items()}
    (array,) = (i for i, c in contents.items() if c.startswith(b"Array "))
    head, _, body = contents[array].partition(b"\0")
    index = "[" + ",".join(["0"] * 10_000) + "]" if "*" in order else order
    new = json.dumps(json.loads(body) | {"arraychunk_ids": json.loads(index)}).encode()
    contents[array] = b" ".join([*head.split(b" ")[:2], b"%d" % len(new)]) + b"\0" + new
    with pytest.raises(DecodeError):
        open_objects(request.message_object_trees[0].object_id, contents, max_bytes=10_000)
