"""Certificates of a federation's own authority. Entry point: :meth:`Authority.create`.

The authority lives in the organiser's folder and signs two kinds of certificates: the *server's*, which
agents check by name or address, and an *organiser's*, which opens the control port. Neither stands for
the other (extended key usage, RFC 5280 4.2.1.12), and the authority cannot make further authorities.
Agents trust this authority alone and no public one. All keys are ECDSA on P-256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headwater.errors import ConfigError, StorageError
from headwater.security import x509_profile as profile
from headwater.security.keyfiles import check_folder, read_secret, secret_folder, write_secret

AUTHORITY_DAYS = 3652
SERVER_DAYS = 398
ORGANISER_DAYS = 398

_LOST = (
    "Restore it from a backup with `headwater server restore`. Without one, no certificate can be renewed: "
    "make a new folder with `headwater server init` and give every agent its new ca.pem."
)


@dataclass(frozen=True, eq=False, repr=False)
class Authority:
    """A private certificate authority: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority({_common_name(self.certificate)!r})"

    @staticmethod
    def create(name: str, days: int = AUTHORITY_DAYS) -> Authority:
        """A new authority with a new key.

        Args:
            name: for people, printable, at most 64 bytes in UTF-8, such as the server's name.
            days: how long it is valid.

        Raises:
            ConfigError: the name cannot stand in a certificate.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = profile.subject("authority", name)
        builder = (
            profile.builder(subject, subject, key.public_key(), profile.expiry(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(profile.key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        return Authority(builder.sign(key, hashes.SHA256()), key)

    @property
    def certificate_pem(self) -> bytes:
        """What agents and organisers are given (``ca.pem``)."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def save(self, folder: Path) -> None:
        """Write ``ca.key`` and ``ca.pem`` (0600) into ``folder`` (0700).

        Raises:
            StorageError: it cannot be written, others may look into the folder, or it holds another
                authority, whose loss would cut off every agent.
        """
        secret_folder(folder)
        if (folder / "ca.key").exists() and (folder / "ca.pem").exists():
            if Authority.load(folder).certificate == self.certificate:
                return
            raise StorageError(
                f"authority in {folder}", expected="a folder without an authority",
                got="one with an authority",
                hint="An authority is never written over: name another folder, or move it away.",
            )  # fmt: skip
        write_secret(folder / "ca.key", profile.key_pem(self.key))
        write_secret(folder / "ca.pem", self.certificate_pem)

    @staticmethod
    def load(folder: Path) -> Authority:
        """The authority that :meth:`save` wrote into ``folder``; it may have expired.

        Raises:
            StorageError: a file is missing, damaged, does not fit the other, or others may read it.
        """
        check_folder(folder, hint=_LOST)
        key_pem = read_secret(folder / "ca.key", hint=_LOST)
        certificate_pem = read_secret(folder / "ca.pem", hint=_LOST)
        who = f"authority in {folder}"
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StorageError(who, expected="a key in ca.key", got="none", hint=_LOST) from error
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            public = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise StorageError(who, expected="a certificate in ca.pem", got="none", hint=_LOST) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or public != key.public_key():
            raise StorageError(
                who, expected="ca.key and ca.pem of one authority", got="those of two", hint=_LOST
            )
        return Authority(certificate, key)

    def issue_server(self, names: Sequence[str], days: int = SERVER_DAYS) -> tuple[bytes, bytes]:
        """A certificate for the daemon, and its new key: both PEM.

        Args:
            names: every DNS name or IP address by which agents reach the server.
            days: how long it is valid, at most as long as the authority; a negative one has expired.

        Raises:
            ConfigError: no name, or one that is neither a DNS name nor an address.
        """
        if not names or isinstance(names, str):  # a string would be a sequence of one-letter names
            raise ConfigError(
                "server certificate", expected="a list of DNS names or addresses", got=repr(names),
                hint="Name what agents will write as the server's address.",
            )  # fmt: skip
        alternatives = x509.SubjectAlternativeName(
            [profile.general_name(name) for name in dict.fromkeys(names)]
        )
        return self._issue(
            profile.subject("server", "headwater server"), ExtendedKeyUsageOID.SERVER_AUTH, days, alternatives
        )

    def issue_organiser(self, name: str, days: int = ORGANISER_DAYS) -> tuple[bytes, bytes]:
        """A certificate that opens the control port, and its new key: both PEM.

        Args:
            name: whose it is, printable, at most 64 bytes in UTF-8; it stands in the daemon's log.
            days: how long it is valid, at most as long as the authority.

        Raises:
            ConfigError: the name cannot stand in a certificate.
        """
        return self._issue(profile.subject("organiser", name), ExtendedKeyUsageOID.CLIENT_AUTH, days, None)

    def _issue(
        self,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        days: int,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        expiry = min(profile.expiry(days), self.certificate.not_valid_after_utc)
        issuer = self.key.public_key()
        builder = (
            profile.builder(subject, self.certificate.subject, key.public_key(), expiry)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(profile.key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), profile.key_pem(key)


def role(pem: bytes) -> str:
    """What the certificate is for: ``"authority"``, ``"server"`` or ``"organiser"``.

    Only TLS says whether it is true: ask after the handshake has verified the chain.

    Raises:
        StorageError: no certificate, or none of ours.
    """
    units = _load(pem).subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    roles = [str(unit.value) for unit in units]
    if len(roles) == 1 and roles[0] in ("authority", "server", "organiser"):
        return roles[0]
    raise StorageError("certificate", expected="one of Headwater's", got=f"units {roles}")


def holder(pem: bytes) -> str:
    """The name of the certificate's holder, for logs.

    Raises:
        StorageError: no certificate.
    """
    return _common_name(_load(pem))


def days_left(pem: bytes) -> float:
    """Days until the certificate ends; negative once it has.

    Raises:
        StorageError: no certificate.
    """
    return (_load(pem).not_valid_after_utc - profile.now()) / profile.DAY


def names_of(pem: bytes) -> tuple[str, ...]:
    """The DNS names and addresses that the certificate is for; none if it is not a server's.

    Raises:
        StorageError: no certificate.
    """
    try:
        names = _load(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def describe(pem: bytes) -> str:
    """One line for people: role, holder, names, end, and the SHA-256 to compare.

    Raises:
        StorageError: no certificate, or none of ours.
    """
    certificate = _load(pem)
    left = days_left(pem)
    names = names_of(pem)
    what = f"for {', '.join(names)}" if names else f"of {_common_name(certificate)}"
    digest = certificate.fingerprint(hashes.SHA256()).hex()
    until = certificate.not_valid_after_utc.strftime("%Y-%m-%d")
    state = f"{int(left)} days left" if left >= 0 else "EXPIRED"
    return f"{role(pem)} {what}, until {until} ({state}), SHA-256 {digest}"


def _load(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise StorageError(
            "certificate", expected="a certificate in PEM", got="something else",
            hint="Name a .pem file that `headwater server init` or `renew` wrote.",
        ) from error  # fmt: skip


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
