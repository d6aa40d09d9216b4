"""A client with a real key that does everything but work, beside two that do."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.node_pb2 import Node

from headwater.errors import ConfigError, ConnectionLost, Refused
from headwater.flower.fleet_client import sealed_reply
from headwater.proto.wire import decode_reply, decode_request, decode_signed, encode_reply, encode_signed
from headwater.protocol.messages import ClientFailure, ClientProfile, Evaluation, Payload, TrainRequest
from headwater.security.enrolment import make_request, read_request
from headwater.security.signing import Identity
from tests.attacks.grounds import EVIL, HONEST, Device, disk, memory

MB = 2**20


class Patient(Device):
    """Honest; answers its first task when it is told to.

    A round of just as many clients as must answer waits for an evil one among them, whoever else is there.
    So the first round is the honest ones' own, and lasts until the evil one is known.
    """

    def __init__(self, grounds, name, folder) -> None:
        super().__init__(grounds, name, folder)
        self.asked, self.go = threading.Event(), threading.Event()

    def handle(self, delivery) -> None:
        if delivery.kind == "train":
            self.asked.set()
            self.go.wait(60)
        super().handle(delivery)


class EvilDevice(Device):
    """Answers the n-th task with the n-th of its attacks; tells who it is as it should."""

    def __init__(self, grounds, folder, attacks, victim=None) -> None:
        super().__init__(grounds, EVIL, folder)
        self.attacks, self.victim = list(attacks), victim
        self.used: dict[int, str] = {}
        self.kept: bytes = b""
        self.known = threading.Event()

    def handle(self, delivery) -> None:
        request = decode_request(delivery.parts["envelope"], delivery.parts["state"])
        if not isinstance(request, TrainRequest):
            super().handle(delivery)
            self.known.set()
            return
        name, attack = self.attacks[min(len(self.used), len(self.attacks) - 1)]
        self.used.setdefault(request.round, name)
        honest = self.reply_to(delivery.parts)
        data = attack(self, decode_reply(honest, max_bytes=len(honest)), delivery)
        self.kept = self.kept or self.sign(honest)
        self.connection.reply(delivery, data)

    def sign(self, reply: bytes) -> bytes:
        return encode_signed(reply, self.identity.sign_reply(reply))


def changed(**changes):
    """The client's own update with other values, signed as it should be."""
    return lambda evil, update, delivery: evil.sign(encode_reply(replace(update, **changes)))


def values(make):
    """The client's own update with these values."""

    def attack(evil, update, delivery):
        body = np.frombuffer(update.delta.body, dtype="<f4")
        other = make(body.copy()).astype("<f4").tobytes()
        return evil.sign(encode_reply(replace(update, delta=Payload(update.delta.codec, other))))

    return attack


def body(make):
    """The client's own update with other bytes as its payload."""

    def attack(evil, update, delivery):
        delta = Payload(update.delta.codec, make(update.delta.body))
        return evil.sign(encode_reply(replace(update, delta=delta)))

    return attack


def at(value):
    def make(array):
        array[len(array) // 2] = value
        return array

    return make


def others_update(evil, update, delivery):
    """What the victim sent, as it is."""
    wait_for(lambda: len(evil.victim.sent) > 1)
    return evil.victim.sent[-1]


def others_update_signed_by_me(evil, update, delivery):
    wait_for(lambda: len(evil.victim.sent) > 1)
    signed = evil.victim.sent[-1]
    return evil.sign(decode_signed(signed, max_bytes=len(signed))[0])


def oversize(evil, update, delivery):
    """Three ways to send too much; then garbage, so that the round need not wait."""
    with pytest.raises(Refused):
        evil.connection.reply(delivery, os.urandom(20 * MB))
    return b"garbage"


def flipped(evil, update, delivery):
    data = bytearray(evil.sign(encode_reply(update)))
    data[len(data) // 2] ^= 1
    return bytes(data)


def failure(evil, update, delivery):
    return evil.sign(encode_reply(ClientFailure(EVIL, update.round, "\x1b[2J<script>" * 200, update.run)))


def a_profile(evil, update, delivery):
    return evil.sign(encode_reply(ClientProfile(EVIL, 1, 1, "0" * 64, update.spec, update.run)))


def an_evaluation(evil, update, delivery):
    return evil.sign(encode_reply(Evaluation(EVIL, update.round, 1, {"loss": 0.0}, update.run)))


DENSE = [
    # name, what it sends, what the organiser reads
    ("garbage", lambda e, u, d: os.urandom(3000), "signed reply"),
    ("nothing", lambda e, u, d: b"", "signature"),
    ("no signature", lambda e, u, d: encode_signed(encode_reply(u), bytes(64)), "signature"),
    ("a short signature", lambda e, u, d: encode_signed(encode_reply(u), b"x"), "signature"),
    ("another's signed update", others_update, "signature"),
    ("another's update, signed by me", others_update_signed_by_me, "client"),
    ("my own of an earlier round", lambda e, u, d: e.kept, "round"),
    ("a flipped bit", flipped, "signature"),
    ("another run", changed(run="20260101-0000-aaaa"), "run"),
    ("another round", changed(round=77), "round"),
    ("another client", changed(client=HONEST[0]), "client"),
    ("another base", changed(base_sha256="0" * 64), "base state"),
    ("another spec", changed(spec="0" * 64), "spec"),
    ("more examples", changed(examples=2), "examples"),
    ("very many examples", changed(examples=2**32), "examples"),
    ("no examples", changed(examples=0), "examples"),
    ("another codec", changed(delta=Payload("compeft-1", b"x" * 100)), "codec"),
    ("statistics nobody asked for", changed(statistics={"fisher": Payload("x", b"y")}), "statistics"),
    ("a metric that is none", changed(metrics={"loss": math.nan}), "metric"),
    ("a thousand metrics", changed(metrics={f"m{i}": 1.0 for i in range(1000)}), "metrics"),
    ("a metric's name", changed(metrics={"x" * 500: 1.0}), "metric name"),
    ("NaN", values(at(math.nan)), "finite"),
    ("infinity", values(at(math.inf)), "finite"),
    ("beyond the bound", values(at(1e30)), ""),
    ("at the edge of the bound", values(lambda a: a * 0 + 1.01), ""),
    ("a value less", body(lambda b: b[:-4]), ""),
    ("a value more", body(lambda b: b + bytes(4)), ""),
    ("a byte less", body(lambda b: b[:-1]), ""),
    ("no payload", body(lambda b: b""), ""),
    ("a million values more", body(lambda b: b + bytes(40_000)), ""),
    ("a profile", a_profile, "ClientProfile"),
    ("an evaluation", an_evaluation, "Evaluation"),
    ("a failure with an odd reason", failure, "failure"),
    ("20 MB", oversize, "signed reply"),
]

STREAMS = [
    ("zeros", body(lambda b: bytes(len(b))), ""),
    ("ones", body(lambda b: b"\xff" * len(b)), ""),
    ("noise", body(lambda b: os.urandom(len(b))), ""),
    ("a true head, then ones", body(lambda b: b[:8] + b"\xff" * (len(b) - 8)), ""),
    ("half", body(lambda b: b[: len(b) // 2]), ""),
    ("twice", body(lambda b: b + b), ""),
    ("huge counts", body(lambda b: struct.pack("<QQ", 2**63, 2**63) + b), ""),
    ("varints", body(lambda b: b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 30), ""),
]


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def federated(grounds, folder, rounds, codec, attacks=()):
    """(summary, rounds as written, the evil device) of a run with the attacks, or without an attacker."""
    folder.mkdir()
    honest = [Patient(grounds, name, folder) for name in HONEST]
    evil = EvilDevice(grounds, folder, [a[:2] for a in attacks], honest[0])
    with honest[0].working(), honest[1].working(), contextlib.ExitStack() as stack:
        run = grounds.network.submit(grounds.federation(rounds, codec=codec))
        assert all(one.asked.wait(60) for one in honest)
        if attacks:
            stack.enter_context(evil.working())
            assert evil.known.wait(60)
        for one in honest:
            one.go.set()
        grounds.finish(run, 120)
    path = grounds.network.run_folder(run)
    rows = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    return json.loads((path / "summary.json").read_text()), rows, evil


def online(grounds):
    return {c.client for c in grounds.status().clients if c.state == "online"}


@pytest.mark.parametrize(("codec", "attacks"), [("dense", DENSE), ("compeft", STREAMS)])
def test_no_reply_of_a_malicious_client_moves_the_adapter(grounds, tmp_path, codec, attacks):
    rounds = len(attacks) + 2
    quiet, _, _ = federated(grounds, tmp_path / "without", rounds, codec)  # first: the daemon warms up
    before = memory(grounds.pid, reset=True)[0]
    summary, rows, evil = federated(grounds, tmp_path / "with", rounds, codec, attacks)
    peak = memory(grounds.pid)[1]
    assert {name for name, *_ in attacks} <= set(evil.used.values()), evil.errors
    said = {name: expected for name, _, expected in attacks}
    for row in rows:
        clients = row.get("clients", {})
        if row["round"] in evil.used:
            failed = clients[EVIL].get("failed", "")
            name = evil.used[row["round"]]
            assert failed, (name, clients[EVIL])
            assert said[name] in failed, (name, failed)
            assert "Traceback" not in failed
            assert "\x1b" not in failed
        for name in HONEST if row["round"] else ():
            assert "failed" not in clients[name], clients
    assert summary["adapter_sha256"] == quiet["adapter_sha256"]
    assert peak - before < 64 * 1024, f"{(peak - before) / 1024:.0f} MiB"
    row = next(c for c in grounds.status().clients if c.client == EVIL)
    assert row.failed_rounds >= len(attacks)
    assert row.last_error


def test_the_transport_cannot_be_filled(grounds, tmp_path):
    """Trees of a million ids, uploads that never end, thousands of activations, new keys by oneself."""
    honest = [Patient(grounds, name, tmp_path) for name in HONEST]
    with honest[0].working(), honest[1].working():
        evil = Device(grounds, EVIL, tmp_path)
        call = evil.connection
        run = grounds.network.submit(grounds.federation(3, size=2**16))
        assert all(one.asked.wait(60) for one in honest)
        call.activate()
        wait_for(lambda: evil.step())  # its profile: now it is in the cohort
        for one in honest:
            one.go.set()
        delivery = None

        def asked():
            nonlocal delivery
            delivery = call.receive()
            return delivery

        wait_for(asked)
        before = memory(grounds.pid, reset=True)[0]
        announce, objects = sealed_reply(delivery.origin, b"x" * 1000)
        announce.node.CopyFrom(Node(node_id=call._node))
        # a tree of a million ids: more than a body may have
        tree = message_pb2.ObjectTree.FromString(announce.message_object_trees[0].SerializeToString())
        leaf = tree.children[0].children[0].children[0]
        for i in range(10_000):
            leaf.children.add(object_id=f"{i:064x}")
        wide = fleet_pb2.PushMessagesRequest.FromString(announce.SerializeToString())
        wide.message_object_trees[0].CopyFrom(tree)
        with pytest.raises(Refused, match=r"422|413"):
            call._call("push-messages", wide, fleet_pb2.PushMessagesResponse)
        for i in range(10_000, 30_000):
            leaf.children.add(object_id=f"{i:064x}")
        wide.message_object_trees[0].CopyFrom(tree)
        with pytest.raises((Refused, ConnectionLost)):  # 413, or cut off while it still sends
            call._call("push-messages", wide, fleet_pb2.PushMessagesResponse)
        # replies begun, each of 0.25 MB, none finished
        for i in range(60):
            announce, objects = sealed_reply(delivery.origin, os.urandom(250_000 + i))
            announce.node.CopyFrom(Node(node_id=call._node))
            answer = call._call("push-messages", announce, fleet_pb2.PushMessagesResponse)
            chunks = [i for i in answer.objects_to_push if len(objects[i].deflate()) > 100_000]
            for chunk in chunks[:2]:
                call._send(delivery.origin.run_id, answer.session_id, chunk, objects[chunk].deflate())
        # another's session, another's message
        for session in ("", "0" * 32, answer.session_id[::-1]):
            request = message_pb2.PushObjectRequest(
                node=Node(node_id=call._node),
                run_id=delivery.origin.run_id,
                object_id="0" * 64,
                object_content=b"x",
                session_id=session,
            )
            with pytest.raises(Refused):
                call._call("push-object", request, message_pb2.PushObjectResponse)
        for _ in range(300):
            call.activate()
        call.reply(delivery, b"garbage")  # or the round waits for its deadline
        call.deactivate()
        call.close()
        row = grounds.finish(run, 90)
        assert row.round == 3
        grown = memory(grounds.pid)[1] - before
        # honest replies are taken, decoded and merged meanwhile
        assert grown < 64 * 1024, f"{grown / 1024:.0f} MiB"
    rows = (grounds.network.run_folder(run) / "rounds.jsonl").read_text().splitlines()
    assert all(
        "failed" not in json.loads(line)["clients"].get(name, {}) for line in rows[1:] for name in HONEST
    )
    refused = grounds.refused()
    assert refused.get(f"garbled ({EVIL})", 0) >= 1
    assert disk(grounds.network.run_folder(run)) < 64 * MB
    print("GROWN", grown, "DISK", disk(grounds.network.run_folder(run)), refused)


def test_a_client_cannot_enrol_itself(grounds, unmoved):
    """Nothing that a client can reach takes an enrolment request."""
    again = Identity.create(EVIL)
    request = make_request(again).encode()
    for path in ("/v1/fleet/register-node", "/v1/control/register-node", "/v1/fleet/create-node"):
        assert grounds.exchange(grounds.request(EVIL, path, request)).status == 403
    with pytest.raises(ConfigError):  # and a name or a key that is taken is taken
        grounds.network.workspace.registry().accept(read_request(make_request(again)))
