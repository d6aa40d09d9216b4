"""Key agreement and sealed texts: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from headwater.errors import UpdateRejected
from headwater.security.secagg.secret import Secret

PUBLIC_BYTES = 32
NONCE_BYTES = 12
SEAL_BYTES = NONCE_BYTES + 16
"""What a sealed text is longer by."""


@dataclass(frozen=True, eq=False, repr=False)
class AgreementKey:
    """A pair of X25519 keys of one round.

    Args:
        secret: the private key.
    """

    secret: Secret

    @staticmethod
    def create() -> AgreementKey:
        """A new pair."""
        return AgreementKey(Secret.create())

    @cached_property
    def _private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.secret.value)

    @cached_property
    def public(self) -> bytes:
        """The 32 bytes that others may know."""
        return self._private.public_key().public_bytes_raw()

    def agree(self, public: bytes, info: bytes, who: str) -> bytes:
        """32 bytes that only the holders of the two private keys know: HKDF of the shared point.

        Args:
            public: the other's.
            info: what they are for; both must say the same.
            who: whose key it is, for the message.

        Raises:
            UpdateRejected: the other's key is a point of small order, with which nothing is secret.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise UpdateRejected(
                who, expected="an X25519 public key", got="a point of small order or of another length"
            ) from error
        return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(shared)


def seal(key: bytes, text: bytes, bound_to: bytes) -> bytes:
    """``text`` encrypted and authenticated, with a nonce from the operating system before it."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, bound_to)


def unseal(key: bytes, sealed: bytes, bound_to: bytes, who: str) -> bytes:
    """The inverse of :func:`seal`.

    Raises:
        UpdateRejected: ``who`` did not seal this with the key, for this use.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)
    except (InvalidTag, ValueError) as error:
        raise UpdateRejected(
            who, expected="shares sealed for this client, round and list", got="others"
        ) from error
