"""What the fields of our certificates hold (RFC 5280), in one place: :func:`builder` and its parts."""

from __future__ import annotations

import datetime
import ipaddress
import re

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headwater.errors import ConfigError

DAY = datetime.timedelta(days=1)

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")


def now() -> datetime.datetime:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def expiry(days: int) -> datetime.datetime:
    """The end of a certificate that is valid for ``days`` from now."""
    return now() + days * DAY


def subject(unit: str, name: str) -> x509.Name:
    """O = Headwater, OU = ``unit`` (the role), CN = ``name``.

    Raises:
        ConfigError: the name cannot stand in a certificate.
    """
    # 64 is X.520's bound, in bytes of UTF-8 here
    if not (1 <= len(name.encode("utf-8", "replace")) <= 64 and name.isprintable() and name == name.strip()):
        raise ConfigError(
            f"name of the {unit}'s certificate",
            expected="1 to 64 bytes of printable characters without white space around them",
            got=ascii(name[:80]),
        )
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Headwater"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def general_name(name: str) -> x509.GeneralName:
    """A DNS name or an IP address as an alternative name of a subject.

    Raises:
        ConfigError: neither; names with wildcards are not issued either.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        lower = name.lower()
        labels = lower.split(".")
        # a last label of digits is a mistyped address, not a name
        if len(lower) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit():
            return x509.DNSName(lower)
    raise ConfigError(
        "server certificate", expected="a DNS name or an IP address, without a port", got=ascii(name[:80]),
        hint="Write a name with other letters in its ASCII form (xn--…).",
    )  # fmt: skip


def builder(
    holder: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    """What every certificate of ours has: names, key, a random serial number, validity until ``end``."""
    return (
        x509.CertificateBuilder()
        .subject_name(holder)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # a day back: a device's clock may be behind
        .not_valid_before(min(now(), end) - DAY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """The uses that are named, and no other."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS 8 without a password: the file's rights guard it, since the daemon starts unattended."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
