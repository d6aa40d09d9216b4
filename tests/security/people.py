"""Fixed identities for tests: their keys come from no entropy."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headwater.security.signing import Identity


def identity(name: str, seed: int) -> Identity:
    """Ed25519 seed: 32 bytes ``seed``; P-384 scalar: ``seed`` + 1."""
    return Identity(
        name,
        Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32),
        ec.derive_private_key(seed + 1, ec.SECP384R1()),
    )


ANN = identity("ann", 1)
BOB = identity("bob", 2)
