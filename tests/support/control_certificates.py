"""Certificates for tests of the control port, also ones that no authority of ours would issue."""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    cert: bytes
    key: bytes


class TestAuthority:
    """A certificate authority that does as it is told."""

    __test__ = False

    def __init__(self, name="test CA"):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key.public_key(), days=3650)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, common_name, unit=None, usage="client", days=30, *, attributes=()):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name), *attributes]
        if unit is not None:
            subject.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
        builder = _builder(x509.Name(subject), self._name, key.public_key(), days)
        usages = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
        if usage == "both":
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages.values())), critical=False)
        elif usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usages[usage]]), critical=False)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        pkcs8 = serialization.PrivateFormat.PKCS8
        return Pair(cert, key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))


@dataclass(frozen=True)
class Certificates:
    """What the tests need, made once."""

    authority: TestAuthority
    server: Pair
    organiser: Pair
    other_authority: TestAuthority
    strangers: dict[str, Pair]
    """Clients that must be refused in the handshake or by role."""


_OTHER_ROLE = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "server")


@functools.cache
def certificates():
    """One set for all tests of a process."""
    ours, other = TestAuthority(), TestAuthority("test CA")
    server = ours.issue("headwater server", "server", "server")
    return Certificates(
        ours,
        server,
        ours.issue("ann", "organiser"),
        other,
        {
            "of another authority": other.issue("ann", "organiser"),
            "the server's own": server,
            "server usage, organiser by name": ours.issue("ann", "organiser", "server"),
            "expired": ours.issue("ann", "organiser", days=-1),
            "of another role": ours.issue("ann", "client"),
            "without a role": ours.issue("ann"),
            "role within another field": ours.issue("ann,OU=organiser+OU=organiser"),
            "of two roles": ours.issue("ann", "organiser", attributes=[_OTHER_ROLE]),
        },
    )


def _builder(subject, issuer, public_key, days):
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=days))
    )
