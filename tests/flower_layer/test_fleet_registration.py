"""Who is known and online at the server's end, and what leaves with a client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from flwr.app import Message

from headwater.flower import fleet_server as link_module
from headwater.flower import pack, unpack
from headwater.flower.fleet_server import FleetServer
from headwater.security.signing import Identity
from tests.flower_layer.devices import MAX, Device, pull, send, sizes


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
