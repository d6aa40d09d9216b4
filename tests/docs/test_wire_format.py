"""docs/reference/wire-format.md is enough to write a client: tests/docs/stranger.py was written from it."""

from __future__ import annotations

import re
import struct
from itertools import count
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from google.protobuf.descriptor import FieldDescriptor

from headwater.adapters.kinds.table import KINDS
from headwater.client.agent.known_runs import KnownRun
from headwater.compression.table import codec_by_id
from headwater.config import load_federation
from headwater.config.codec import CompeftCodec
from headwater.config.training import NoopTraining
from headwater.errors import DecodeError
from headwater.flower import RECORD, assume_task_identity, pack
from headwater.proto import fields, wire
from headwater.proto.plan_json import plan_from_json, plan_to_json
from headwater.proto.v1 import messages_pb2 as pb
from headwater.protocol.failures import Failure, FailureCode, count_of, failure_of
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    ClientProfile,
    EncodedUpdate,
    Evaluation,
    FisherPlan,
    Payload,
    TrainRequest,
)
from headwater.seeds.keys import Key
from headwater.server.clients.run_control import RunControl
from headwater.server.rounds.federation_server import FederationServer
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.training.context import TrainingContext
from tests.docs import stranger

PAGE = (Path(__file__).parents[2] / "docs/reference/wire-format.md").read_text(encoding="utf-8")
FILE = """
[federation]
name = "stranger"
seed = 11
rounds = 3
[model]
kind = "vector"
size = 40
[data]
kind = "none"
clients = 3
examples = 7
[training]
kind = "noop"
scale = 0.5
[codec.up]
kind = "dense"
[evaluation]
every = 0
"""


class StrangersGrid(Grid):
    """A Flower Grid whose nodes are strangers; it looks at messages as the page describes them."""

    def __init__(self, strangers):
        assume_task_identity(run_id=1, node_id=1)
        self.nodes = dict(enumerate(strangers, start=2))
        self.ids, self.replies = count(), {}
        self.types = set()

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(message_id := f"s{next(self.ids)}")
            message.metadata.__dict__["_message_id"] = message_id
            self.types.add(message.metadata.message_type)
            (record,) = message.content.array_records.items()
            assert record[0] == "headwater"
            arrays = record[1]
            for array in arrays.values():
                assert (array.dtype, array.stype) == ("uint8", "headwater.v1")
                assert tuple(array.shape) == (len(array.data),)
            envelope, state = arrays.pop("envelope").data, arrays.pop("state").data
            assert not arrays
            reply = self.nodes[message.metadata.dst_node_id].answer(envelope, state)
            self.replies[message_id] = Message(pack(reply=reply), reply_to=message)
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(i) for i in list(message_ids) if i in self.replies]

    def set_run(self, run): ...

    @property
    def run(self): ...

    def create_message(self, *args, **kwargs): ...

    def send_and_receive(self, messages, *, timeout=None): ...


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "federation.toml").write_text(FILE)
    return load_federation(tmp_path / "federation.toml")


def test_a_federation_of_strangers_gives_the_same_bits(loaded, tmp_path):
    ours = simulate(loaded, RunFolder.create(tmp_path / "ours", loaded, {}))
    folder = RunFolder.create(tmp_path / "theirs", loaded, {})
    reads = [(), ("dense-fp32.v1", "since.v1"), ()]  # an older client says nothing of it
    strangers = [stranger.Stranger(f"client-{i:04}", 40, 7, 11, reads[i]) for i in range(3)]
    grid = StrangersGrid(strangers)
    control = RunControl(lambda event: None)
    server = FederationServer(
        loaded, "any run", TrainingContext.open(loaded), folder, test=None, control=control
    )
    outcome = server.run(grid, 3)
    assert outcome.checkpoint.server.state.sha256() == ours["adapter_sha256"]
    assert [len(r.clients) for r in folder.read_rounds()] == [0, 3, 3, 3]
    assert not any(row.failed for r in folder.read_rounds() for row in r.clients.values())
    assert grid.types == {"query", "train"}
    assert strangers[0].seen == strangers[2].seen == ["dense-fp32.v1"] * 3
    assert strangers[1].seen == ["since.v1", *["dense-fp32.v1"] * 2]


class OfAnotherVersion(stranger.Stranger):
    """Says more than this version knows, in every message; of states it reads what the first version read."""

    def answer(self, envelope, state):
        ((number, (content,)),) = stranger.read(super().answer(envelope, state)).items()
        return stranger.message(number, content + stranger.write((60, "new"), (61, 7))) + stranger.write(
            (62, "x")
        )


def test_a_client_of_another_format_takes_part(loaded, tmp_path):
    """One format behind: no `reads`. One ahead: fields that nobody here knows, and codecs likewise."""
    ours = simulate(loaded, RunFolder.create(tmp_path / "ours", loaded, {}))
    behind = stranger.Stranger("client-0000", 40, 7, 11)
    ahead = OfAnotherVersion("client-0001", 40, 7, 11, ("dense-fp32.v1", "since.v1", "since.v9"))
    both = OfAnotherVersion("client-0002", 40, 7, 11)
    folder = RunFolder.create(tmp_path / "theirs", loaded, {})
    context, control = TrainingContext.open(loaded), RunControl(lambda event: None)
    server = FederationServer(loaded, "any run", context, folder, test=None, control=control)
    outcome = server.run(StrangersGrid([behind, ahead, both]), 3)
    assert outcome.checkpoint.server.state.sha256() == ours["adapter_sha256"]
    assert not any(row.failed for r in folder.read_rounds() for row in r.clients.values())
    assert {*behind.seen} == {*both.seen} == {"dense-fp32.v1"}
    assert "since.v1" in ahead.seen


def test_rules_of_compatibility(loaded):
    """What the page's list says is refused, is; and a request has no key that an older device lacks."""
    assert "| settings: failure 6; a plan: failure 5 |" in PAGE
    assert (FailureCode.ANOTHER_VERSION, FailureCode.BAD_REQUEST) == (6, 5)
    text = loaded.settings.model_dump_json()
    assert not {'"bits"', '"simulation"', '"plugins"'} & set(re.findall(r'"\w+"(?=:)', text))
    newer = text.replace('"rounds"', '"tomorrow":1,"rounds"')
    with pytest.raises(DecodeError) as caught:
        _ = KnownRun("r", newer, "", Path()).settings
    assert failure_of(caught.value).code == FailureCode.ANOTHER_VERSION
    plan = plan_to_json(ClientPlan(NoopTraining(kind="noop"), CompeftCodec(kind="compeft"), 0.5))
    with pytest.raises(DecodeError, match="plan") as caught:
        plan_from_json(plan.replace("{", '{"tomorrow":1,', 1))
    assert failure_of(caught.value).code == FailureCode.BAD_REQUEST
    with pytest.raises(DecodeError, match="Update the older of the two sides"):
        codec_by_id("since.v9")


def test_the_pages_fingerprint():
    spec = StateSpec((TensorSpec("vector", (3,), "vector"),))
    (text,) = re.findall(r'^    (\[\{"dtype".*\])$', PAGE, re.MULTILINE)
    assert text == stranger.canonical(stranger.vector_spec(3))
    known = "aa5e95ae1f75cb455cb9ec54d3f544ffd712ef60bbec4e61f96e825c27092197"
    assert known == spec.fingerprint() == stranger.fingerprint(stranger.vector_spec(3))
    assert re.search(r"fingerprint `([0-9a-f]{8})…`", PAGE)[1] == known[:8]


def test_fingerprint_and_state_hash_of_a_lora():
    b = TensorSpec("é.lora_B.weight", (2, 3), "lora_b", pair="é.lora_A.weight", scaling=16 / 8**0.5)
    a = TensorSpec("é.lora_A.weight", (3, 4), "lora_a", transposed=True)
    spec = StateSpec.of([b, a])
    described = [
        {"name": t.name, "shape": list(t.shape), "role": t.role, "dtype": "float32", "pair": t.pair,
         "scaling": t.scaling, "transposed": t.transposed}
        for t in (b, a)
    ]  # fmt: skip
    assert stranger.fingerprint(described) == spec.fingerprint()
    values = {"é.lora_A.weight": torch.randn(4, 3).T.reshape(3, 4), "é.lora_B.weight": torch.randn(3, 2).T}
    state = AdapterState(spec, values)
    arrays = [values[name].numpy() for name in sorted(values)]
    assert stranger.state_sha256(spec.fingerprint(), arrays).hex() == state.sha256()


def test_the_page_names_the_role_of_every_tensor():
    (line,) = re.findall(r"^- `role`: .*\n(?:  .*\n)+", PAGE, re.M)
    by_kind = {role for kind in KINDS.values() for _, role in kind.roles}
    named = re.findall(r"`(\w+)`", line.removeprefix("- `role`"))
    assert set(named) == by_kind | {"head", "vector"}


@pytest.mark.parametrize("seed", [0, 17, 2**63 - 1])
def test_keys(seed):
    path = ("round", 3, "client", "müller", "3")
    ours, theirs = Key.root(seed).child(*path), stranger.child(stranger.root(seed), *path)
    assert ours.digest == theirs
    assert ours.numpy().bytes(8) == stranger.generator(theirs).bytes(8)
    assert ours.seed() == int.from_bytes(theirs[:8], "big") >> 1


def test_every_field_of_a_request():
    plan = ClientPlan(NoopTraining(kind="noop"), CompeftCodec(kind="compeft"), 0.5, 2.0, FisherPlan(9, 64.0))
    request = TrainRequest(
        "r", 300, "ümit", "a" * 64, "0b" * 32, Payload("dense-fp32.v1", b"body"), 299, plan
    )
    envelope, body = wire.encode_request(request)
    assert body == b"body"
    fields = stranger.read(stranger.read(envelope)[2][0])
    assert [stranger.text(fields, n) for n in (1, 3, 4, 5)] == ["r", "ümit", "a" * 64, "dense-fp32.v1"]
    assert [stranger.number(fields, n) for n in (2, 7)] == [300, 299]
    assert fields[6] == [b"\x0b" * 32]
    assert set(fields) == set(range(1, 9))
    assert stranger.json.loads(stranger.text(fields, 8)) == {
        "training": {"kind": "noop", "scale": 0.001},
        "codec": {
            "kind": "compeft",
            "density": 0.05,
            "alpha": None,
            "error_feedback": True,
            "format": 2,
            "scale_bits": 8,
            "density_over": "all",
        },
        "learning_rate_factor": 0.5,
        "clip_l2": 2.0,
        "fisher": {"examples": 9, "cap": 64.0},
    }


def test_every_field_of_the_replies():
    payload = Payload("c", b"\x00\x01")
    update = EncodedUpdate(
        "r", 2, "ann", "b" * 64, "0c" * 32, payload, {"fisher": payload}, 70_000, 3, {"z": 1.5, "loss": -0.25}
    )
    fields = stranger.read(stranger.read(wire.encode_reply(update))[2][0])
    assert [stranger.text(fields, n) for n in (1, 3, 4)] == ["r", "ann", "b" * 64]
    assert [stranger.number(fields, n) for n in (2, 8, 9)] == [2, 70_000, 3]
    assert fields[5] == [b"\x0c" * 32]
    inner = stranger.read(fields[6][0])
    assert (inner[1], inner[2]) == ([b"c"], [b"\x00\x01"])
    named = stranger.read(fields[7][0])
    assert named[1] == [b"fisher"]
    assert named[2] == fields[6]
    metrics = [stranger.read(m) for m in fields[10]]
    assert [(m[1][0], struct.unpack("<d", m[2][0])[0]) for m in metrics] == [(b"loss", -0.25), (b"z", 1.5)]
    profile = ClientProfile("ann", 5, 6, "d" * 64, "e" * 64)
    written = stranger.write((1, "ann"), (2, 5), (3, 6), (4, "d" * 64), (5, "e" * 64))
    assert wire.encode_reply(profile) == stranger.message(1, written)
    by_targets = ClientProfile("ann", 5, 6, "d" * 64, "e" * 64, train_targets=70_000)
    assert wire.encode_reply(by_targets) == stranger.message(1, written + stranger.write((10, 70_000)))
    failure = stranger.message(4, stranger.write((1, "ann"), (2, 7), (3, "why")))
    assert wire.decode_reply(failure, max_bytes=0).reason == "why"
    full = ClientFailure.coded("ann", 7, Failure(FailureCode.DISK_FULL, (8_000_000, 512)), "r")
    numbers = stranger.varint(8_000_000) + stranger.varint(512)
    fields = ((1, "ann"), (2, 7), (3, full.reason), (4, "r"), (5, 17), (6, numbers))
    assert wire.encode_reply(full) == stranger.message(4, stranger.write(*fields))
    assert wire.encode_reply(full).hex() in PAGE.replace("\n", "")
    metric = stranger.write((1, "loss"), (2, 0.5))
    evaluation = stranger.message(3, stranger.write((1, "ann"), (2, 1), (3, 4), (4, metric)))
    assert wire.encode_reply(Evaluation("ann", 1, 4, {"loss": 0.5})) == evaluation


def test_the_list_of_failures_is_the_closed_list():
    rows = re.findall(r"^- (\d+) `([a-z_]+)`(?: \(([^)]*)\))?: ", PAGE.split("### Failures")[1], re.MULTILINE)
    listed = {
        name: (int(code), len(numbers.split(",")) if numbers.strip() else 0) for code, name, numbers in rows
    }
    assert listed == {code.name.lower(): (int(code), count_of(code)) for code in FailureCode}
    assert len(rows) == len(FailureCode)


TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def test_the_tables_are_the_schema():
    """Every field of requests and replies stands in the page with its number and type."""
    for kind in ("Request", "Reply"):
        table = PAGE.split(f"**`{kind}`**")[1].split("\n\n")[1].splitlines()
        columns = [c.strip(" `") for c in table[0].strip("|").split("|")]
        rows = {}
        for line in table[2:]:
            cells = [c.strip() for c in line.strip("|").split("|")]
            rows[cells[0].strip("`")] = cells
        seen = set()
        for option in pb.DESCRIPTOR.message_types_by_name[kind].fields:
            described = option.message_type
            column = columns.index(described.name)
            assert f"`{option.name}` = {option.number}" in PAGE
            for field in described.fields:
                cells = rows[field.name]
                assert cells[column] == str(field.number), (described.name, field.name)
                if field.type in TYPES:
                    assert cells[1].split(",")[0] == TYPES[field.type], field.name
                seen.add((field.name, column))
        written = {(n, c) for n, row in rows.items() for c in range(2, len(columns) - 1) if row[c]}
        assert written == seen


def test_limits_on_the_page():
    assert f"{wire.MAX_ENVELOPE:,} bytes" in PAGE
    assert f"1 to {fields.MAX_NAME} printable" in PAGE
    assert f"- metrics: {fields.MAX_METRICS}," in PAGE
    assert f"- statistics: {wire.MAX_STATISTICS}," in PAGE
    assert f"cut to {wire.MAX_REASON:,} characters" in PAGE
    assert fields.MAX_COUNT == 2**32
    assert f"named `{RECORD}`" in PAGE
