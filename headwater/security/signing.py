"""Signing: who a device is, and what it signs. Entry points: :class:`Identity`, :func:`verify_reply`.

A device has two keys under one enrolled name. The *signing key* (Ed25519, RFC 8032) signs replies and
requests; the *node key* (ECDSA on P-384 with SHA-256) is the one by which Flower knows a node. Both come
from the operating system's entropy, never from the federation's seed, and do not leave the device.
Every signed text begins with its own line of domain, so that no signature counts for another use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headwater.errors import ConfigError, DecodeError, StorageError, UpdateRejected
from headwater.security import public_keys
from headwater.security.claims import NAME_RULE, RequestClaim, signed_text, valid_name, valid_target
from headwater.security.keyfiles import check_folder, read_secret, secret_folder, write_secret

__all__ = [
    "NAME_RULE", "Identity", "PublicIdentity", "RequestClaim", "valid_name", "verify_reply", "verify_request",
]  # fmt: skip

REPLY_DOMAIN = b"headwater reply v1\0"
IDENTITY_DOMAIN = b"headwater identity v1\0"
SUM_DOMAINS = b"headwater secagg keys v1\0", b"headwater secagg list v1\0"

_TIMESTAMP = re.compile(r"[0-9][0-9T:.+Z-]{0,63}")
_LOST = (
    "Restore the folder from a backup of this device, or make new keys with `headwater client enroll` "
    "in another folder and have the organiser revoke the old name's keys and accept the new ones."
)


@dataclass(frozen=True)
class PublicIdentity:
    """What others know of a device.

    Args:
        name: the enrolled name, see :data:`NAME_RULE`.
        signing_key: the Ed25519 public key, 32 bytes as in RFC 8032.
        node_key: the P-384 public key as PEM (SubjectPublicKeyInfo), byte for byte as Flower writes it.

    Raises:
        DecodeError: the name or a key is not what it should be, or not in its one form.
    """

    name: str
    signing_key: bytes
    node_key: bytes

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise DecodeError("enrolled name", expected=NAME_RULE, got=ascii(self.name[:64]))
        public_keys.check_signing_key(self.signing_key, f"signing key of {self.name}")
        public_keys.point_of(self.node_key, f"node key of {self.name}")

    def binding(self) -> bytes:
        """Name and both keys in one unambiguous text: length of the name (1 B), name, 32 B, 97 B."""
        name = self.name.encode("ascii")
        point = public_keys.point_of(self.node_key, f"node key of {self.name}")
        return bytes([len(name)]) + name + self.signing_key + point

    def fingerprint(self) -> str:
        """For people to compare: 128 bits of a SHA-256 over name and both keys, as ``1a2b-3c4d-…``."""
        digest = hashlib.sha256(IDENTITY_DOMAIN + self.binding()).hexdigest()
        return "-".join(digest[at : at + 4] for at in range(0, 32, 4))


@dataclass(frozen=True, eq=False, repr=False)
class Identity:
    """A device's private keys under its name.

    It cannot be pickled, and its ``repr`` shows no key: it goes into no log and no other process.

    Args:
        name: the enrolled name, see :data:`NAME_RULE`.
        signing_key: Ed25519.
        node_key: P-384.

    Raises:
        ConfigError: the name cannot be enrolled, or the node key is on another curve.
    """

    name: str
    signing_key: Ed25519PrivateKey
    node_key: ec.EllipticCurvePrivateKey

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise ConfigError(
                "name of this device", expected=NAME_RULE, got=ascii(self.name[:64]),
                hint="Choose another name.",
            )  # fmt: skip
        if not isinstance(self.node_key.curve, ec.SECP384R1):
            raise ConfigError(f"node key of {self.name}", expected="P-384", got=self.node_key.curve.name)

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {self.public.fingerprint()})"

    @staticmethod
    def create(name: str) -> Identity:
        """New keys from the operating system's entropy."""
        return Identity(name, Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1()))

    @property
    def public(self) -> PublicIdentity:
        """What others may know."""
        return PublicIdentity(
            self.name,
            self.signing_key.public_key().public_bytes_raw(),
            public_keys.pem_of_key(self.node_key.public_key()),
        )

    def save(self, folder: Path) -> None:
        """Write ``signing.key``, ``node.key`` and ``identity.json`` (0600) into ``folder`` (0700).

        Raises:
            StorageError: it cannot be written, others may look into the folder, or it holds other keys.
        """
        secret_folder(folder)
        facts = folder / "identity.json"
        mine = {"name": self.name, "fingerprint": self.public.fingerprint()}
        if facts.exists():
            found = _read_facts(folder)
            if found != mine:
                raise StorageError(
                    f"keys in {folder}",
                    expected=f"none yet, or those of {self.name}",
                    got=f"those of {found['name']}, {found['fingerprint']}",
                    hint="Keys are never written over: name another folder, or move these away.",
                )
        for name, key in (("signing.key", self.signing_key), ("node.key", self.node_key)):
            pem = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            write_secret(folder / name, pem)
        # last: a folder without it holds no identity yet
        write_secret(facts, json.dumps(mine, indent=1).encode() + b"\n")

    @staticmethod
    def load(folder: Path) -> Identity:
        """The identity that :meth:`save` wrote into ``folder``.

        Raises:
            StorageError: something is missing, damaged or of another device, or others may read it.
        """
        check_folder(folder, hint=_LOST)
        facts = _read_facts(folder)
        signing = _read_key(folder / "signing.key")
        node = _read_key(folder / "node.key")
        if not isinstance(signing, Ed25519PrivateKey):
            raise StorageError(str(folder / "signing.key"), expected="an Ed25519 key", got="another kind")
        if not isinstance(node, ec.EllipticCurvePrivateKey) or not isinstance(node.curve, ec.SECP384R1):
            raise StorageError(str(folder / "node.key"), expected="a P-384 key", got="another kind")
        identity = Identity(facts["name"], signing, node)
        if identity.public.fingerprint() != facts["fingerprint"]:
            raise StorageError(
                f"keys in {folder}",
                expected=f"those with the fingerprint {facts['fingerprint']}",
                got=identity.public.fingerprint(),
                hint=_LOST,
            )
        return identity

    def sign_reply(self, reply: bytes) -> bytes:
        """The 64 bytes of the signature over ``"headwater reply v1" NUL reply``."""
        return self.signing_key.sign(REPLY_DOMAIN + reply)

    def sign_sum(self, text: bytes) -> bytes:
        """The 64 bytes of the signing key's signature over a text of a masked sum.

        Raises:
            ConfigError: the text is no such text.
        """
        if not text.startswith(SUM_DOMAINS):
            raise ConfigError("masked sum", expected="keys or a list to sign", got="another text")
        return self.signing_key.sign(text)

    def sign_timestamp(self, text: str) -> bytes:
        """The node key's signature (DER) over an ISO 8601 time, for Flower's node authentication.

        Raises:
            ConfigError: ``text`` is no time: with this key nothing else of a caller's choice is signed.
        """
        if _TIMESTAMP.fullmatch(text) is None:
            raise ConfigError("time to sign", expected="ISO 8601", got=ascii(text[:64]))
        return self.node_key.sign(text.encode("ascii"), ec.ECDSA(hashes.SHA256()))

    def request_headers(
        self, *, method: str, path: str, body: bytes, instance: str, version: str, now_ms: int
    ) -> dict[str, str]:
        """The headers that make a request ours, with a fresh nonce.

        Args:
            method: in capitals.
            path: from ``/`` on, as the server sees it; no query.
            body: the whole body.
            instance: of this process, 16 bytes in lower-case hex.
            version: of this headwater.
            now_ms: Unix milliseconds by the server's clock, as far as it is known.

        Raises:
            ConfigError: an argument that the server would refuse.
        """
        if not valid_target(method, path):
            raise ConfigError("request to sign", expected="a method and a path", got=ascii((method, path)))
        draft = RequestClaim(
            client=self.name,
            version=version,
            instance=instance,
            time_ms=now_ms,
            nonce=secrets.token_hex(16),
            length=len(body),
            body_sha256=hashlib.sha256(body).hexdigest(),
            signature=bytes(public_keys.SIGNATURE_BYTES),
        )
        try:
            RequestClaim.parse(draft.headers())
        except DecodeError as error:
            raise ConfigError(error.who, expected=error.expected, got=error.got) from error
        signature = self.signing_key.sign(signed_text(draft, method=method, path=path))
        return dataclasses.replace(draft, signature=signature).headers()


def verify_reply(public: PublicIdentity, reply: bytes, signature: bytes) -> None:
    """Raise :class:`UpdateRejected` unless ``public`` signed ``reply``."""
    if not public_keys.verify_ed25519(public.signing_key, signature, REPLY_DOMAIN + reply):
        raise UpdateRejected(
            f"reply of {public.name}",
            expected="a signature by its enrolled key",
            got="another signature",
            hint="The reply was altered, or its device has other keys than those that were accepted.",
        )


def verify_request(public: PublicIdentity, claim: RequestClaim, *, method: str, path: str) -> None:
    """Raise :class:`UpdateRejected` unless ``public`` signed ``claim`` for this method and path.

    Says nothing of time, nonce, instance, version or body: those are the request authenticator's.
    """
    who = f"request of {public.name}"
    if claim.client != public.name:
        raise UpdateRejected(who, expected="its own name", got=ascii(claim.client[:64]))
    if not valid_target(method, path):
        raise UpdateRejected(who, expected="a method and a path", got=ascii((method[:16], path[:64])))
    text = signed_text(claim, method=method, path=path)
    if not public_keys.verify_ed25519(public.signing_key, claim.signature, text):
        raise UpdateRejected(
            who,
            expected="a signature by its enrolled key over this request",
            got="another signature",
            hint="The request was altered, or its device has other keys than those that were accepted.",
        )


def _read_facts(folder: Path) -> dict[str, str]:
    data = read_secret(folder / "identity.json", hint=_LOST)
    try:
        facts = json.loads(data)
        if set(facts) == {"name", "fingerprint"} and valid_name(facts["name"]):
            return {"name": str(facts["name"]), "fingerprint": str(facts["fingerprint"])}
    except (ValueError, TypeError, RecursionError):
        pass
    raise StorageError(str(folder / "identity.json"), expected="a name and a fingerprint", hint=_LOST)


def _read_key(path: Path) -> object:
    data = read_secret(path, hint=_LOST)
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError(str(path), expected="a private key in PEM", got="none", hint=_LOST) from error
