"""Public keys as bytes, each in the one form that is accepted: no key has two spellings.

An Ed25519 key is its 32 bytes (RFC 8032); a P-384 key is the PEM that Flower writes (SubjectPublicKeyInfo)
or, where it must be short, its uncompressed SEC 1 point of 97 bytes.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from headwater.errors import DecodeError

SIGNING_KEY_BYTES = 32
SIGNATURE_BYTES = 64
POINT_BYTES = 97
MAX_NODE_KEY_BYTES = 256

_P = 2**255 - 19
# y of the points whose order divides 8: with such a key anyone can make valid signatures
# (Brendel, Cremers, Jackson, Zhao 2020: The Provable Security of Ed25519, section 5)
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


def check_signing_key(key: bytes, who: str) -> None:
    """Raise :class:`DecodeError` for ``who`` unless ``key`` is an Ed25519 public key of large order."""
    problem = ""
    if len(key) != SIGNING_KEY_BYTES:
        problem = f"{len(key)} bytes"
    else:
        y = int.from_bytes(key, "little") & (2**255 - 1)
        if y >= _P:
            problem = "a number beyond the field"
        elif y in _SMALL_ORDER:
            problem = "a point of small order, for which anyone can sign"
    if problem:
        raise DecodeError(
            who, expected="an Ed25519 public key of 32 bytes", got=problem, hint="Enrol with new keys."
        )


def verify_ed25519(key: bytes, signature: bytes, text: bytes) -> bool:
    """Whether ``signature`` over ``text`` was made with the Ed25519 ``key``. False on any odd bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_node(point: bytes, signature: bytes, text: bytes) -> bool:
    """Whether ``signature`` (DER) over ``text`` was made with the P-384 key ``point``: ECDSA, SHA-256."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        key.verify(signature, text, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def point_of(node_key: bytes, who: str) -> bytes:
    """The 97 bytes of a P-384 public key in PEM.

    Raises:
        DecodeError: another kind of key, or a PEM that is not byte for byte as Flower writes it.
    """
    problem = "something else"
    if len(node_key) <= MAX_NODE_KEY_BYTES:
        try:
            key = serialization.load_pem_public_key(node_key)
        except (ValueError, UnsupportedAlgorithm):
            problem = "no public key"
        else:
            if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
                if pem_of_key(key) == node_key:
                    return key.public_bytes(
                        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
                    )
                problem = "one in another form"
            else:
                problem = "a key of another kind"
    raise DecodeError(
        who, expected="a P-384 public key in PEM, as Flower writes it", got=problem,
        hint="Enrol with new keys.",
    )  # fmt: skip


def pem_of_point(point: bytes, who: str) -> bytes:
    """The PEM of the P-384 public key with this uncompressed point; inverse of :func:`point_of`.

    Raises:
        DecodeError: wrong length, or not a point of the curve.
    """
    try:
        if len(point) != POINT_BYTES:
            raise ValueError("length")
        return pem_of_key(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point))
    except ValueError as error:
        raise DecodeError(
            who, expected=f"a point of P-384 in {POINT_BYTES} bytes", got="other bytes",
            hint="Enrol with new keys.",
        ) from error  # fmt: skip


def pem_of_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """PEM, SubjectPublicKeyInfo: the bytes of ``flwr.supercore.primitives.asymmetric``."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
