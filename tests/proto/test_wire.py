"""Messages survive the wire; hostile bytes are a DecodeError; equal messages have equal bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config.federation import CompeftCodec, DenseCodec
from headwater.config.training import BackpropTraining, NoopTraining
from headwater.errors import DecodeError
from headwater.proto import wire
from headwater.proto.v1 import messages_pb2 as pb
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    ClientProfile,
    EncodedUpdate,
    EvaluateRequest,
    Evaluation,
    FisherPlan,
    Payload,
    ProfileRequest,
    TrainRequest,
)

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=wire.MAX_NAME).filter(
    str.isprintable
)
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
COUNTS = st.integers(0, 2**32)
ROUNDS = st.integers(0, 2**32 - 1)
BODIES = st.binary(max_size=200)
PAYLOADS = st.builds(Payload, NAMES, BODIES)
METRICS = st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=5)
PLANS = st.builds(
    ClientPlan,
    training=st.sampled_from([NoopTraining(kind="noop"), BackpropTraining(kind="backprop", epochs=0.5)]),
    codec=st.sampled_from([DenseCodec(kind="dense"), CompeftCodec(kind="compeft", alpha=2.0)]),
    learning_rate_factor=st.floats(0, 1),
    clip_l2=st.none() | st.floats(0.1, 10),
    fisher=st.none() | st.builds(FisherPlan, st.integers(1, 9), st.floats(1.5, 100)),
)
REQUESTS = st.one_of(
    st.builds(ProfileRequest, NAMES),
    st.builds(TrainRequest, NAMES, ROUNDS, NAMES, HEX, HEX, PAYLOADS, ROUNDS, PLANS),
    st.builds(EvaluateRequest, NAMES, ROUNDS, NAMES, HEX, HEX, PAYLOADS),
)
REPLIES = st.one_of(
    st.builds(ClientProfile, NAMES, COUNTS, COUNTS, HEX, HEX),
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
    st.builds(ClientFailure, NAMES, ROUNDS, st.text(st.characters(categories=("L",)), max_size=50)),
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
