"""Both ends over a real port: keys, clocks and authorities; who is refused, and how."""

from __future__ import annotations

import base64
import datetime
import os
import socket
import threading
import time

import pytest
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2

from headwater.errors import ConfigError, ConnectionLost, DecodeError, Refused
from headwater.flower.fleet_client import Delivery, FleetClient
from headwater.flower.message_objects import CHUNK_BYTES
from headwater.security.certificates import Authority
from headwater.security.signing import Identity
from tests.flower_layer.deployment import wait_for


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
