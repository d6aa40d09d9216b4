"""Both ends over a real port: TLS, uvicorn, Flower's routes."""

from __future__ import annotations

import base64
import datetime
import os
import re
import socket
import threading
import time

import pytest
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2

from headwater.errors import ConfigError, ConnectionLost, DecodeError, Refused
from headwater.flower import unpack
from headwater.flower.fleet_client import Delivery, FleetClient
from headwater.flower.message_objects import CHUNK_BYTES
from headwater.security.certificates import Authority
from headwater.security.signing import Identity
from tests.flower_layer.deployment import running, wait_for

PATHS = {
    "pull": "/v1/fleet/pull-object",
    "push": "/v1/fleet/push-object",
    "confirm": "/v1/fleet/confirm-message-received",
    "fetch": "/v1/fleet/pull-messages",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path):
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def agent(server, request):
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:64]
    connection = server.connect(server.enrol(name))
    connection.name = name
    connection.activate()
    yield connection
    connection.close()
    server.link.unregister(connection.name)


class Line:
    """Breaks a connection's calls: those of ``path`` after the first ``whole``, before or after they act."""

    def __init__(self, connection, path, *, whole, answered=False):
        self.calls, self._path, self._whole, self._answered = [], path, whole, answered
        self._post, self._lock = connection._http._post, threading.Lock()
        connection._http._post = self.post
        self.broken = True

    def post(self, path, body, max_bytes):
        with self._lock:
            self.calls.append(path)
            breaks = self.broken and path == self._path and self.calls.count(path) > self._whole
        if breaks and not self._answered:
            raise ConnectionLost("line", got="cut")
        answer = self._post(path, body, max_bytes)
        if breaks:
            raise ConnectionLost("line", got="cut")
        return answer

    def mend(self):
        self.broken = False
        self.calls.clear()


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
    server.send(agent.name, envelope=b"e", state=os.urandom(24 * CHUNK_BYTES))
    server.send(agent.name, envelope=b"e", state=b"s")
    line = Line(small, "", whole=0)
    with pytest.raises(DecodeError, match="expected at most"):
        small.receive()
    assert line.calls.count(PATHS["pull"]) < 16  # not all of it was fetched first
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


def test_who_is_refused(server):
    known = server.enrol("known")
    cases = {
        "stranger": (Identity.create("stranger"), {}, "403"),
        "false keys": (Identity.create("known"), {}, "403"),
        "version": (known, {"version": "0.2.0"}, "426 this server is headwater 0.1.0, you are 0.2.0"),
    }
    gone = server.enrol("gone")
    server.registry["gone"].revoked_at = "2026-01-01"
    cases["revoked"] = (gone, {}, "403. Is gone accepted there")
    for identity, more, text in cases.values():
        connection = server.connect(identity, **more)
        with pytest.raises(Refused, match=text):
            connection.activate()
        connection.close()


def test_a_revoked_client_is_out_with_its_next_request(own_server):
    agent = own_server.connect(own_server.enrol("a"))
    agent.activate()
    message_id = own_server.send("a", envelope=b"e", state=b"s")
    delivery = agent.receive()
    own_server.registry["a"].revoked_at = "2026-01-01"
    own_server.link.unregister("a")
    for call in (agent.heartbeat, lambda: agent.reply(delivery, b"x"), agent.activate):
        with pytest.raises(Refused):
            call()
    (reply,) = own_server.pull(message_id)
    assert reply.has_error()
    assert own_server.authenticator.refused["revoked"] >= 3
    agent.close()


@pytest.mark.parametrize("days", [-1, 1, -400])
def test_a_wrong_clock_is_corrected_by_the_server(server, days):
    """The TLS certificate is still judged by the real clock: only a day is allowed for there."""
    identity = server.enrol(f"clock{days}")
    agent = server.connect(identity, clock=lambda: time.time() + days * 86400)
    refused = server.authenticator.refused["time"]
    agent.activate()
    for _ in range(3):
        agent.heartbeat()
    assert server.authenticator.refused["time"] == refused + 1
    message_id = server.send(identity.name, envelope=b"e", state=b"s")
    agent.reply(agent.receive(), b"answer")
    assert len(server.pull(message_id)) == 1
    agent.close()


def test_a_clock_that_jumps_while_connected(server):
    shift = [0.0]
    agent = server.connect(server.enrol("jumps"), clock=lambda: time.time() + shift[0])
    agent.activate()
    for shift[0] in (3600.0, -7200.0, 0.0):
        agent.heartbeat()
    agent.close()


def test_a_clock_that_another_thread_has_corrected_meanwhile(server, monkeypatch):
    """This thread's 403 tells it nothing new, and it asks again all the same."""
    shift = [0.0]
    agent = server.connect(server.enrol("meanwhile"), clock=lambda: time.time() + shift[0])
    agent.activate()
    shift[0] = 7200.0
    post = agent._http._post

    def slow(*arguments):
        found = post(*arguments)
        agent._http._correct_clock(found[1])
        return found

    monkeypatch.setattr(agent._http, "_post", slow)
    agent.heartbeat()
    agent.close()


def test_two_threads(server, agent):
    """A heartbeat while the main thread fetches and replies."""
    failures, stop = [], threading.Event()

    def beat():
        while not stop.is_set():
            try:
                agent.heartbeat()
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        for k in range(5):
            data = os.urandom(3 * CHUNK_BYTES)
            message_id = server.send(agent.name, envelope=b"%d" % k, state=data)
            delivery = agent.receive()
            assert delivery.parts["state"] == data
            agent.reply(delivery, data)
            assert len(server.pull(message_id)) == 1
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_only_the_given_authority_counts(server):
    other = Authority.create("other").certificate_pem
    agent = FleetClient(f"127.0.0.1:{server.port}", other, Identity.create("a"), version="0.1.0")
    with pytest.raises(
        ConnectionLost, match=r"CERTIFICATE_VERIFY_FAILED.*is ca\.pem the organiser's\s+latest"
    ):
        agent.activate()
    agent.close()
    agent = FleetClient(f"localhost:{server.port}", server.ca, Identity.create("a"), version="0.1.0")
    with pytest.raises(
        ConnectionLost, match=r"(?i)hostname.*headwater server renew DIR"
    ):  # it is for 127.0.0.1
        agent.activate()
    agent.close()
    with pytest.raises(ConfigError, match="authority"):
        FleetClient("x:1", b"no pem", Identity.create("a"), version="0.1.0")


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ca = Authority.create("test").certificate_pem
    for address in (f"127.0.0.1:{port}", "name.invalid:1"):
        agent = FleetClient(address, ca, Identity.create("a"), version="0.1.0", timeout_s=2)
        with pytest.raises(ConnectionLost, match=address):
            agent.activate()
        agent.close()


def test_anothers_message_is_refused_over_the_wire(server, agent):
    """What the Flower handlers would take: a reply in another's name, with one's own keys."""
    victim = server.connect(server.enrol("victim"))
    victim.activate()
    server.send("victim", envelope=b"e", state=b"s")
    delivery = victim.receive()
    with pytest.raises(Refused, match=r"403 .*another node"):
        agent.reply(delivery, b"stolen")
    other = fleet_pb2.PullMessagesRequest()
    other.node.node_id = server.link.node_of("victim")
    with pytest.raises(Refused, match="401"):
        agent._call("pull-messages", other, fleet_pb2.PullMessagesResponse)
    victim.reply(delivery, b"mine")
    victim.close()


def test_the_node_key_of_another_is_no_use(server, agent):
    other = server.enrol("other")
    agent._http._node_key = base64.b64encode(other.public.node_key).decode()
    agent._node_key = other.public.node_key
    with pytest.raises(Refused, match="403") as refused:
        agent.activate()
    assert refused.value.status == 403


def test_a_signed_time_counts_for_its_key_and_its_minutes_only(server, agent):
    """What was verified once is not verified again: another signature, or the same one too late, is."""
    agent.heartbeat()
    http = agent._http
    since, stamp, signature = kept = http._stamp
    agent.heartbeat()
    assert http._stamp is kept
    forged = base64.b64encode(Identity.create("x").sign_timestamp(stamp)).decode()
    old = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=400)).isoformat()
    signed_old = base64.b64encode(http._identity.sign_timestamp(old)).decode()
    for wrong in ((stamp, forged), (old, signature), (old, signed_old), ("", signature), (stamp, "")):
        http._stamp = (since, *wrong)
        with pytest.raises(Refused, match="401"):
            agent.heartbeat()
    http._stamp = (since - 60, *wrong)  # a minute old: signed afresh
    agent.heartbeat()
    assert http._stamp[2] not in ("", signature)


@pytest.mark.parametrize("body", [b"\xff\xff", b"", b"\x0a\x00"])
def test_no_protobuf_is_no_crash(server, agent, body):
    status, _, _ = agent._http._post("/v1/fleet/push-messages", body, 2**20)
    assert 400 <= status < 500
    agent.heartbeat()


def test_a_reply_needs_a_request(agent):
    with pytest.raises(DecodeError, match="delivery"):
        agent.reply(Delivery("x", "train", {}), b"")


def test_metadata_survives_the_wire(server, agent):
    """What :func:`headwater.flower.fleet_client.sealed_reply` builds on."""
    message_id = server.send(agent.name, envelope=b"e", state=b"s")
    origin = agent.receive().origin
    request = server.link._link_state.message_ins_store[message_id]
    assert message_to_proto(request).metadata.message_id == origin.message_id == message_id
    assert origin.created_at == request.metadata.created_at
    wait_for(lambda: request.metadata.delivered_at == "confirmed")
