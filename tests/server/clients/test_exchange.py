"""Hostile replies: each is named, the round goes on, and no bit of the honest ones changes."""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass, field, replace

import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.config import load_federation
from headwater.errors import FederationStopped
from headwater.flower import pack, unpack
from headwater.proto.wire import decode_reply, encode_reply
from headwater.protocol.messages import ClientFailure, Evaluation, Payload
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientDone, ClientFailed
from headwater.server.rounds.federation_server import FederationServer
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.grid import InProcessGrid
from headwater.training.context import TrainingContext
from tests.support.runs import tiny_federation

HOSTILE = "ben"


@dataclass
class Tampered(Grid):
    """An honest grid of which one node's replies of one type pass through ``tamper`` (bytes, round)."""

    inner: Grid
    names: tuple[str, ...]
    tamper: object
    kind: str
    sent: dict[str, Message] = field(default_factory=dict)

    def get_node_ids(self):
        return self.inner.get_node_ids()

    def push_messages(self, messages):
        rows = list(messages)
        ids = list(self.inner.push_messages(rows))
        self.sent.update(zip(ids, rows, strict=True))
        return ids

    def pull_messages(self, message_ids):
        nodes = dict(zip(sorted(self.get_node_ids()), self.names, strict=True))
        found = []
        for reply in self.inner.pull_messages(message_ids):
            asked = self.sent.pop(reply.metadata.reply_to_message_id)
            meta = asked.metadata
            if nodes[meta.dst_node_id] == HOSTILE and meta.message_type == self.kind:
                (data,) = unpack(reply.content, "reply")
                content = self.tamper(data, int(meta.group_id))
                content = pack(reply=content) if isinstance(content, bytes) else content
                reply = Message(content, reply_to=asked)
            found.append(reply)
        return found

    def set_run(self, run): ...
    def create_message(self, *arguments, **options): ...
    def send_and_receive(self, messages, *, timeout=None): ...

    @property
    def run(self): ...


@dataclass
class Ended:
    """What a federation came to."""

    states: list[str]
    records: list[dict]
    events: list

    @property
    def failures(self):
        return [e for e in self.events if isinstance(e, ClientFailed)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("fed"), federation={"rounds": 2})


@pytest.fixture
def federate(file, tmp_path):
    def go(name, tamper, *overrides, kind=MessageType.TRAIN):
        loaded = load_federation(file, overrides)
        context = TrainingContext.open(loaded)
        runtime = ClientRuntime.open(loaded, context)
        folder = RunFolder.create(tmp_path / name, loaded, {"engine": "inprocess"})
        events = []
        names = runtime.data.clients
        grid = Tampered(InProcessGrid(names, runtime, MemoryStore()), names, tamper, kind)
        test = runtime.data.test()
        server = FederationServer(
            loaded, runtime.run, context, folder, test=test, control=RunControl(events.append)
        )
        server.run(grid, len(names))
        records = [json.loads(line) for line in folder.rounds.read_text().splitlines()]
        return Ended([r["state_sha256"] for r in records], records, events)

    return go


def update(data):
    return decode_reply(data, max_bytes=10**7)


def changed(**changes):
    return lambda data, round: encode_reply(replace(update(data), **changes))


def failing(data, round):
    return encode_reply(ClientFailure(HOSTILE, round, "honest trouble"))


def crash(data, round):
    return Error(code=1, reason="the node crashed")


class Replay:
    """Sends the update of round 1 in round 2."""

    first = b""

    def __call__(self, data, round):
        if round == 1:
            self.first = data
            return failing(data, round)
        return self.first


def body(change):
    return lambda d, r: changed(delta=Payload(update(d).delta.codec, change(update(d).delta.body)))(d, r)


DENSE = ("codec.up={kind='dense'}",)


FISHER = ("strategy.kind=fisher", "strategy.examples=4")


TAMPERINGS = {
    "garbage": (lambda d, r: b"\xff" * 99, "protobuf"),
    "nothing": (lambda d, r: b"", "none of them"),
    "cut off": (lambda d, r: d[:-7], "ben|update|protobuf"),
    "body cut off": (body(lambda b: b[:-5]), "compeft|bytes|word"),
    "body of noise": (body(lambda b: bytes(range(200))), "."),
    "oversized": (body(lambda b: b + bytes(300_000)), "at most"),
    "another client": (changed(client="ann"), "client ben: client: expected ben, got ann"),
    "an unknown client": (changed(client="zoe"), "client ben: client: expected ben, got zoe"),
    "another round": (lambda d, r: changed(round=r + 1)(d, r), "client ben: round: expected"),
    "replay": (Replay(), "client ben: round: expected 2, got 1"),
    "another run": (changed(run="f" * 32), "client ben: run"),
    "another base": (changed(base_sha256="0" * 64), "client ben: base state"),
    "another spec": (changed(spec="0" * 64), "client ben: spec"),
    "another codec": (lambda d, r: changed(delta=Payload("zip.v1", update(d).delta.body))(d, r), "codec|zip"),
    "more examples": (lambda d, r: changed(examples=update(d).examples + 1)(d, r), "client ben: examples"),
    "no examples": (changed(examples=0), "client ben: examples"),
    "countless examples": (changed(examples=2**40), "update.examples"),
    "extra statistic": (
        lambda d, r: changed(statistics={"fisher": update(d).delta})(d, r),
        "client ben: statistics",
    ),
    "NaN metric": (changed(metrics={"loss": math.nan}), "metric loss"),
    "an evaluation": (
        lambda d, r: encode_reply(Evaluation(HOSTILE, r, 9, {})),
        "client ben: .* got Evaluation",
    ),
    "own failure": (failing, "client ben: expected an update, got failure: honest trouble"),
    "Flower's error": (crash, "client ben: .*no reply: the node crashed"),
    "other content": (lambda d, r: RecordDict({}), "client ben: .*another content"),
    "other parts": (lambda d, r: pack(envelope=b"x", state=b"y"), "client ben: .*another content"),
}


@pytest.fixture(scope="module")
def honest():
    """What the honest ones come to without ben, by overrides; filled as needed."""
    return {}


def compare(federate, honest, overrides, tampered):
    if overrides not in honest:
        honest[overrides] = federate("honest", failing, *overrides)
    reference = honest[overrides]
    assert tampered.states == reference.states
    for mine, theirs in zip(tampered.records, reference.records, strict=True):
        assert (
            mine["merge" if "merge" in mine else "round"] == theirs["merge" if "merge" in mine else "round"]
        )
        assert mine.get("gap") == theirs.get("gap")
        assert mine["test"] == theirs["test"]


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_bad_reply_is_named_and_changes_no_bit(federate, honest, name):
    tamper, match = TAMPERINGS[name]
    ended = federate("tampered", tamper)
    assert [(e.client, e.round) for e in ended.failures] == [(HOSTILE, 1), (HOSTILE, 2)]
    for record in ended.records[1:]:
        assert [c for c, row in record["clients"].items() if "failed" in row] == [HOSTILE]
        assert isinstance(record["clients"][HOSTILE]["failed"], str)
        assert all(n >= 0 for n in record["bytes"].values())
    assert re.search(match, ended.failures[-1].reason), ended.failures[-1].reason
    assert {e.client for e in ended.events if isinstance(e, ClientDone)} == {"ann", "cleo"}
    compare(federate, honest, (), ended)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 16.5, -1e30])
def test_bad_values_are_named_and_change_no_bit(federate, honest, value):
    last = struct.pack("<f", value)  # a dense body ends with its last value, in fp32
    ended = federate("tampered", body(lambda b: b[: -len(last)] + last), *DENSE)
    assert {(e.client, e.round) for e in ended.failures} == {(HOSTILE, 1), (HOSTILE, 2)}
    assert re.search("finite values|at most 16|±16|bound", ended.failures[0].reason), ended.failures[0].reason
    compare(federate, honest, DENSE, ended)


def test_metrics_cannot_pass_for_the_servers_own_numbers(federate):
    lies = {
        "bytes_up": -1e9,
        "bytes_down": 1e9,
        "bytes_up_dense": -1e9,
        "failed": 1.0,
        "examples": 7.0,
        "x": 1.0,
    }
    ended = federate("tampered", changed(metrics={**lies, "loss": 0.5}))
    plain = federate("plain", changed(metrics={"loss": 0.5}))
    assert ended.states == plain.states
    for lying, told in zip(ended.records, plain.records, strict=True):
        mine, theirs = lying["clients"].get(HOSTILE, {}), told["clients"].get(HOSTILE, {})
        sizes = ("bytes_up", "bytes_up_dense")  # the lies themselves cost bytes
        assert {k: v for k, v in mine.items() if k not in sizes} == {
            k: v for k, v in theirs.items() if k not in sizes
        }
        assert all(isinstance(mine.get(k, 0), int) and mine.get(k, 0) >= theirs.get(k, 0) for k in sizes)
        assert lying["bytes"]["down"] == told["bytes"]["down"]


@pytest.mark.parametrize("statistics", ["missing", "another", "too many", "noise"])
def test_bad_fishers_are_named_and_change_no_bit(federate, honest, statistics):
    def tamper(data, round):
        reply = update(data)
        own = reply.statistics["fisher"]
        noise = Payload(own.codec, own.body[: len(own.body) // 2])
        wrong = {
            "missing": {},
            "another": {"hessian": own},
            "too many": {"fisher": own, "hessian": own},
            "noise": {"fisher": noise},
        }[statistics]
        return encode_reply(replace(reply, statistics=wrong))

    ended = federate("tampered", tamper, *FISHER)
    assert {(e.client, e.round) for e in ended.failures} == {(HOSTILE, 1), (HOSTILE, 2)}
    compare(federate, honest, FISHER, ended)


PROFILES = {
    "a second node of one name": (changed(client="ann"), "client ann: expected one node, got two"),
    "another base model": (changed(model_sha256="0" * 64), "client ben: expected base model sha256"),
    "another adapter": (changed(spec="0" * 64), "client ben: expected adapter spec"),
    "a name that is none": (changed(client=""), "profile.client"),
    "countless examples": (changed(train_examples=2**40), "profile.train_examples"),
    "garbage": (lambda d, r: b"\xff" * 9, "protobuf"),
    "a failure": (failing, "expected a profile"),
    "Flower's error": (crash, "the node crashed"),
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_node_that_does_not_fit_is_named_and_left_out(federate, honest, name):
    tamper, match = PROFILES[name]
    ended = federate("tampered", tamper, kind=MessageType.QUERY)
    assert [(e.round, e.client[:5]) for e in ended.failures] == [(0, "node ")]
    assert match in ended.failures[0].reason
    assert all(set(r["clients"]) == {"ann", "cleo"} for r in ended.records[1:])
    if () not in honest:
        honest[()] = federate("honest", failing)
    assert ended.states == honest[()].states


def test_a_client_that_claims_no_examples_is_not_asked(federate):
    ended = federate("tampered", changed(train_examples=0), kind=MessageType.QUERY)
    assert set(ended.records[1]["clients"]) == {"ann", "cleo"}


EVALUATIONS = {
    "garbage": lambda d, r: b"\xff" * 9,
    "another client": changed(client="ann"),
    "another round": changed(round=7),
    "NaN": changed(metrics={"accuracy": math.nan}),
    "own failure": failing,
    "Flower's error": crash,
    "more examples": lambda d, r: changed(examples=2**32)(d, r),
    "no metrics": changed(metrics={}),
    "a metric more": lambda d, r: changed(metrics={**update(d).metrics, "x": 1.0})(d, r),
    "accuracy above 1": lambda d, r: changed(metrics={**update(d).metrics, "accuracy": 1.5})(d, r),
    "a loss that overflows": lambda d, r: changed(metrics={**update(d).metrics, "loss": 1e308})(d, r),
    "an update's content": lambda d, r: RecordDict({}),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_bad_evaluation_is_named_and_left_out(federate, name):
    ended = federate("tampered", EVALUATIONS[name], kind=MessageType.EVALUATE)
    assert [(e.round, e.client) for e in ended.failures] == [(0, HOSTILE), (1, HOSTILE), (2, HOSTILE)]
    for record in ended.records:
        assert set(record["clients_each"]) <= {"ann", "cleo"}
        assert 0 <= record["clients_pooled"]["accuracy"] <= 1
    assert len(set(ended.states)) == 3


def test_too_few_honest_ones_stop_the_run(federate):
    with pytest.raises(FederationStopped, match=r"round 1.*ben"):
        federate("tampered", lambda d, r: b"", "cohort.min_clients=3")


@pytest.mark.parametrize("kind", ["synchronous", "buffered"])
def test_a_simulation_with_too_few_updates_says_whose_are_missing(federate, kind):
    schedule = [f'schedule.kind="{kind}"'] + (["schedule.buffer=3"] if kind == "buffered" else [])
    with pytest.raises(FederationStopped, match=r"round 1.*ben.*--resume"):
        federate("few", failing, "cohort.min_clients=3", *schedule)
