"""Both ends over a real port: what breaks off goes on, and nothing comes twice."""

from __future__ import annotations

import os

import pytest

from headwater.errors import ConnectionLost, DecodeError, Refused
from headwater.flower import unpack
from headwater.flower.fleet_client import Delivery
from headwater.flower.message_objects import CHUNK_BYTES
from headwater.security.signing import Identity
from tests.flower_layer.lines import PATHS, Line


def test_some_megabytes_each_way(server, agent):
    state, update = os.urandom(5 * 2**20 + 3), os.urandom(4 * 2**20 + 1)
    message_id = server.send(agent.name, envelope=b"envelope", state=state)
    delivery = agent.receive()
    assert delivery == Delivery(message_id, "train", {"envelope": b"envelope", "state": state})
    assert agent.receive() is None
    agent.reply(delivery, update)
    (reply,) = server.pull(message_id)
    assert unpack(reply.content, "reply") == (update,)
    assert server.link.stored_bytes(agent.name) == 0


@pytest.mark.parametrize("data", [b"", b"x", bytes(3 * CHUNK_BYTES)])
def test_odd_replies(server, agent, data):
    message_id = server.send(agent.name, kind="query", envelope=b"", state=b"")
    delivery = agent.receive()
    assert (delivery.kind, delivery.parts) == ("query", {"envelope": b"", "state": b""})
    agent.reply(delivery, data)
    (reply,) = server.pull(message_id)
    assert unpack(reply.content, "reply") == (data,)


def test_a_broken_upload_goes_on(server, agent):
    message_id = server.send(agent.name, envelope=b"e", state=b"s")
    delivery, data = agent.receive(), os.urandom(6 * CHUNK_BYTES)
    line = Line(agent, PATHS["push"], whole=5)
    with pytest.raises(ConnectionLost):
        agent.reply(delivery, data)
    assert server.pull(message_id) == []
    assert server.link.stored_bytes(agent.name) > 0
    line.mend()
    agent.reply(delivery, data)
    assert line.calls.count(PATHS["push"]) == 10 - 5
    agent.reply(delivery, data)
    assert line.calls.count(PATHS["push"]) == 10 - 5
    (reply,) = server.pull(message_id)
    assert unpack(reply.content, "reply") == (data,)
    agent.reply(delivery, data)  # nobody waits any more
    assert server.link.stored_bytes(agent.name) == 0


def test_an_object_whose_receipt_was_lost_is_not_stored_twice(server, agent):
    message_id = server.send(agent.name, envelope=b"e", state=b"s")
    delivery, data = agent.receive(), os.urandom(2 * CHUNK_BYTES)
    line = Line(agent, PATHS["push"], whole=0, answered=True)
    with pytest.raises(ConnectionLost):
        agent.reply(delivery, data)
    line.mend()
    agent.reply(delivery, data)
    (reply,) = server.pull(message_id)
    assert unpack(reply.content, "reply") == (data,)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("where", ["fetch", "pull", "confirm"])
def test_a_broken_download_goes_on(server, agent, where, answered):
    state = os.urandom(6 * CHUNK_BYTES)
    message_id = server.send(agent.name, envelope=b"e", state=state)
    line = Line(agent, PATHS[where], whole=6 if where == "pull" else 0, answered=answered)
    with pytest.raises(ConnectionLost):
        agent.receive()
    line.mend()
    delivery = agent.receive()
    assert (delivery.message_id, delivery.parts["state"]) == (message_id, state)
    fetched = line.calls.count(PATHS["pull"])
    assert fetched == {"fetch": 12, "confirm": 0}.get(where, fetched)
    assert fetched <= (6 if where == "pull" else 12)
    assert agent.receive() is None


def test_an_object_that_is_not_its_hash(server, agent):
    message_id = server.send(agent.name, envelope=b"e", state=b"right")
    entry = next(
        e for e in server.link._link_state.object_store.store.values() if e.content.endswith(b"\0right")
    )
    right, entry.content = entry.content, entry.content.replace(b"right", b"wrong")
    with pytest.raises(ConnectionLost, match="other bytes"):
        agent.receive()
    entry.content = right
    assert agent.receive().parts["state"] == b"right"
    server.link.grid.cancel([message_id])


def test_a_request_that_is_cancelled_while_it_is_fetched(server, agent):
    first = server.send(agent.name, envelope=b"e", state=os.urandom(4 * CHUNK_BYTES))
    line = Line(agent, PATHS["pull"], whole=2)
    with pytest.raises(ConnectionLost):
        agent.receive()
    server.link.grid.cancel([first])
    line.mend()
    assert agent.receive() is None
    second = server.send(agent.name, envelope=b"e", state=b"s")
    assert agent.receive().message_id == second


def test_a_reply_to_a_cancelled_request_leaves_nothing(server, agent):
    message_id = server.send(agent.name, envelope=b"e", state=b"s")
    delivery = agent.receive()
    line = Line(agent, PATHS["push"], whole=3)
    with pytest.raises(ConnectionLost):
        agent.reply(delivery, os.urandom(3 * CHUNK_BYTES))
    server.link.grid.cancel([message_id])
    assert server.link.stored_bytes(agent.name) == 0
    line.mend()
    agent.reply(delivery, b"late")
    assert server.link.stored_bytes(agent.name) == 0
    (gone,) = server.pull(message_id)
    assert gone.has_error()


def test_too_large_a_reply_is_refused_for_good(server, agent):
    server.send(agent.name, envelope=b"e", state=b"s")
    delivery = agent.receive()
    with pytest.raises(Refused):
        agent.reply(delivery, os.urandom(server.max_reply + 2 * CHUNK_BYTES))
    with pytest.raises(Refused, match="413"):
        agent.reply(delivery, os.urandom(server.max_reply + CHUNK_BYTES // 2))
    assert server.link.stored_bytes(agent.name) == 0
    agent.reply(delivery, b"small")


def test_replies_that_wait_make_the_next_one_wait(server, agent):
    ids = [server.send(agent.name, envelope=b"%d" % i, state=b"s") for i in range(2)]
    first, second = agent.receive(), agent.receive()
    data = os.urandom(server.max_reply)
    agent.reply(first, data)
    with pytest.raises(ConnectionLost, match="429"):
        agent.reply(second, data[::-1])
    assert len(server.pull(*ids)) == 1
    agent.reply(second, data[::-1])
    assert len(server.pull(*ids)) == 2


def test_too_large_a_request_is_refused_and_does_not_come_again(server, agent):
    small = server.connect(Identity.create("unused"), max_request_bytes=CHUNK_BYTES)
    small._http._identity, small._http._node_key = agent._http._identity, agent._http._node_key
    small._node_key = agent._node_key
    small.activate()
    chunks = 64
    server.send(agent.name, envelope=b"e", state=os.urandom(chunks * CHUNK_BYTES))
    server.send(agent.name, envelope=b"e", state=b"s")
    line = Line(small, "", whole=0)
    with pytest.raises(DecodeError, match="expected at most"):
        small.receive()
    # several are on their way at once, more of them where this thread waits for a core; never all
    assert line.calls.count(PATHS["pull"]) < chunks // 2
    assert small.receive().parts["state"] == b"s"
    small.close()


def test_a_crashed_agent_gets_its_request_again(server, agent):
    message_id = server.send(agent.name, envelope=b"e", state=b"s")
    agent.receive()
    assert agent.receive() is None
    again = server.connect(agent._http._identity)
    again.activate()
    assert again.receive().message_id == message_id
    again.close()


def test_a_second_instance_takes_over_at_once_and_the_first_is_refused(server, agent):
    second = server.connect(agent._http._identity)
    second.activate()
    for call in (agent.heartbeat, agent.receive, agent.activate, agent.deactivate):
        with pytest.raises(Refused, match="409 another agent with your keys has taken over"):
            call()
    second.heartbeat()
    assert agent.name in server.link.online()
    second.deactivate()
    assert agent.name not in server.link.online()
    second.close()


def test_a_restarted_server(own_server):
    identity = own_server.enrol("a")
    agent = own_server.connect(identity)
    agent.activate()
    own_server.send("a", envelope=b"e", state=b"s")
    delivery = agent.receive()
    own_server.send("a", envelope=b"e", state=os.urandom(3 * CHUNK_BYTES))
    line = Line(agent, PATHS["pull"], whole=2)
    with pytest.raises(ConnectionLost):
        agent.receive()
    line.mend()
    own_server.stop()
    with pytest.raises(ConnectionLost, match="expected an answer"):
        agent.heartbeat()
    own_server.start()
    for call in (agent.heartbeat, agent.receive, lambda: agent.reply(delivery, b"x")):
        with pytest.raises(ConnectionLost, match="428 the server does not know this session: activate"):
            call()
    agent.activate()
    agent.heartbeat()
    assert agent.receive() is None
    agent.reply(delivery, b"to the server before")  # of that, nobody knows
    assert own_server.link.stored_bytes("a") == 0
    message_id = own_server.send("a", envelope=b"e", state=b"t")
    agent.reply(agent.receive(), b"answer")
    (reply,) = own_server.pull(message_id)
    assert unpack(reply.content, "reply") == (b"answer",)
    agent.close()
