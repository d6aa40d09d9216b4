"""Messages survive the wire; hostile bytes are a DecodeError; equal messages have equal bytes."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config.codec import CompeftCodec, DenseCodec
from headwater.config.consistency import MAX_METHOD_NAME, MAX_METHODS
from headwater.config.training import BackpropTraining, KseedTraining, NoopTraining
from headwater.errors import DecodeError
from headwater.proto import fields, plan_json, wire
from headwater.proto.v1 import messages_pb2 as pb
from headwater.protocol.failures import UNSPECIFIED, Failure, FailureCode
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    ClientProfile,
    DeviceProfile,
    EncodedUpdate,
    EvaluateRequest,
    Evaluation,
    FisherPlan,
    MethodCost,
    Payload,
    ProfileRequest,
    TrainRequest,
)
from headwater.seeds.coefficients import SeedPlan

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=fields.MAX_NAME).filter(
    str.isprintable
)
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
COUNTS = st.integers(0, 2**32)
ROUNDS = st.integers(0, 2**32 - 1)
BODIES = st.binary(max_size=200)
PAYLOADS = st.builds(Payload, NAMES, BODIES)
METRICS = st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=5)
SEEDS = st.builds(
    SeedPlan,
    first=st.integers(0, 2**62),
    count=st.integers(1, plan_json.MAX_SEEDS),
    distribution=st.sampled_from(["rademacher", "gaussian"]),
    unit_bits=st.integers(-100, 100),
    entries=st.integers(1, plan_json.MAX_SEEDS),
    implied=st.booleans(),
)
PLANS = st.builds(
    ClientPlan,
    training=st.sampled_from([NoopTraining(kind="noop"), BackpropTraining(kind="backprop", epochs=0.5)]),
    codec=st.sampled_from([DenseCodec(kind="dense"), CompeftCodec(kind="compeft", alpha=2.0)]),
    learning_rate_factor=st.floats(0, 1),
    clip_l2=st.none() | st.floats(0.1, 10),
    fisher=st.none() | st.builds(FisherPlan, st.integers(1, 9), st.floats(1.5, 100)),
    seeds=st.none() | SEEDS,
    tensors=st.none() | st.lists(NAMES, max_size=5, unique=True).map(tuple),
    rank=st.none() | st.integers(1, 2**20),
    method=st.just("") | NAMES,
)
COSTS = st.builds(
    MethodCost, st.integers(0, 2**60), st.just(0.0) | st.floats(1e-9, 1e9), st.integers(0, 2**32)
)
DEVICES = st.builds(
    DeviceProfile, st.integers(0, 2**60), st.integers(0, 2**10), st.dictionaries(NAMES, COSTS, max_size=4)
)
REQUESTS = st.one_of(
    st.builds(ProfileRequest, NAMES),
    st.builds(TrainRequest, NAMES, ROUNDS, NAMES, HEX, HEX, PAYLOADS, ROUNDS, PLANS),
    st.builds(EvaluateRequest, NAMES, ROUNDS, NAMES, HEX, HEX, PAYLOADS),
)
REPLIES = st.one_of(
    st.builds(
        ClientProfile, NAMES, COUNTS, COUNTS, HEX, HEX, device=st.none() | DEVICES, train_targets=COUNTS
    ),
    st.builds(
        EncodedUpdate,
        NAMES,
        ROUNDS,
        NAMES,
        HEX,
        HEX,
        PAYLOADS,
        st.dictionaries(NAMES, PAYLOADS, max_size=3),
        COUNTS,
        COUNTS,
        METRICS,
    ),
    st.builds(Evaluation, NAMES, ROUNDS, COUNTS, METRICS),
    st.builds(
        ClientFailure,
        NAMES,
        ROUNDS,
        st.text(st.characters(categories=("L",)), max_size=50),
        st.just("") | NAMES,
        st.builds(
            Failure, st.sampled_from(FailureCode), st.lists(st.integers(0, 2**53), max_size=6).map(tuple)
        ),
    ),
)


@given(REQUESTS)
def test_requests_survive(request):
    envelope, body = wire.encode_request(request)
    assert wire.decode_request(envelope, body) == request
    assert wire.encode_request(request) == (envelope, body)


@given(REPLIES)
def test_replies_survive(reply):
    data = wire.encode_reply(reply)
    assert wire.decode_reply(data, max_bytes=10_000) == reply
    assert wire.encode_reply(wire.decode_reply(data, max_bytes=10_000)) == data


@given(REPLIES, st.data())
@settings(max_examples=200)
def test_damaged_replies_decode_or_are_refused(reply, data):
    raw = bytearray(wire.encode_reply(reply))
    for _ in range(data.draw(st.integers(1, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with contextlib.suppress(DecodeError):
        wire.decode_reply(bytes(raw), max_bytes=10_000)


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(raw):
    for decode in (lambda: wire.decode_reply(raw, max_bytes=100), lambda: wire.decode_request(raw, b"")):
        with contextlib.suppress(DecodeError):
            decode()


def update(**changes):
    content = {
        "run": "r",
        "round": 1,
        "client": "ann",
        "spec": "0" * 64,
        "base_sha256": "1" * 64,
        "delta": Payload("dense-fp32.v1", b"x"),
        "statistics": {},
        "examples": 1,
        "steps": 1,
        "metrics": {},
    }
    return EncodedUpdate(**{**content, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"client": ""}, "printable"),
        ({"client": "a\x1b[31m"}, "printable"),
        ({"client": "x" * 65}, "64 printable"),
        ({"spec": "F" * 64}, "hex"),
        ({"base_sha256": "11"}, "32 bytes"),
        ({"metrics": {"loss": float("nan")}}, "finite"),
        ({"metrics": {f"m{i}": 0.0 for i in range(65)}}, "at most 64"),
        ({"examples": 2**33}, "at most"),
        ({"statistics": {f"s{i}": Payload("c", b"") for i in range(9)}}, "at most 8"),
    ],
)
def test_fields_out_of_range_are_refused(changes, match):
    with pytest.raises(DecodeError, match=match):
        wire.decode_reply(wire.encode_reply(update(**changes)), max_bytes=1000)


def test_size_is_checked_before_parsing(monkeypatch):
    monkeypatch.setattr(pb, "Reply", _Unparsable)
    with pytest.raises(DecodeError, match="at most"):
        wire.decode_reply(b"x" * (wire.MAX_ENVELOPE + 101), max_bytes=100)


class _Unparsable:
    def ParseFromString(self, data):  # noqa: N802 - protobuf's name
        pytest.fail("parsed before its size was checked")


@pytest.mark.parametrize(
    "plan", ["", "[]", "{}", '{"training": 3}', "[" * 5000, '{"learning_rate_factor": {}}']
)
def test_bad_plans_are_refused(plan):
    _refuse(plan)


SEED_TABLE = '{"count":9,"distribution":"rademacher","entries":9,"first":0,"unit_bits":12}'
NOOP = ClientPlan(NoopTraining(kind="noop"), DenseCodec(kind="dense"))


@pytest.mark.parametrize(
    "more",
    [
        '"seeds":3',
        '"seeds":{}',
        '"seeds":[]',
        '"seeds":' + SEED_TABLE.replace("9", "0"),
        '"seeds":' + SEED_TABLE.replace('"count":9', '"count":9.0'),
        '"seeds":' + SEED_TABLE.replace('"count":9', '"count":true'),
        '"seeds":' + SEED_TABLE.replace('"entries":9', f'"entries":{2**26 + 1}'),
        '"seeds":' + SEED_TABLE.replace('"first":0', '"first":-1'),
        '"seeds":' + SEED_TABLE.replace('"unit_bits":12', '"unit_bits":101'),
        '"seeds":' + SEED_TABLE.replace("rademacher", "sparse"),
        '"seeds":' + SEED_TABLE.replace("}", ',"implied":1}'),
        '"seeds":' + SEED_TABLE.replace("}", ',"other":1}'),
        '"tensors":"a"',
        '"tensors":[0]',
        '"tensors":[1,"a"]',
        '"tensors":[0,"a",2,"b"]',
        '"tensors":[0,"a",0,"a"]',
        '"tensors":[0,""]',
        '"tensors":[0,7]',
        '"tensors":[-1,"a"]',
        f'"tensors":[0,"{"a" * 513}"]',
        '"rank":0',
        '"rank":1.5',
        '"rank":true',
        '"method":""',
        '"method":7',
        '"method":"a\\u001b"',
        f'"method":"{"m" * 65}"',
        '"another":1',
        *(
            f'"{name}":{value}'
            for name in ("learning_rate_factor", "clip_l2")
            for value in ("NaN", "Infinity", "-1e300", "-1", "true", '"1"', "1e31")
        ),
        '"learning_rate_factor":1.5',
        '"fisher":{"cap":NaN,"examples":1}',
        '"fisher":{"cap":2.0,"examples":0}',
        '"fisher":{"cap":2.0,"examples":1.5}',
        '"training":{"kind":"kseed","learning_rate":Infinity}',
        '"training":{"epsilon":NaN,"kind":"kseed","learning_rate":1}',
    ],
)
def test_a_plans_own_fields_are_checked(more):
    good = plan_json.plan_to_json(NOOP)
    plan_json.plan_from_json(good[:-1] + ',"seeds":' + SEED_TABLE + ',"tensors":[0,"a",1,"b"]}')
    _refuse(f"{good[:-1]},{more}}}")


def test_what_a_plan_leaves_out_costs_nothing():
    assert plan_json.plan_to_json(NOOP) == (
        '{"codec":{"dtype":"fp32","kind":"dense"},"learning_rate_factor":1.0,'
        '"training":{"kind":"noop","scale":0.001}}'
    )


def test_the_names_of_many_tensors_fit_into_an_envelope():
    layer = "base_model.model.bert.encoder.layer.{}.attention.self.{}.lora_{}.weight"
    names = sorted(layer.format(n, m, f) for n in range(48) for m in ("key", "query", "value") for f in "AB")
    plan = replace(NOOP, tensors=tuple(names))
    text = plan_json.plan_to_json(plan)
    assert plan_json.plan_from_json(text) == plan
    assert (
        '"tensors":[0,"base_model.model.bert.encoder.layer.0.attention.self.key.lora_A.weight",62,"B' in text
    )
    assert len(text) < 7_000 < sum(map(len, names)) / 2


@pytest.mark.parametrize(
    "device",
    [
        "x",
        "[]",
        "{}",
        "[" * 5000,
        '{"costs":{},"memory_bytes":1}',
        '{"costs":{},"memory_bytes":1,"threads":1,"more":1}',
        '{"costs":{},"memory_bytes":-1,"threads":1}',
        '{"costs":{},"memory_bytes":1.0,"threads":1}',
        '{"costs":[],"memory_bytes":1,"threads":1}',
        '{"costs":{},"memory_bytes":1,"threads":' + str(2**33) + "}",
        '{"costs":{"m":{"batch_size":1,"peak_bytes":1}},"memory_bytes":1,"threads":1}',
        '{"costs":{"m":{"batch_size":1,"peak_bytes":1,"step_s":NaN}},"memory_bytes":1,"threads":1}',
        '{"costs":{"m":{"batch_size":1,"peak_bytes":1,"step_s":Infinity}},"memory_bytes":1,"threads":1}',
        '{"costs":{"m":{"batch_size":1,"peak_bytes":1,"step_s":-0.5}},"memory_bytes":1,"threads":1}',
        '{"costs":{"m":{"batch_size":1,"peak_bytes":1,"step_s":1e-320}},"memory_bytes":1,"threads":1}',
        '{"costs":{"m":{"batch_size":1,"peak_bytes":1,"step_s":1'
        + "0" * 400
        + '}},"memory_bytes":1,"threads":1}',
        '{"costs":{"m":{"batch_size":1,"peak_bytes":1,"step_s":true}},"memory_bytes":1,"threads":1}',
        '{"costs":{"":{"batch_size":1,"peak_bytes":1,"step_s":0}},"memory_bytes":1,"threads":1}',
        '{"costs":{'
        + ",".join(f'"m{i}":{{"batch_size":1,"peak_bytes":1,"step_s":0}}' for i in range(65))
        + '},"memory_bytes":1,"threads":1}',
        " " * (plan_json.MAX_DEVICE + 1),
    ],
)
def test_bad_devices_are_refused(device):
    profile = pb.ClientProfile(client="ann", model_sha256="0" * 64, spec="0" * 64, device=device)
    with pytest.raises(DecodeError, match=r"profile\.device"):
        wire.decode_reply(pb.Reply(profile=profile).SerializeToString(), max_bytes=0)


def test_a_device_that_says_too_much_is_not_sent():
    costs = {"m" * 60 + str(i): MethodCost(1) for i in range(400)}
    profile = ClientProfile("ann", 1, 1, "0" * 64, "0" * 64, device=DeviceProfile(1, 1, costs))
    with pytest.raises(DecodeError, match="at most 32768 bytes"):
        wire.encode_reply(profile)


def test_as_many_methods_as_a_file_may_have_fit_with_the_longest_names():
    names = ["é" * (MAX_METHOD_NAME - 2) + f"{i:02}" for i in range(MAX_METHODS)]
    costs = {name: MethodCost(2**59 + 1, 1.2345678901234567, 2**20) for name in names}
    profile = ClientProfile("ann", 1, 1, "0" * 64, "0" * 64, device=DeviceProfile(2**59 + 1, 256, costs))
    assert wire.decode_reply(wire.encode_reply(profile), max_bytes=0).device.costs == costs


def _refuse(plan):
    message = pb.Request(
        train=pb.TrainRequest(
            run="r", client="c", spec="0" * 64, state_codec="d", state_sha256=b"0" * 32, plan=plan
        )
    )
    with pytest.raises(DecodeError, match=r"request\.plan"):
        wire.decode_request(message.SerializeToString(), b"")


def test_golden_bytes():
    data = wire.encode_reply(update(metrics={"loss": 0.5}, statistics={"fisher": Payload("lq", b"\x01")}))
    assert data.hex() == (
        "12aa010a017210011a03616e6e2240303030303030303030303030303030303030303030303030303030303030303030"
        "303030303030303030303030303030303030303030303030303030303030302a20111111111111111111111111111111"
        "111111111111111111111111111111111132120a0d64656e73652d667033322e76311201783a110a0666697368657212"
        "070a026c7112010140014801520f0a046c6f737311000000000000e03f"
    )


def test_golden_bytes_of_failures():
    """The same vectors as on the page."""
    full = ClientFailure.coded("ann", 7, Failure(FailureCode.DISK_FULL, (8_000_000, 512)), "r")
    assert wire.encode_reply(full).hex() == (
        "225c0a03616e6e10071a46746865206465766963652773206469736b2069732066756c6c3a20382c3030302c30303020"
        "627974657320617265206e656564656420616e64203531322061726520667265652201722811320680a4e8038004"
    )
    bare = pb.Reply(failure=pb.Failure(client="ann", round=7, reason="why")).SerializeToString()
    assert bare.hex() == "220c0a03616e6e10071a03776879"
    assert wire.decode_reply(bare, max_bytes=0).failure == UNSPECIFIED


@pytest.mark.parametrize(
    ("code", "numbers", "read"),
    [
        (0, [], UNSPECIFIED),
        (31, [], UNSPECIFIED),
        (2**32 - 1, [1], UNSPECIFIED),
        (int(FailureCode.DISK_FULL), [5], UNSPECIFIED),
        (int(FailureCode.DISK_FULL), [5, 6], Failure(FailureCode.DISK_FULL, (5, 6))),
        (int(FailureCode.DISK_FULL), [5, 6, 7] * 1000, Failure(FailureCode.DISK_FULL, (5, 6))),
        (int(FailureCode.DISK_FULL), [2**64 - 1, 6], Failure(FailureCode.DISK_FULL, (2**53, 6))),
        (int(FailureCode.UNKNOWN_RUN), [4], Failure(FailureCode.UNKNOWN_RUN)),
    ],
)
def test_a_code_that_is_not_known_is_unspecified_and_numbers_are_bounded(code, numbers, read):
    message = pb.Reply(failure=pb.Failure(client="ann", code=code, numbers=numbers))
    assert wire.decode_reply(message.SerializeToString(), max_bytes=0).failure == read


def test_odds_of_seeds_travel_and_only_whole():
    seeds = SeedPlan(0, 5, "rademacher", 15, 9, odds=bytes.fromhex("f0380f"))
    plan = ClientPlan(KseedTraining(kind="kseed"), DenseCodec(kind="dense"), seeds=seeds)
    text = plan_json.plan_to_json(plan)
    assert plan_json.plan_from_json(text) == plan
    for bad in ("8DgP8DgP", "8Dg", "8Dg=", "", "!!!!", 7, ["8DgP"], None):
        changed = json.dumps({**json.loads(text), "odds": bad})
        if bad is None:
            assert plan_json.plan_from_json(changed).seeds.odds == b""
        else:
            _refuse(changed)
