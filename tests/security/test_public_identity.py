"""Names and public keys: which are taken, and their fingerprint."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError, DecodeError
from headwater.security import public_keys
from headwater.security.signing import Identity, PublicIdentity, valid_name
from tests.privacy import edwards
from tests.security.claims import flipped
from tests.security.people import ANN, BOB


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
