"""The server's key for receipts: :class:`ReceiptKey`, and who vouches for it.

The key is Ed25519 and signs nothing but receipts. Of a server with an authority, the authority's key signs it
(ECDSA on P-256 over a text of its own), so that whoever holds ``ca.pem`` knows whose receipts they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headwater.errors import StorageError
from headwater.security.certificates import Authority
from headwater.security.keyfiles import read_secret, write_secret
from headwater.security.public_keys import check_signing_key, verify_ed25519

KEY_DOMAIN = b"headwater receipt key v1\0"
_LOST = "Restore it from a backup, or remove it: a new key is made, and receipts go on under that one."


@dataclass(frozen=True, eq=False, repr=False)
class ReceiptKey:
    """What signs receipts. Its ``repr`` shows no key.

    Args:
        key: the private key.
        authority: SHA-256 of the certificate of who vouches for it; empty without one.
        attestation: that authority's signature over the public key, in hex; empty without one.
    """

    key: Ed25519PrivateKey
    authority: str = ""
    attestation: str = ""

    def __repr__(self) -> str:
        return f"ReceiptKey({self.public[:16]}…)"

    @property
    def public(self) -> str:
        """The public key, 32 bytes in hex."""
        return self.key.public_key().public_bytes_raw().hex()

    def sign(self, text: bytes) -> bytes:
        """64 bytes."""
        return self.key.sign(text)

    @staticmethod
    def of_file(path: Path) -> ReceiptKey:
        """The key in ``path`` (0600), which is made from the operating system's entropy if absent.

        Raises:
            StorageError: it is no such key, others may read it, or it cannot be written.
        """
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            write_secret(path, pem)
            return ReceiptKey(key)
        try:
            found = serialization.load_pem_private_key(read_secret(path, hint=_LOST), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StorageError(str(path), expected="an Ed25519 key", got="none", hint=_LOST) from error
        if not isinstance(found, Ed25519PrivateKey):
            raise StorageError(str(path), expected="an Ed25519 key", got="another kind", hint=_LOST)
        return ReceiptKey(found)

    def vouched_for(self, authority: Authority) -> ReceiptKey:
        """With the authority's signature over it."""
        public = self.key.public_key().public_bytes_raw()
        attestation = authority.key.sign(KEY_DOMAIN + public, ec.ECDSA(hashes.SHA256()))
        return ReceiptKey(self.key, fingerprint(authority.certificate_pem), attestation.hex())


def fingerprint(ca_pem: bytes) -> str:
    """SHA-256 of a certificate, in hex.

    Raises:
        StorageError: no certificate.
    """
    return _certificate(ca_pem).fingerprint(hashes.SHA256()).hex()


def vouches(ca_pem: bytes, key: bytes, attestation: bytes) -> bool:
    """Whether the authority of this certificate signed this receipt key.

    Raises:
        StorageError: no certificate.
    """
    public = _certificate(ca_pem).public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return False
    try:
        public.verify(attestation, KEY_DOMAIN + key, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def verify_receipt(key: bytes, signature: bytes, text: bytes) -> bool:
    """Whether the receipt key signed the text.

    Raises:
        DecodeError: the key is one for which anyone can sign.
    """
    check_signing_key(key, "receipt's key")
    return verify_ed25519(key, signature, text)


def short(key: str) -> str:
    """For people to compare: 128 bits of a SHA-256 over the key, as ``1a2b-3c4d-…``."""
    digest = hashlib.sha256(KEY_DOMAIN + bytes.fromhex(key)).hexdigest()
    return "-".join(digest[at : at + 4] for at in range(0, 32, 4))


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise StorageError("ca.pem", expected="a certificate in PEM", got="something else") from error
