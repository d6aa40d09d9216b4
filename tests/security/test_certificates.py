from __future__ import annotations

import os
import ssl
import stat
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headwater.errors import ConfigError, StorageError
from headwater.security import certificates, x509_profile
from headwater.security.certificates import Authority, days_left, describe, holder, names_of, role

OURS = Authority.create("ours")
NAMES = ["Edge.Example", "localhost", "127.0.0.1", "::1"]
SERVER = OURS.issue_server(NAMES)
ORGANISER = OURS.issue_organiser("Ann Example")


class Handshake:
    """TLS between two sides in memory; what each side raised, or None."""

    def __init__(
        self,
        folder,
        *,
        server,
        client=None,
        client_trusts=OURS.certificate_pem,
        name="localhost",
        mutual=False,
    ):
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(*self._files(folder, "server", server))
        if mutual:
            serving.verify_mode = ssl.CERT_REQUIRED
            serving.load_verify_locations(cadata=OURS.certificate_pem.decode())
            serving.verify_flags |= ssl.VERIFY_X509_STRICT
        calling = ssl.create_default_context(cadata=client_trusts.decode())
        calling.verify_flags |= ssl.VERIFY_X509_STRICT
        if client is not None:
            calling.load_cert_chain(*self._files(folder, "client", client))
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = serving.wrap_bio(up, down, server_side=True)
        self.client = calling.wrap_bio(down, up, server_hostname=name)
        self.client_error, self.server_error = self._run()

    @staticmethod
    def _files(folder, who, pair):
        for suffix, pem in zip(("pem", "key"), pair, strict=True):
            (folder / f"{who}.{suffix}").write_bytes(pem)
        return folder / f"{who}.pem", folder / f"{who}.key"

    def _run(self):
        errors = {}
        for _ in range(6):
            for side in (self.client, self.server):
                if side not in errors:
                    try:
                        side.do_handshake()
                        side.write(b"x") if side is self.client else side.read(1)
                    except ssl.SSLWantReadError:
                        pass
                    except ssl.SSLError as error:
                        errors[side] = (
                            error.verify_message if hasattr(error, "verify_message") else str(error)
                        )
        return errors.get(self.client), errors.get(self.server)


# TLS


@pytest.mark.parametrize("name", ["edge.example", "EDGE.example", "localhost", "127.0.0.1", "::1"])
def test_a_client_accepts_the_server_by_each_of_its_names(tmp_path, name):
    done = Handshake(tmp_path, server=SERVER, name=name)
    assert (done.client_error, done.server_error) == (None, None)
    assert done.client.version() == "TLSv1.3"


@pytest.mark.parametrize("name", ["other.example", "x.edge.example", "example", "127.0.0.2", "::2"])
def test_another_name_is_refused(tmp_path, name):
    assert "mismatch" in Handshake(tmp_path, server=SERVER, name=name).client_error


def test_another_authority_is_refused_even_under_the_same_name(tmp_path):
    twin = Authority.create("ours")
    done = Handshake(tmp_path, server=twin.issue_server(NAMES))
    assert done.client_error
    done = Handshake(tmp_path, server=SERVER, client_trusts=twin.certificate_pem)
    assert done.client_error


def test_an_expired_certificate_is_refused(tmp_path):
    expired = OURS.issue_server(NAMES, days=-1)
    assert "expired" in Handshake(tmp_path, server=expired).client_error
    assert -1.1 < days_left(expired[0]) < -0.9
    assert "EXPIRED" in describe(expired[0])


def test_an_expired_authority_is_refused(tmp_path):
    old = Authority.create("old", days=-1)
    done = Handshake(tmp_path, server=old.issue_server(NAMES), client_trusts=old.certificate_pem)
    assert "expired" in done.client_error


def test_no_certificate_outlives_its_authority():
    short = Authority.create("short", days=10)
    assert days_left(short.issue_server(NAMES)[0]) == pytest.approx(10, abs=0.01)


def test_mutual_tls_with_the_organisers_certificate(tmp_path):
    done = Handshake(tmp_path, server=SERVER, client=ORGANISER, mutual=True)
    assert (done.client_error, done.server_error) == (None, None)
    seen = ssl.DER_cert_to_PEM_cert(done.server.getpeercert(binary_form=True)).encode()
    assert (role(seen), holder(seen)) == ("organiser", "Ann Example")


def test_an_organiser_is_no_server_and_a_server_no_organiser(tmp_path):
    assert "purpose" in Handshake(tmp_path, server=ORGANISER).client_error
    assert "purpose" in Handshake(tmp_path, server=SERVER, client=SERVER, mutual=True).server_error


def test_without_a_certificate_the_control_port_is_closed(tmp_path):
    assert "peer did not return a certificate" in Handshake(tmp_path, server=SERVER, mutual=True).server_error


@pytest.mark.parametrize(
    "client",
    [
        Authority.create("ours").issue_organiser("Ann Example"),
        Authority.create("Ann Example").issue_organiser("Ann Example"),
        OURS.issue_organiser("Ann Example", days=-1),
    ],
    ids=["twin", "other", "expired"],
)
def test_other_organisers_are_refused(tmp_path, client):
    assert Handshake(tmp_path, server=SERVER, client=client, mutual=True).server_error


def test_an_organiser_cannot_issue_certificates(tmp_path):
    """Neither with an organiser's key nor below an authority below ours."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for pem, key in (ORGANISER, SERVER):
        parent = x509.load_pem_x509_certificate(pem)
        forger = Authority(parent, load_pem_private_key(key, None))
        forged, forged_key = forger.issue_organiser("Eve")
        done = Handshake(tmp_path, server=SERVER, client=(forged + pem, forged_key), mutual=True)
        assert "invalid CA" in done.server_error

    key = ec.generate_private_key(ec.SECP256R1())
    below = (
        x509_profile.builder(
            x509_profile.subject("authority", "below"),
            OURS.certificate.subject,
            key.public_key(),
            x509_profile.expiry(9),
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509_profile.key_usage(key_cert_sign=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(OURS.key.public_key()), critical=False
        )
        .sign(OURS.key, hashes.SHA256())
    )
    sub = Authority(below, key)
    forged, forged_key = sub.issue_organiser("Eve")
    done = Handshake(tmp_path, server=SERVER, client=(forged + sub.certificate_pem, forged_key), mutual=True)
    assert "path length" in done.server_error


# What they say


def test_openssl_reads_them(tmp_path):
    (tmp_path / "ca.pem").write_bytes(OURS.certificate_pem)
    for name, (pem, _), purpose in (("s", SERVER, "sslserver"), ("o", ORGANISER, "sslclient")):
        (tmp_path / name).write_bytes(pem)
        for asked in ("sslserver", "sslclient"):
            done = subprocess.run(
                ["openssl", "verify", "-x509_strict", "-purpose", asked, "-CAfile", "ca.pem", name],
                cwd=tmp_path, capture_output=True, check=False,
            )  # fmt: skip
            assert (done.returncode == 0) == (asked == purpose), (name, asked, done.stderr)


def test_the_names_it_is_for():
    assert names_of(SERVER[0]) == ("edge.example", "localhost", "127.0.0.1", "::1")
    assert names_of(ORGANISER[0]) == ()


def test_describe():
    digest = x509.load_pem_x509_certificate(SERVER[0]).fingerprint(hashes.SHA256()).hex()
    text = describe(SERVER[0])
    assert text.startswith("server for edge.example, localhost, 127.0.0.1, ::1, until 20")
    assert text.endswith(f"(397 days left), SHA-256 {digest}")
    assert describe(ORGANISER[0]).startswith("organiser of Ann Example, until 20")
    assert describe(OURS.certificate_pem).startswith("authority of ours, until 20")
    assert [role(pem) for pem in (SERVER[0], ORGANISER[0], OURS.certificate_pem)] == [
        "server", "organiser", "authority",
    ]  # fmt: skip
    assert days_left(SERVER[0]) == pytest.approx(398, abs=0.9)  # made when this file was collected
    assert days_left(OURS.certificate_pem) == pytest.approx(3652, abs=0.9)


@pytest.mark.parametrize("function", [role, holder, days_left, describe, names_of])
@pytest.mark.parametrize("pem", [b"", b"x", SERVER[1], SERVER[0][:-60]])
def test_what_is_no_certificate(function, pem):
    with pytest.raises(StorageError, match=r"certificate: expected a certificate in PEM.*headwater server"):
        function(pem)


@pytest.mark.parametrize("units", [[], ["Organiser"], ["organiser", "server"], ["organiser", "organiser"]])
def test_a_strangers_certificate_has_no_role(units):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units])
    stranger = x509_profile.builder(name, name, key.public_key(), x509_profile.expiry(9))
    pem = Authority(stranger.sign(key, hashes.SHA256()), key).certificate_pem
    with pytest.raises(StorageError, match="Headwater"):
        role(pem)
    assert holder(pem) == ""


def test_the_extensions():
    """Two of them keep a leaf from issuing; TLS would pass over the loss of either."""
    for pem in (SERVER[0], ORGANISER[0]):
        extensions = x509.load_pem_x509_certificate(pem).extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert (basic.critical, basic.value.ca) == (True, False)
        assert (usage.critical, usage.value) == (True, x509_profile.key_usage(digital_signature=True))
    extensions = OURS.certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value) == (True, x509_profile.key_usage(key_cert_sign=True, crl_sign=True))


@pytest.mark.parametrize(
    "names",
    [
        [], "localhost", [""], ["a b"], ["*.example"], ["a..b"], ["-a"], ["a-"], ["127.0.0.1:80"],
        ["[::1]"], ["https://a"], ["1.2.3"], ["1.2.3.256"], ["é.example"], ["a" * 64], 
        [".".join(["a" * 60] * 5)], ["a\0"], ["localhost", "a_b"], ["a."],
    ],
)  # fmt: skip
def test_other_server_names_are_refused(names):
    with pytest.raises(ConfigError, match="server certificate"):
        OURS.issue_server(names)


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a" * 65, "é" * 33, "\ud800"])
def test_other_names_of_people_are_refused(name):
    with pytest.raises(ConfigError, match="name of the organiser's certificate"):
        OURS.issue_organiser(name)
    with pytest.raises(ConfigError, match="name of the authority's certificate"):
        Authority.create(name)


def test_names_at_the_bound():
    assert holder(OURS.issue_organiser("é" * 32)[0]) == "é" * 32


def test_each_certificate_has_its_own_key_and_number():
    pairs = [OURS.issue_server(["a"]) for _ in range(5)]
    assert len({key for _, key in pairs}) == 5
    assert len({x509.load_pem_x509_certificate(pem).serial_number for pem, _ in pairs}) == 5


def test_no_key_in_a_repr():
    assert repr(OURS) == "Authority('ours')"


# Files


@pytest.fixture
def folder(tmp_path):
    OURS.save(tmp_path / "secrets")
    return tmp_path / "secrets"


def test_saved_and_loaded(folder):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"secrets": 0o700, "ca.key": 0o600, "ca.pem": 0o600}
    loaded = Authority.load(folder)
    assert loaded.certificate_pem == OURS.certificate_pem
    loaded.certificate.verify_directly_issued_by(OURS.certificate)
    x509.load_pem_x509_certificate(loaded.issue_organiser("a")[0]).verify_directly_issued_by(OURS.certificate)


def test_an_authority_is_never_written_over(folder):
    OURS.save(folder)
    with pytest.raises(StorageError, match="never written over"):
        Authority.create("ours").save(folder)
    assert Authority.load(folder).certificate_pem == OURS.certificate_pem


def test_a_save_that_was_cut_short_can_be_repeated(folder):
    (folder / "ca.pem").unlink()
    other = Authority.create("other")
    other.save(folder)
    assert Authority.load(folder).certificate_pem == other.certificate_pem


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
@pytest.mark.parametrize(
    "damage",
    [None, b"", b"\xff" * 100, b"x" * 70_000, SERVER[0][:100], SERVER[1][:100]],
    ids=["absent", "empty", "binary", "long", "half a certificate", "half a key"],  # keys differ by process
)
def test_missing_or_damaged(folder, name, damage):
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    with pytest.raises(StorageError, match=rf"{name}.*headwater server restore.*headwater server init"):
        Authority.load(folder)


def test_key_and_certificate_of_two_authorities(folder):
    (folder / "ca.pem").write_bytes(Authority.create("ours").certificate_pem)
    with pytest.raises(StorageError, match=r"one authority.*got those of two"):
        Authority.load(folder)


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
def test_files_that_others_could_read_are_refused(folder, name):
    (folder / name).chmod(0o644)
    with pytest.raises(StorageError, match=rf"{name}: expected rights 0600.*got 0644"):
        Authority.load(folder)


def test_a_folder_that_others_can_write_into_is_refused(folder):
    folder.chmod(0o777)
    with pytest.raises(StorageError, match=r"expected rights 0700.*got 0777"):
        Authority.load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(StorageError, match="headwater server restore"):
        Authority.load(tmp_path / "none")


def test_a_full_disk(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        OURS.save(tmp_path / "secrets")
    assert list((tmp_path / "secrets").iterdir()) == []


def test_the_defaults():
    assert (certificates.AUTHORITY_DAYS, certificates.SERVER_DAYS) == (3652, 398)
