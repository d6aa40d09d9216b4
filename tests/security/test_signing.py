from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import pickle
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.supercore.primitives import asymmetric as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError, DecodeError, StorageError, UpdateRejected
from headwater.security import public_keys
from headwater.security.claims import signed_text
from headwater.security.signing import (
    Identity,
    PublicIdentity,
    RequestClaim,
    valid_name,
    verify_reply,
    verify_request,
)
from tests.privacy import edwards
from tests.security.people import ANN, BOB

REPLY = b"\x0a\x03any bytes\x00\xff"
REPLY_SIGNATURE = (
    "45e9f8737639d92d100c799fe927d7b51dbb638fa4eb05541c9d0ff78fd4909e"
    "8856dc0a2e6bfbc26b38b6ca857e194cecdaad3ae602bd5e2d9781b96706900e"
)
CLAIM = RequestClaim(
    client="ann",
    version="0.3.0",
    instance="00112233445566778899aabbccddeeff",
    time_ms=1_764_547_200_123,
    nonce="ffeeddccbbaa99887766554433221100",
    length=3,
    body_sha256=hashlib.sha256(b"abc").hexdigest(),
    signature=bytes.fromhex(
        "5a75b3cecda096c2c587b792f2e9292d7a97bf315889d8c5a81c71e1b55c481e"
        "97db19a1c9d0c4b78587f506095522bbd8d6504d0dcf3b64a61b3ecab027880f"
    ),
)
TARGET = {"method": "POST", "path": "/v1/fleet/pull-messages"}
REQUEST = {"body": b"abc", "instance": "ab" * 16, "version": "0.3.0", "now_ms": 12345}


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


# What is signed cannot be changed


def flipped(data: bytes, bit: int) -> bytes:
    bit %= 8 * len(data)
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


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


# Headers


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


# Public identities


@pytest.mark.parametrize("name", ["a", "edge-7", "0.x_Y-z", "a" * 64])
def test_names(name):
    assert valid_name(name)
    assert dataclasses.replace(ANN.public, name=name).binding()[1 : 1 + len(name)] == name.encode()


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", "²", "a" * 65, "a\0"])
def test_other_names_are_refused(name):
    with pytest.raises(DecodeError, match="enrolled name"):
        dataclasses.replace(ANN.public, name=name)
    with pytest.raises(ConfigError, match="name of this device"):
        Identity.create(name)


def test_a_fingerprint_depends_on_name_and_both_keys():
    changed = [
        dataclasses.replace(ANN.public, **{field: getattr(BOB.public, field)})
        for field in ("name", "signing_key", "node_key")
    ]
    prints = {public.fingerprint() for public in [ANN.public, BOB.public, *changed]}
    assert len(prints) == 5
    assert all(len(text) == 39 and text.count("-") == 7 for text in prints)


def test_a_long_node_key_is_not_parsed():
    with pytest.raises(DecodeError, match="got something else"):
        PublicIdentity("ann", ANN.public.signing_key, b"-" * 257)


def pem(key, form=serialization.PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, form)


NODE_PEM = ANN.public.node_key


@pytest.mark.parametrize(
    "node_key",
    [
        b"", b"x", b"\xff" * 200, NODE_PEM + b"\n", NODE_PEM[:-1], b"\n" + NODE_PEM,
        NODE_PEM.replace(b"\n", b"\r\n"), NODE_PEM * 2, NODE_PEM.replace(b"PUBLIC", b"PRIVATE"),
        pem(ec.derive_private_key(3, ec.SECP256R1()).public_key()), pem(ANN.signing_key.public_key()),
        pem(rsa.generate_private_key(65537, 1024).public_key()), b"A" * 10**7,
    ],
)  # fmt: skip
def test_other_node_keys_are_refused(node_key):
    with pytest.raises(DecodeError, match="node key of ann"):
        PublicIdentity("ann", ANN.public.signing_key, node_key)


@given(st.integers(0, 8 * len(NODE_PEM) - 1))
def test_a_node_key_has_one_form(bit):
    """A flipped bit is no key, or another key: never the same one in another spelling."""
    changed = flipped(NODE_PEM, bit)
    try:
        public = PublicIdentity("ann", ANN.public.signing_key, changed)
    except DecodeError:
        return
    assert public.binding() != ANN.public.binding()


def test_keys_of_small_order_are_refused():
    """With them anyone can sign, and OpenSSL says yes."""
    weak, y = {edwards.NEUTRAL}, 2
    while len(weak) < 8:
        point = edwards.point_with(y)
        if point is not None:
            torsion = edwards.multiply(edwards.ORDER, point)
            weak |= {edwards.multiply(n, torsion) for n in range(8)}
        y += 1
    assert all(edwards.multiply(8, point) == edwards.NEUTRAL for point in weak)
    assert {y % edwards.P for y in public_keys._SMALL_ORDER} == {point[1] for point in weak}

    neutral = edwards.encode(edwards.NEUTRAL)
    forged = neutral + bytes(32)
    Ed25519PublicKey.from_public_bytes(neutral).verify(forged, b"anything")  # does not raise
    for point in weak:
        for sign in (0, 1):
            key = bytearray(edwards.encode(point))
            key[31] = key[31] & 0x7F | sign << 7
            with pytest.raises(DecodeError, match=r"signing key of ann.*small order"):
                PublicIdentity("ann", bytes(key), NODE_PEM)


@pytest.mark.parametrize(
    "key", [b"", bytes(31), bytes(33), (2**255 - 19).to_bytes(32, "little"), b"\xff" * 32]
)
def test_other_signing_keys_are_refused(key):
    with pytest.raises(DecodeError, match="signing key of ann"):
        PublicIdentity("ann", key, NODE_PEM)


# Private keys, in memory and in files


def test_private_keys_go_into_no_log_and_no_other_process():
    assert repr(ANN) == str(ANN) == f"Identity('ann', {ANN.public.fingerprint()})"
    with pytest.raises(TypeError):
        pickle.dumps(ANN)


def test_keys_are_new_each_time():
    one, two = Identity.create("a").public, Identity.create("a").public
    assert one.signing_key != two.signing_key
    assert one.node_key != two.node_key


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    ANN.save(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_saved_and_loaded_with_the_right_rights(tmp_path, umask):
    folder = tmp_path / "deep" / "keys"
    folder.parent.mkdir()
    before = os.umask(umask)
    try:
        if umask == 0o277:  # a folder nobody may write into is no place for keys; files still are
            folder.mkdir()
            folder.chmod(0o700)
        ANN.save(folder)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        "signing.key": 0o600, "node.key": 0o600, "identity.json": 0o600,
    }  # fmt: skip
    assert Identity.load(folder).public == ANN.public
    signed = Identity.load(folder).sign_reply(REPLY)
    assert signed.hex() == REPLY_SIGNATURE


def test_a_file_is_closed_from_its_first_moment(tmp_path, monkeypatch):
    opened = []
    real = os.open

    def spy(path, flags, *rights, **others):
        handle = real(path, flags, *rights, **others)
        if flags & os.O_CREAT:
            opened.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", spy)
    before = os.umask(0)
    try:
        ANN.save(tmp_path / "keys")
    finally:
        os.umask(before)
    assert opened == [0o600] * 3


def test_openssl_reads_the_files(folder):
    for name, kind in (("signing.key", "ED25519"), ("node.key", "384 bit")):
        shown = subprocess.run(
            ["openssl", "pkey", "-in", name, "-noout", "-text_pub"], cwd=folder, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert kind in shown.stdout


@pytest.mark.parametrize("name", ["signing.key", "node.key", "identity.json"])
@pytest.mark.parametrize("rights", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777])
def test_keys_that_others_could_read_or_write_are_refused(folder, name, rights):
    (folder / name).chmod(rights)
    with pytest.raises(StorageError, match=rf"{name}: expected rights 0600.*got {rights:04o}.*chmod 600"):
        Identity.load(folder)


def test_a_folder_that_others_can_write_into_is_refused(folder):
    folder.chmod(0o755)
    Identity.load(folder)
    folder.chmod(0o770)
    with pytest.raises(StorageError, match=r"expected rights 0700.*got 0770.*chmod 700"):
        Identity.load(folder)


def test_keys_are_not_put_where_others_look(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "other").touch()
    with pytest.raises(StorageError, match=r"expected rights 0700.*got 0755"):
        ANN.save(tmp_path)
    (tmp_path / "other").unlink()
    ANN.save(tmp_path)
    assert mode(tmp_path) == 0o700


def test_keys_are_never_written_over(folder):
    ANN.save(folder)
    with pytest.raises(StorageError, match=r"those of ann.*never written over"):
        BOB.save(folder)
    assert Identity.load(folder).public == ANN.public


def test_a_save_that_was_cut_short_can_be_repeated(folder):
    (folder / "identity.json").unlink()
    with pytest.raises(StorageError, match=r"identity\.json.*headwater client enroll"):
        Identity.load(folder)
    BOB.save(folder)
    assert Identity.load(folder).public == BOB.public


@pytest.mark.parametrize("name", ["signing.key", "node.key", "identity.json"])
@pytest.mark.parametrize(
    "damage", [None, b"", b"\x00\xff", b"x" * 70_000, b"[" * 60_000, b"-----BEGIN PRIVATE KEY-----\n"]
)
def test_missing_or_damaged_keys(folder, name, damage):
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    with pytest.raises(StorageError, match=rf"{name}.*headwater client enroll"):
        Identity.load(folder)


def test_a_huge_file_is_not_read(folder):
    with (folder / "node.key").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match=r"node\.key: expected at most 65536 bytes"):
        Identity.load(folder)


def test_a_pipe_in_place_of_a_key_does_not_hang(folder):
    (folder / "node.key").unlink()
    os.mkfifo(folder / "node.key", 0o600)
    with pytest.raises(StorageError, match=r"node\.key.*expected a file"):
        Identity.load(folder)


def test_a_key_of_another_kind_or_device_is_refused(folder, tmp_path):
    signing, node = (folder / "signing.key").read_bytes(), (folder / "node.key").read_bytes()
    (folder / "signing.key").write_bytes(node)
    with pytest.raises(StorageError, match=r"signing\.key: expected an Ed25519 key"):
        Identity.load(folder)
    (folder / "signing.key").write_bytes(signing)
    (folder / "node.key").write_bytes(signing)
    with pytest.raises(StorageError, match=r"node\.key: expected a P-384 key"):
        Identity.load(folder)
    other_curve = ec.derive_private_key(3, ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "node.key").write_bytes(other_curve)
    with pytest.raises(StorageError, match=r"node\.key: expected a P-384 key"):
        Identity.load(folder)
    BOB.save(tmp_path / "bob")
    (folder / "node.key").write_bytes((tmp_path / "bob" / "node.key").read_bytes())
    with pytest.raises(StorageError, match="fingerprint"):
        Identity.load(folder)


@pytest.mark.parametrize(
    "facts", [[], 3, {}, {"name": 3, "fingerprint": "x"}, {"name": "a/b", "fingerprint": ""}]
)
def test_damaged_facts(folder, facts):
    (folder / "identity.json").write_text(json.dumps(facts))
    with pytest.raises(StorageError, match=r"identity\.json"):
        Identity.load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(StorageError, match="headwater client enroll"):
        Identity.load(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="got a file"):
        Identity.load(tmp_path / "file")
    with pytest.raises(StorageError, match="folder"):
        ANN.save(tmp_path / "file")


def test_a_full_disk_leaves_what_was_there(folder, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        ANN.save(folder)
    monkeypatch.undo()
    assert Identity.load(folder).public == ANN.public
    assert len(list(folder.iterdir())) == 3
