"""The server's end without sockets: Flower's own handlers over our mail."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from fastapi import HTTPException
from flwr.app import Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_id, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.servicer.fleet import fleet_handlers
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import DecodeError
from headwater.flower import fleet_server as link_module
from headwater.flower import pack, unpack
from headwater.flower.fleet_client import sealed_reply
from headwater.flower.fleet_server import FleetServer
from headwater.flower.message_objects import CHUNK_BYTES, most_objects, open_objects, wrapped
from headwater.security.signing import Identity

MAX = 3 * CHUNK_BYTES


def blocks(chunks, first=0):
    """Data of so many different chunks."""
    return b"".join(bytes([first + i]) * CHUNK_BYTES for i in range(chunks))


class Device:
    """Speaks Flower's protobufs with the handlers behind the link's routes, checks included."""

    def __init__(self, link, name):
        self.link, self.link_state = link, link._link_state
        self.node = link.register(name, Identity.create(name).public.node_key)

    def _checked(self, handler, request, **more):
        link_module._check(self.link_state, request)
        return handler(request=request, state=self.link_state, **more)

    def fetch(self):
        """The next request as (metadata, its objects), not confirmed."""
        answer = self._checked(
            fleet_handlers.pull_messages,
            PullMessagesRequest(node=Node(node_id=self.node)),
            store=self.link_state.object_store,
        )
        if not answer.messages_list:
            return None
        objects = {
            node.object_id: self.pull(node.object_id)
            for node in iterate_object_tree(answer.message_object_trees[0])
        }
        return message_from_proto(answer.messages_list[0]).metadata, objects

    def pull(self, object_id):
        request = PullObjectRequest(
            node=Node(node_id=self.node), run_id=self.link_state.run_id, object_id=object_id
        )
        return self._checked(fleet_handlers.pull_object, request).object_content

    def confirm(self, metadata):
        request = ConfirmMessageReceivedRequest(
            node=Node(node_id=self.node), run_id=metadata.run_id, message_object_id=metadata.message_id
        )
        link_module._check(self.link_state, request)
        self.link_state.confirm(metadata.message_id)

    def announce(self, asked, data, change=lambda request: None):
        request, objects = sealed_reply(asked, data)
        request.node.node_id = self.node
        change(request)
        answer = self._checked(fleet_handlers.push_messages, request)
        return answer.session_id, {i: objects[i].deflate() for i in answer.objects_to_push if i in objects}

    def upload(self, session, object_id, content):
        request = PushObjectRequest(
            node=Node(node_id=self.node),
            run_id=self.link_state.run_id,
            object_id=object_id,
            object_content=content,
            session_id=session,
        )
        return self._checked(fleet_handlers.push_object, request).stored

    def upload_all(self, session, objects):
        for object_id, content in objects.items():
            assert self.upload(session, object_id, content)

    def answer(self, asked, data):
        self.upload_all(*self.announce(asked, data))


@pytest.fixture
def link():
    return FleetServer(max_reply_bytes=lambda name: MAX)


@pytest.fixture
def device(link):
    return Device(link, "a")


def send(link, node, kind="train", **parts):
    (message_id,) = link.grid.push_messages([Message(pack(**parts), node, kind)])
    return message_id


def pull(link, *ids):
    return list(link.grid.pull_messages(list(ids)))


def sizes(thing, seen=None):
    """How many things are held by ``thing``, through containers and our and Flower's objects."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, dict):
        return len(thing) + sum(sizes(v, seen) for v in thing.values())
    if isinstance(thing, list | set | tuple | frozenset):
        return len(thing) + sum(sizes(v, seen) for v in thing)
    if type(thing).__module__.startswith(("headwater", "flwr")) and hasattr(thing, "__dict__"):
        return sum(sizes(v, seen) for v in vars(thing).values())
    return 0


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


def test_messages_outlive_any_jump_of_the_clock(link, device, monkeypatch):
    message_id = send(link, device.node, envelope=b"e", state=b"s")
    for days in (-400, 20 * 365):
        then = datetime.now(UTC) + timedelta(days=days)
        for module in ("server.superlink.linkstate.in_memory_linkstate", "server.utils.validator"):
            monkeypatch.setattr(f"flwr.{module}.now", lambda then=then: then)
        monkeypatch.setattr("time.time", then.timestamp)
        asked, _ = device.fetch()
        assert asked.message_id == message_id
        assert pull(link, message_id) == []
    device.answer(asked, b"answer")
    (reply,) = pull(link, message_id)
    assert unpack(reply.content, "reply") == (b"answer",)


def test_a_client_that_is_gone_leaves_nothing_and_its_messages_fail(link, device):
    before = sizes(link._link_state)
    other = Device(link, "b")
    ids = [send(link, other.node, envelope=b"%d" % i, state=b"s") for i in range(2)]
    asked, _ = other.fetch()
    session, missing = other.announce(asked, b"half")
    other.upload(session, *next(iter(missing.items())))
    link.unregister("b")
    assert link.node_of("b") is None
    assert sizes(link._link_state) <= before + 1  # Flower keeps an empty set of an owner's nodes
    replies = pull(link, *ids)
    assert {r.metadata.reply_to_message_id for r in replies} == set(ids)
    assert all(r.has_error() for r in replies)
    assert list(link.grid.push_messages([Message(pack(a=b""), other.node, "train")])) == [None]
    with pytest.raises(KeyError):
        link.name_of(other.node)
    link.unregister("b")


def test_a_name_has_one_node_until_its_key_changes(link):
    keys = [Identity.create("a").public.node_key for _ in range(2)]
    node = link.register("a", keys[0])
    assert link.register("a", keys[0]) == node
    assert (link.name_of(node), link.node_of("a")) == ("a", node)
    other = link.register("a", keys[1])
    assert other != node
    link.unregister("a")
    assert link.register("a", keys[0]) not in (node, other)


def test_a_device_enrolled_anew_has_a_session_of_its_own(link):
    """Else a run that greeted the device before it would never greet this one."""
    link.register("a", Identity.create("a").public.node_key)
    seen = []
    for _ in range(2):
        link.before("a", link_module.ACTIVATE)
        link.after("a", link_module.ACTIVATE, 200)
        seen.append(link.sessions()["a"])
        link.unregister("a")
        assert link.sessions() == {}
        link.register("a", Identity.create("a").public.node_key)
    assert seen[0] != seen[1]


def test_who_is_online():
    now = [100.0]
    link = FleetServer(max_reply_bytes=lambda name: MAX, online_s=90, clock=lambda: now[0])
    nodes = {name: link.register(name, Identity.create(name).public.node_key) for name in "ab"}
    assert link.online() == frozenset()
    assert link.seen("a") is None
    for name in "ab":
        link.before(name, link_module.ACTIVATE)
    link.after("a", link_module.ACTIVATE, 200)
    link.after("b", link_module.ACTIVATE, 400)
    assert link.online() == {"a"}
    assert list(link.grid.get_node_ids()) == [nodes["a"]]
    now[0] += 80
    link.before("a", "/v1/fleet/pull-messages")
    now[0] += 80
    assert link.online() == {"a"}
    assert link.seen("a") == 180.0
    now[0] += 11
    assert link.online() == frozenset()
    link.before("a", link_module.DEACTIVATE)
    assert link.online() == {"a"}
    link.after("a", link_module.DEACTIVATE, 200)
    assert link.online() == frozenset()


def test_the_state_of_a_round_is_stored_and_hashed_once(link):
    devices = [Device(link, name) for name in "abc"]
    state = blocks(3)
    messages = [Message(pack(envelope=b"%d" % d.node, state=state), d.node, "train") for d in devices]
    ids = list(link.grid.push_messages(messages))
    held = sum(len(entry.content) for entry in link._link_state.object_store.store.values())
    assert held < 3.02 * CHUNK_BYTES
    link.grid.cancel(ids[:1])
    _, objects = devices[1].fetch()
    assert open_objects(ids[1], objects, max_bytes=10**8)["state"] == state
    link.grid.cancel(ids)
    assert len(link._link_state.object_store) == 0


def test_the_lock_is_free_while_a_state_is_copied(link, device, monkeypatch):
    """Every request of every client needs it, heartbeats too; 300 MB took seconds."""
    free, deflate = [], ArrayChunk.deflate

    def watched(chunk):
        def look():
            if link._link_state.lock.acquire(blocking=False):
                link._link_state.lock.release()
                free.append(True)
            else:
                free.append(False)

        thread = threading.Thread(target=look)  # the lock is reentrant: another one must ask
        thread.start()
        thread.join()
        return deflate(chunk)

    monkeypatch.setattr(ArrayChunk, "deflate", watched)
    send(link, device.node, envelope=b"e", state=blocks(3))
    assert len(free) >= 4
    assert all(free)


def test_a_state_that_leaves_while_another_message_with_it_is_sealed(link, device, monkeypatch):
    other, state, deflate = Device(link, "b"), blocks(3), ArrayChunk.deflate
    first = send(link, other.node, envelope=b"first", state=state)

    def meanwhile(chunk):
        link.grid.cancel([first])
        return deflate(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayChunk, "deflate", meanwhile)
        second = send(link, device.node, envelope=b"second", state=state)
    _, objects = device.fetch()
    assert open_objects(second, objects, max_bytes=10**8) == {"envelope": b"second", "state": state}


def test_a_client_that_leaves_while_its_message_is_sealed(link, device, monkeypatch):
    deflate = ArrayChunk.deflate

    def meanwhile(chunk):
        link.unregister("a")
        return deflate(chunk)

    monkeypatch.setattr(ArrayChunk, "deflate", meanwhile)
    assert send(link, device.node, envelope=b"e", state=blocks(1)) is None
    assert len(link._link_state.object_store) == 0


def test_equal_messages_are_two(link, device):
    ids = [send(link, device.node, envelope=b"e", state=b"s") for _ in range(20)]
    assert len(set(ids)) == 20


def test_send_and_receive(link, device):
    def answer():
        while (found := device.fetch()) is None:
            time.sleep(0.01)
        device.answer(found[0], b"answer")

    thread = threading.Thread(target=answer)
    thread.start()
    message = Message(pack(envelope=b"e", state=b""), device.node, "train")
    (reply,) = link.grid.send_and_receive([message], timeout=60)
    thread.join()
    assert unpack(reply.content, "reply") == (b"answer",)
    assert list(link.grid.send_and_receive([message], timeout=0.1)) == []
