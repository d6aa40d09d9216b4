"""The headers of a signed request: whole and strict, or refused by name."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError, DecodeError
from headwater.security.signing import RequestClaim, verify_request
from tests.security.claims import CLAIM, REQUEST, TARGET
from tests.security.people import ANN


def test_headers_round_trip():
    headers = ANN.request_headers(**TARGET, **REQUEST)
    claim = RequestClaim.parse(headers)
    assert claim.headers() == headers
    assert claim == RequestClaim.read([(name.title().encode(), v.encode()) for name, v in headers.items()])
    assert (claim.client, claim.version, claim.instance) == ("ann", "0.3.0", "ab" * 16)
    assert (claim.time_ms, claim.length) == (12345, 3)
    assert claim.body_sha256 == hashlib.sha256(b"abc").hexdigest()
    verify_request(ANN.public, claim, **TARGET)


def test_each_request_has_a_nonce_of_its_own():
    claims = [RequestClaim.parse(ANN.request_headers(**TARGET, **REQUEST)) for _ in range(100)]
    assert len({claim.nonce for claim in claims}) == 100


@pytest.mark.parametrize(
    "change",
    [
        {"now_ms": -1}, {"now_ms": 10**16}, {"instance": "AB" * 16}, {"version": ""}, {"version": "0.3 "},
        {"path": "/a b"}, {"method": "post"}, {"path": "v1"},
    ],
)  # fmt: skip
def test_what_the_server_would_refuse_is_not_signed(change):
    with pytest.raises(ConfigError):
        ANN.request_headers(**{**TARGET, **REQUEST, **change})


HOSTILE = st.text(max_size=100) | st.text(alphabet="0123456789abcdefAB+-=/ \n\x00é²", max_size=100)


@given(st.dictionaries(st.sampled_from(sorted(CLAIM.headers())), HOSTILE | st.none(), min_size=1, max_size=3))
@settings(max_examples=300)
def test_any_headers_are_a_claim_or_a_decode_error(changes):
    headers = {**CLAIM.headers(), **changes}
    headers = {name: value for name, value in headers.items() if value is not None}
    try:
        claim = RequestClaim.parse(headers)
    except DecodeError:
        return
    assert claim.headers() == headers


@given(
    st.lists(
        st.tuples(
            st.sampled_from([name.encode() for name in CLAIM.headers()]) | st.binary(max_size=40),
            st.binary(max_size=100),
        )
    )
)
def test_any_raw_headers_are_a_claim_or_a_decode_error(pairs):
    with pytest.raises(DecodeError):  # eight right ones do not come by chance
        RequestClaim.read(pairs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client", ""), ("client", "a" * 65), ("client", "-a"), ("client", "a b"), ("client", "é"),
        ("client", "ann\n"), ("client", "ann, ann"), ("version", "v" * 33), ("version", "1\x00"),
        ("instance", "0" * 31), ("instance", "0" * 33), ("instance", "A" * 32),
        ("time", "-1"), ("time", "+1"), ("time", "1.5"), ("time", "1e3"), ("time", "01"), ("time", " 1"),
        ("time", "1_0"), ("time", "9" * 17), ("time", "²"), ("time", "٣"), ("time", ""),
        ("nonce", "g" * 32), ("length", "-3"), ("length", "0x3"), ("length", "9" * 5000),
        ("body", "0" * 63), ("body", "A" * 64), ("signature", ""), ("signature", "A" * 88),
        ("signature", "A" * 85 + "B=="), ("signature", "A" * 85 + "-=="), ("signature", "A" * 10_000_000),
    ],
)  # fmt: skip
def test_hostile_headers(field, value):
    if value == "A" * 85 + "B==":  # bits beyond the end: two spellings of one signature
        assert len(base64.b64decode(value)) == 64
    with pytest.raises(DecodeError, match=f"header x-headwater-{field}") as caught:
        RequestClaim.parse({**CLAIM.headers(), f"x-headwater-{field}": value})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("field", sorted(CLAIM.headers()))
def test_missing_and_repeated_headers(field):
    headers = CLAIM.headers()
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert RequestClaim.read([*pairs, (b"Accept", b"a"), (b"accept", b"\xff")]) == CLAIM
    with pytest.raises(DecodeError, match=f"{field}.*expected one, got several"):
        RequestClaim.read([*pairs, (field.upper().encode(), headers[field].encode())])
    del headers[field]
    with pytest.raises(DecodeError, match=f"header {field}: .*got none"):
        RequestClaim.parse(headers)
