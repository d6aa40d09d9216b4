"""What Headwater relies on in Flower, named: an upgrade that changes it fails here first."""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import re
import typing
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, Metadata, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import SUPERLINK_NODE_ID, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.utils import check_abort
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    HEAD_BODY_DIVIDER,
    HEAD_VALUE_DIVIDER,
)
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.routers.fleet.router import router as fleet_router

import headwater
from headwater.errors import DecodeError
from headwater.flower import RECORD, assume_task_identity, count_bytes, pack, unpack
from headwater.flower.fleet_client import sealed_reply
from headwater.flower.fleet_server import PATHS, FleetServer
from headwater.flower.grid import LinkGrid
from headwater.flower.link_state import HeadwaterLinkState
from headwater.flower.message_objects import CHUNK_BYTES, reply_objects, seal
from headwater.security.signing import Identity

ASKED = Metadata(1, "0" * 64, 1, 2, "", "", 1.8e9, 1e6, "train")


def test_pack_and_unpack():
    content = pack(envelope=b"abc", state=b"")
    assert unpack(content, "envelope", "state") == (b"abc", b"")
    assert count_bytes(content) == 3


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({RECORD: ConfigRecord({"envelope": b"abc"})}),
        RecordDict({RECORD: ArrayRecord({"other": Array("uint8", (1,), "x", b"a")})}),
    ],
)
def test_foreign_content_is_refused(content):
    with pytest.raises(DecodeError, match="Flower message"):
        unpack(content, "envelope", "state")


def test_messages_outside_a_flower_task():
    """Internal: TaskIdentity must be set, and a reply points to the message id that we set."""
    assume_task_identity(run_id=1, node_id=1)
    message = Message(pack(a=b"x"), 2, MessageType.TRAIN, group_id="1")
    message.metadata.__dict__["_message_id"] = "m0"
    reply = Message(pack(b=b"y"), reply_to=message)
    assert reply.metadata.reply_to_message_id == "m0"
    assert not reply.has_error()


MODULES = {
    "records",
    "fleet_api",
    "message_objects",
    "link_state",
    "grid",
    "fleet_server",
    "fleet_client",
    "signed_http",
}


def test_internals_are_imported_in_one_package_only():
    public = {"flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp", "flwr.simulation"}
    root = Path(headwater.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) (flwr[\w.]*)", path.read_text(), re.MULTILINE):
            if module not in public:
                found.setdefault(path.relative_to(root).as_posix(), set()).add(module)
    assert set(found) == {f"flower/{name}.py" for name in MODULES}


# --- the transport: headwater/flower: what each file relies on ---------------------------------------


def test_objects_are_named_by_their_hash_and_headed_by_kind_children_and_length():
    """Internal: what :mod:`headwater.flower.message_objects` cuts and reads."""
    chunk = ArrayChunk(memoryview(b"data"))
    assert chunk.deflate() == b"ArrayChunk  4\0data"
    assert (HEAD_VALUE_DIVIDER, HEAD_BODY_DIVIDER) == (" ", b"\0")
    assert get_object_id(chunk.deflate()) == chunk.object_id == hashlib.sha256(chunk.deflate()).hexdigest()
    array = Array("uint8", (4,), "x", b"data")
    array.__dict__["_chunks"] = [(chunk.object_id, chunk)] * 2
    head, body = array.deflate().split(b"\0")
    assert head == b"Array %s %d" % (chunk.object_id.encode(), len(body))
    assert json.loads(body)["arraychunk_ids"] == [0, 0]


def test_a_cut_array_keeps_its_chunks_and_its_hash():
    """Internal: ``Array._chunks``, the cache that stands in for Flower's process-wide chunk size."""
    sealed = seal(pack(state=bytes(CHUNK_BYTES + 1)), {})
    with no_object_id_recompute():
        sizes = [len(o.deflate()) for o in get_all_nested_objects(sealed).values() if type(o) is ArrayChunk]
        assert sorted(sizes) == [len(b"ArrayChunk  1\0") + 1, len(b"ArrayChunk  1048576\0") + CHUNK_BYTES]
        tree = get_object_tree(sealed)
    assert [t.object_id for t in iterate_object_tree(tree)][-1] == sealed.object_id


def test_the_object_store_drops_what_no_message_holds():
    """Internal: preregister, put, get_object_tree and delete of ``InMemoryObjectStore``."""
    store = InMemoryObjectStore(verify=False)
    trees = [ObjectTree(object_id=c * 64, children=[ObjectTree(object_id="c" * 64)]) for c in ("a", "b")]
    assert store.preregister(1, trees[0]) == ["c" * 64, "a" * 64]
    store.put("c" * 64, b"shared")
    assert store.preregister(1, trees[1]) == ["b" * 64]
    assert store.get_object_tree("a" * 64) == trees[0]
    store.delete("a" * 64)
    assert store.get("c" * 64) == b"shared"
    store.delete("b" * 64)
    assert len(store) == 0
    assert store.run_objects_mapping == {1: set()}


def test_the_link_state_calls_that_are_overridden():
    """Internal: Flower's handlers reach :class:`HeadwaterLinkState` by these names."""
    for name in (
        "activate_node", "acknowledge_node_heartbeat", "deactivate_node", "get_message_ins",
        "start_session", "store_message_and_object_tree", "store_object",
    ):  # fmt: skip
        ours, theirs = (inspect.signature(getattr(c, name)) for c in (HeadwaterLinkState, InMemoryLinkState))
        assert list(ours.parameters) == list(theirs.parameters), name
    for name in ("create_run", "create_node", "store_message_ins", "get_node_id_by_public_key"):
        assert hasattr(InMemoryLinkState, name)
    link_state = HeadwaterLinkState(lambda node: 0)
    assert link_state.get_run_status({link_state.run_id})[link_state.run_id].status == "running"
    assert check_abort(link_state.run_id, ["pending", "starting", "finished"], link_state) is None
    node = link_state.add_node(b"key")
    assert link_state.get_node_id_by_public_key(b"key") == node
    assert (link_state.nodes[node].status, link_state.nodes[node].online_until) == ("online", float("inf"))


def test_1_43s_names_reach_what_1_42s_do():
    """Flower 1.43's Fleet handlers call these; 1.42's never do."""
    link_state = HeadwaterLinkState(lambda node: 0)
    node = link_state.add_node(b"key")
    grid = LinkGrid(link_state, lambda: [node])
    assume_task_identity(run_id=link_state.run_id, node_id=1)
    (message_id,) = grid.push_messages([Message(pack(a=b"x"), node, "train")])
    (found,) = link_state.get_messages(dst_node_id=node, limit=1)
    assert found.metadata.message_id == message_id
    assert link_state.get_messages(dst_node_id=node + 1, limit=1) == []
    with pytest.raises(NotImplementedError, match="LinkGrid"):
        link_state.get_messages(dst_node_id=node, reply_to_message_ids=[message_id])
    link_state.cancel_messages(message_ids=[message_id])
    assert link_state.get_messages(dst_node_id=node, limit=1) == []


def test_a_run_needs_no_heartbeat(monkeypatch):
    """Internal: a task that was set running, not claimed, has no token that could expire."""
    link_state = HeadwaterLinkState(lambda node: 0)
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365)
    monkeypatch.setattr("flwr.supercore.corestate.in_memory_corestate.now", lambda: then)
    assert link_state.get_run_status({link_state.run_id})[link_state.run_id].status == "running"


def test_the_calls_that_the_link_answers():
    """Internal: Flower's handlers, the protobufs of their paths, and the errors they raise."""
    routes = {route.path: route for route in fleet_router.routes}
    calls = {call.path: call for call in FleetServer(max_reply_bytes=lambda name: 0)._api.routes}
    assert set(calls) == set(PATHS)
    for path, call in calls.items():
        hints = typing.get_type_hints(routes[path].endpoint)
        assert call.request is PROTOBUF_REQUEST_TYPES["POST", path] is hints["request"]
    assert all(error.http_status_code >= 400 and error.public_message for error in API_ERROR_MAP.values())


def test_how_a_node_signs():
    """Internal: header names, the text that is signed, and the windows of Flower's node authentication."""
    assert (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER) == (
        "flwr-public-key",
        "flwr-signature",
    )
    assert (TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE, SUPERLINK_NODE_ID) == ("flwr-timestamp", 300, 1)
    identity = Identity.create("a")
    key = bytes_to_public_key(identity.public.node_key)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    assert verify_signature(key, now.encode(), identity.sign_timestamp(now))


def test_a_reply_is_one_chain_of_objects():
    """Internal: Message > RecordDict > ArrayRecord > Array > chunks, which the server demands of a reply."""
    request, _ = sealed_reply(ASKED, bytes(CHUNK_BYTES) + b"x")
    tree = request.message_object_trees[0]
    assert len(reply_objects(tree, most=6)) == 6
    assert request.messages_list[0].metadata.message_id == tree.object_id
    again, _ = sealed_reply(ASKED, bytes(CHUNK_BYTES) + b"x")
    assert again == request
