"""Signatures of replies and requests: golden vectors, other implementations, and what no signature covers."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.primitives import asymmetric as flower
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError, DecodeError, UpdateRejected
from headwater.security import public_keys
from headwater.security.claims import signed_text
from headwater.security.signing import (
    Identity,
    RequestClaim,
    verify_reply,
    verify_request,
)
from tests.security.claims import CLAIM, REPLY, REPLY_SIGNATURE, REQUEST, TARGET, flipped
from tests.security.people import ANN, BOB

# Golden vectors: who reimplements this has them to hold on to; docs/reference/identity.md shows them.


def test_golden_reply():
    assert ANN.sign_reply(REPLY).hex() == REPLY_SIGNATURE
    verify_reply(ANN.public, REPLY, bytes.fromhex(REPLY_SIGNATURE))


def test_golden_request():
    text = (
        b"headwater request v1\nPOST\n/v1/fleet/pull-messages\nann\n0.3.0\n00112233445566778899aabbccddeeff\n"
        b"1764547200123\nffeeddccbbaa99887766554433221100\n3\n"
        b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert signed_text(CLAIM, **TARGET) == text
    assert ANN.signing_key.sign(text) == CLAIM.signature
    verify_request(ANN.public, CLAIM, **TARGET)


def test_golden_identity():
    assert ANN.public.signing_key.hex() == "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
    assert ANN.public.binding() == (
        b"\x03ann" + ANN.public.signing_key + b"\x04"
        + (0x08D999057BA3D2D969260045C55B97F089025959A6F434D651D207D19FB96E9E4FE0E86EBE0E64F85B96A9C75295DF61)
        .to_bytes(48, "big")
        + (0x8E80F1FA5B1B3CEDB7BFE8DFFD6DBA74B275D875BC6CC43E904E505F256AB4255FFD43E94D39E22D61501E700A940E80)
        .to_bytes(48, "big")
    )  # fmt: skip
    # the point above is 2·G of P-384, from NIST's "Mathematical routines for the NIST prime elliptic curves"
    assert ANN.public.fingerprint() == "7449-410d-2f89-0d02-0645-9ea1-6500-417d"


# Oracles


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [  # RFC 8032 section 7.1
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_rfc_8032(seed, public, message, signature):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
    assert Identity("rfc", key, ANN.node_key).public.signing_key.hex() == public
    assert public_keys.verify_ed25519(bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message))
    assert not public_keys.verify_ed25519(
        bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message) + b"\0"
    )


def test_openssl_verifies_a_reply(tmp_path):
    pem = ANN.signing_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "text").write_bytes(b"headwater reply v1\0" + REPLY)
    (tmp_path / "signature").write_bytes(ANN.sign_reply(REPLY))
    command = [
        "openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "text",
        "-sigfile", "signature",
    ]  # fmt: skip
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "text").write_bytes(b"headwater reply v1\0" + REPLY + b"\0")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_flower_accepts_the_node_key():
    key = flower.bytes_to_public_key(ANN.public.node_key)
    assert ANN.public.node_key == flower.public_key_to_bytes(ANN.node_key.public_key())
    assert flower.uses_nist_ec_curve(key)
    time = "2026-11-22T10:11:12.123456+00:00"
    signature = ANN.sign_timestamp(time)
    assert flower.verify_signature(key, time.encode("ascii"), signature)
    assert not flower.verify_signature(key, time.replace("12.1", "13.1").encode("ascii"), signature)


@pytest.mark.parametrize("text", ["", "headwater enrol v1\0", "1\n2", "é", "1" * 65, "2026-11-22 10:11"])
def test_the_node_key_signs_times_only(text):
    with pytest.raises(ConfigError, match="time to sign"):
        ANN.sign_timestamp(text)


@given(reply=st.binary(min_size=1, max_size=100), bit=st.integers(0, 10**6))
def test_a_flipped_bit_of_a_reply_or_signature_is_refused(reply, bit):
    signature = ANN.sign_reply(reply)
    verify_reply(ANN.public, reply, signature)
    for changed, proof in ((flipped(reply, bit), signature), (reply, flipped(signature, bit))):
        with pytest.raises(UpdateRejected, match="reply of ann"):
            verify_reply(ANN.public, changed, proof)


@given(st.binary(max_size=80))
def test_any_other_signature_is_refused(signature):
    with pytest.raises(UpdateRejected, match="reply of ann"):
        verify_reply(ANN.public, REPLY, signature)


def test_another_clients_reply_is_refused():
    with pytest.raises(UpdateRejected, match="reply of ann"):
        verify_reply(ANN.public, REPLY, BOB.sign_reply(REPLY))


@given(field=st.sampled_from(sorted(CLAIM.headers())), bit=st.integers(0, 10**6))
def test_a_flipped_bit_of_a_header_is_refused(field, bit):
    headers = CLAIM.headers()
    headers[field] = flipped(headers[field].encode("latin-1"), bit).decode("latin-1")
    with pytest.raises((DecodeError, UpdateRejected)):
        verify_request(ANN.public, RequestClaim.parse(headers), **TARGET)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "0.3.1"}, {"instance": "00" * 16}, {"time_ms": 0}, {"nonce": "00" * 16}, {"length": 4},
        {"body_sha256": "00" * 32}, {"signature": bytes(64)}, {"client": "bob"},
    ],
)  # fmt: skip
def test_every_field_is_signed(change):
    """The flipped bits above mostly die as bad headers; these are well formed."""
    claim = dataclasses.replace(CLAIM, **change)
    with pytest.raises(UpdateRejected, match="request of ann"):
        verify_request(ANN.public, RequestClaim.parse(claim.headers()), **TARGET)


@pytest.mark.parametrize(
    "target",
    [
        {"method": "GET"}, {"path": "/v1/fleet/push-messages"}, {"path": "/v1/fleet/pull-messages?x"},
        {"path": "/v1/fleet/pull-messages\nann"}, {"method": "post"}, {"method": "", "path": ""},
        {"path": "/é"}, {"path": "\ud800"}, {"path": "/" + "x" * 256},
    ],
)  # fmt: skip
def test_another_method_or_path_is_refused(target):
    with pytest.raises(UpdateRejected, match="request of ann"):
        verify_request(ANN.public, CLAIM, **{**TARGET, **target})


def test_another_clients_request_is_refused():
    own = RequestClaim.parse(BOB.request_headers(**TARGET, **REQUEST))
    verify_request(BOB.public, own, **TARGET)
    with pytest.raises(UpdateRejected, match="request of ann: expected its own name, got 'bob'"):
        verify_request(ANN.public, own, **TARGET)
    with pytest.raises(UpdateRejected, match="signature"):
        verify_request(ANN.public, dataclasses.replace(own, client="ann"), **TARGET)


def test_a_signature_counts_for_one_use():
    """Neither a reply nor a request can be passed off as the other."""
    text = signed_text(CLAIM, **TARGET)
    with pytest.raises(UpdateRejected):
        verify_reply(ANN.public, text, ANN.signing_key.sign(text))
    with pytest.raises(UpdateRejected):
        verify_request(ANN.public, dataclasses.replace(CLAIM, signature=ANN.sign_reply(text)), **TARGET)
