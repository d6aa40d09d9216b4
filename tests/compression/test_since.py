"""``since.v1``: a state as what was added to one that the receiver has."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.compression.compeft import CompeftCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.since import MOST, SINCE, add_up, encode_since, name_of, read_since, since_bytes
from headwater.compression.table import codec_by_id
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec.of([TensorSpec("v", (100,), "vector")])
KEY = Key.root(1)
NAME = "00112233445566ff"


def state(seed: int) -> AdapterState:
    return AdapterState.from_vector(SPEC, torch.randn(100, generator=torch.Generator().manual_seed(seed)))


def increments(count: int) -> list[Payload]:
    return [CompeftCodec(0.1, None).encode(state(i), key=KEY) for i in range(count)]


def test_the_layout_is_that_of_the_page():
    assert encode_since(NAME, []).body.hex() == "01" + NAME + "00"
    body = encode_since(NAME, [Payload("dense-fp32.v1", b"\1\2\3\4")]).body
    assert body.hex() == "01" + NAME + "01" + "0d" + b"dense-fp32.v1".hex() + "04" + "01020304"
    assert name_of(hashlib.sha256(b"x").hexdigest()) == hashlib.sha256(b"x").digest()[:8].hex()


@given(st.integers(0, 5))
def test_what_goes_in_comes_out_and_its_length_is_known(count):
    parts = increments(count)
    payload = encode_since(NAME, parts)
    assert read_since(payload, SPEC) == (NAME, parts)
    assert since_bytes(parts) == len(payload.body)


def test_the_receiver_has_the_senders_bits():
    base, parts = state(9), increments(3)
    wanted = base
    for one in parts:
        wanted = wanted + codec_by_id(one.codec).decode(one, SPEC)
    assert add_up(base, parts, codec_by_id).sha256() == wanted.sha256() != base.sha256()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "02" + NAME + "00",
        "01" + NAME[:-2],
        "01" + NAME,
        "01" + NAME + "8000",  # padded
        "01" + NAME + "01",
        "01" + NAME + "0002",
        "01" + NAME + "01" + "41" + "61" * 65 + "00",  # an id that is too long
        "01" + NAME + "01" + "01ff" + "00",  # no ASCII
        "01" + NAME + "01" + "0161" + "02ff",
        "01" + NAME + "8102" + "016100" * 257,
    ],
)
def test_other_bytes_are_refused(body):
    with pytest.raises(DecodeError):
        read_since(Payload(SINCE, bytes.fromhex(body)), SPEC)


def test_a_body_that_is_longer_than_the_state_is_refused_unread():
    dense = DenseCodec("fp32").encode(state(1), key=KEY)
    with pytest.raises(DecodeError, match="at most"):
        read_since(encode_since(NAME, [dense]), SPEC)
    assert len(encode_since(NAME, [Payload("a", b"")] * MOST).body) < 5 * MOST
    with pytest.raises(DecodeError, match="codec"):
        read_since(dense, SPEC)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_state_or_refused(body):
    try:
        name, parts = read_since(Payload(SINCE, body), SPEC)
        assert encode_since(name, parts).body == body  # there is one encoding
        add_up(state(1), parts, codec_by_id)
    except DecodeError:
        pass


def test_a_sum_that_is_not_finite_is_refused():
    huge = AdapterState.from_vector(SPEC, torch.full((100,), 3e38))
    part = DenseCodec("fp32").encode(huge, key=KEY)
    with pytest.raises(DecodeError, match="finite"):
        add_up(huge, [part], codec_by_id)
