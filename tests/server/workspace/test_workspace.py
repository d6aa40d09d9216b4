"""A server's folder: closed under any umask, checked before use, held by one daemon."""

from __future__ import annotations

import os
import signal
import ssl
import stat
import subprocess
import sys
import tomllib
from dataclasses import fields

import pytest

from headwater.config import load_federation
from headwater.config.daemon import check_daemon, daemon_toml
from headwater.errors import ConfigError, StorageError
from headwater.security.certificates import Authority, days_left, names_of, role
from headwater.server.agent_port import request_auth as authenticator
from headwater.server.workspace.workspace import Workspace

SECRETS = ["ca.key", "ca.pem", "organiser.key", "organiser.pem", "server.key", "server.pem", "web.token"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Workspace.init(tmp_path_factory.mktemp("made") / "fl", names=["fl.example.org", "10.0.0.7"])


@pytest.fixture
def workspace(made, tmp_path):
    """A copy that a test may spoil."""
    subprocess.run(["cp", "-a", str(made.path), str(tmp_path / "fl")], check=True)
    return Workspace(tmp_path / "fl")


def modes(path):
    return {p.relative_to(path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in [path, *path.rglob("*")]}


@pytest.mark.parametrize("umask", [0, 0o777])
def test_everything_is_closed_under_any_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        workspace = Workspace.init(tmp_path / "new" / "fl")
    finally:
        os.umask(before)
    for name, mode in modes(workspace.path).items():
        assert mode == (0o700 if (workspace.path / name).is_dir() else 0o600), name
    assert (tmp_path / "new").stat().st_mode & 0o022 == 0
    assert sorted(p.name for p in (workspace.path / "secrets").iterdir()) == SECRETS
    assert Workspace.open(workspace.path).notices() == ()


def test_certificates_are_for_the_names_and_roles_that_they_should_be(made):
    secrets = made.credentials
    assert names_of(secrets.server()[0]) == ("fl.example.org", "10.0.0.7", "localhost", "127.0.0.1")
    assert [role(pem) for pem in (secrets.ca(), secrets.server()[0], secrets.organiser()[0])] == [
        "authority", "server", "organiser",
    ]  # fmt: skip
    assert len(secrets.web_token()) >= 43  # 256 bits in base64
    context = ssl.create_default_context(cadata=secrets.ca().decode())
    assert context.get_ca_certs()[0]["subject"] != ()


def test_the_template_is_a_right_federation_with_an_end_to_each_round(made):
    with pytest.raises(ConfigError, match=r"model\.path: expected the base model's folder"):
        load_federation(made.federation)  # until it is filled in
    cohort = load_federation(made.federation, ["model.path=models/minilm"]).settings.cohort
    assert cohort.deadline_s is not None
    assert cohort.min_clients > 1


def test_the_settings_file_says_everything_and_reads_back(made):
    text = made.settings_file.read_text()
    assert check_daemon(tomllib.loads(text), "again") == made.settings
    assert daemon_toml(made.settings) == text
    for table in ("listen", "limits", "retention"):
        for key in type(getattr(made.settings, table)).model_fields:
            assert f"\n{key} = " in text


def test_limits_are_those_of_the_request_authenticator(made):
    """The daemon passes them on by name."""
    mine = made.settings.limits.model_dump()
    assert set(mine) <= {field.name for field in fields(authenticator.Limits)}
    assert {key: getattr(authenticator.Limits(), key) for key in mine} == mine


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ({"names": []}, "listen.names: expected"),
        ({"names": ["a b"]}, "listen.names.0: expected a DNS name"),
        ({"names": ["a"], "fleet": "8443"}, "listen.fleet: expected HOST:PORT"),
        ({"names": ["a"], "fleet": "a:70000"}, "listen.fleet: expected HOST:PORT"),
        ({"names": ["a"], "web": "0.0.0.0:8445"}, "listen.web: expected 127.0.0.1:PORT"),
        ({"names": ["a"], "port": 3}, "listen.port: expected no such key"),
    ],
)
def test_wrong_settings_are_named(listen, message):
    with pytest.raises(ConfigError, match=message):
        check_daemon({"name": "x", "listen": listen}, "server.toml")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"expected a new or empty folder, got one with mine\.txt"):
        Workspace.init(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="got a file"):
        Workspace.init(tmp_path / "mine.txt")


@pytest.mark.parametrize("there", [False, True])
def test_an_init_that_fails_leaves_nothing(tmp_path, monkeypatch, there):
    path = tmp_path / "fl"
    if there:
        path.mkdir()
    real = Workspace.settings_file.fget
    monkeypatch.setattr(Workspace, "settings_file", property(lambda self: real(self) / "no" / "such"))
    with pytest.raises(StorageError):
        Workspace.init(path)
    assert path.exists() == there
    assert list(tmp_path.rglob("*")) == ([path] if there else [])


def test_a_full_disk_ends_init_cleanly(tmp_path):
    program = (
        "import resource, sys, pathlib\n"
        "from headwater.server.workspace.workspace import Workspace\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"  # a key fits, a certificate does not
        "Workspace.init(pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "fl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "StorageError" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".", "secrets", *(f"secrets/{name}" for name in SECRETS)])
def test_what_others_may_read_or_write_is_refused_with_the_command_that_closes_it(workspace, name):
    target = workspace.path / name
    folder = target.is_dir()
    target.chmod(0o770 if folder else 0o640)
    with pytest.raises(StorageError) as error:
        Workspace.open(workspace.path)
    assert error.value.who.endswith(str(target))
    assert "0770" in error.value.got or "0640" in error.value.got
    assert f"chmod {700 if folder else 600} {target}" in error.value.hint
    target.chmod(0o700 if folder else 0o600)
    Workspace.open(workspace.path)


@pytest.mark.parametrize("name", [n for n in SECRETS if n != "ca.key"])
def test_a_missing_secret_is_named(workspace, name):
    (workspace.path / "secrets" / name).unlink()
    with pytest.raises(StorageError, match=name):
        Workspace.open(workspace.path)


def test_the_authority_s_key_may_be_kept_elsewhere(workspace):
    (workspace.path / "secrets" / "ca.key").unlink()
    Workspace.open(workspace.path)
    with pytest.raises(StorageError, match=r"ca\.key.*--authority"):
        workspace.credentials.renew_server(["a"])


@pytest.mark.parametrize("name", ["nothing", "."])
def test_another_folder_is_no_server_s(tmp_path, name):
    with pytest.raises(ConfigError, match="headwater server init"):
        Workspace.open(tmp_path / name)


def test_an_ended_certificate_is_refused_with_the_command_that_renews_it(workspace):
    ca = Authority.load(workspace.path / "secrets")
    certificate, key = ca.issue_server(["a"], days=-1)
    (workspace.path / "secrets" / "server.pem").write_bytes(certificate)
    (workspace.path / "secrets" / "server.key").write_bytes(key)
    with pytest.raises(StorageError, match=f"EXPIRED.*headwater server renew {workspace.path}"):
        Workspace.open(workspace.path)
    workspace.credentials.renew_server(workspace.settings.listen.certificate_names())
    assert Workspace.open(workspace.path).notices() == ()


def test_what_ends_soon_and_names_that_are_missing_are_notices(workspace):
    ca = Authority.load(workspace.path / "secrets")
    certificate, key = ca.issue_server(["fl.example.org"], days=10)
    (workspace.path / "secrets" / "server.pem").write_bytes(certificate)
    (workspace.path / "secrets" / "server.key").write_bytes(key)
    ends, names = Workspace.open(workspace.path).notices()
    assert "server.pem ends in 9 days. Renew it: headwater server renew" in ends
    assert "10.0.0.7" in names


def test_a_key_that_does_not_fit_its_certificate_is_found(workspace):
    """As a crash between the two writes of a renewal leaves them."""
    _, key = Authority.load(workspace.path / "secrets").issue_server(["a"])
    (workspace.path / "secrets" / "server.key").write_bytes(key)
    with pytest.raises(StorageError, match=r"fits server\.key.*headwater server renew"):
        Workspace.open(workspace.path)


def test_a_new_authority_replaces_everything_and_the_old_is_gone(workspace):
    before = {name: (workspace.path / "secrets" / name).read_bytes() for name in SECRETS}
    workspace.credentials.renew_authority("again", ["fl.example.org"])
    after = {name: (workspace.path / "secrets" / name).read_bytes() for name in SECRETS}
    assert all(before[name] != after[name] for name in SECRETS)
    assert sorted(p.name for p in workspace.path.iterdir() if "secrets" in p.name) == ["secrets"]
    assert days_left(workspace.credentials.ca()) > 3650
    assert set(modes(workspace.path / "secrets").values()) == {0o700, 0o600}
    Workspace.open(workspace.path)


def test_a_new_authority_that_cannot_be_written_leaves_the_old(workspace, monkeypatch):
    before = workspace.credentials.ca()

    def fail(self, names):
        raise StorageError("disk", got="No space left on device")

    monkeypatch.setattr(type(workspace.credentials), "renew_server", fail)
    with pytest.raises(StorageError):
        workspace.credentials.renew_authority("again", ["a"])
    assert workspace.credentials.ca() == before


HOLD = """
import sys, time, pathlib
from headwater.server.workspace.workspace import Workspace
with Workspace(pathlib.Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_daemon_per_folder_until_it_dies(workspace):
    assert workspace.holder() is None
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workspace.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert workspace.holder() == other.pid
        with pytest.raises(ConfigError, match=f"process {other.pid} runs in"), workspace.locked():
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert workspace.holder() is None
    with workspace.locked():
        assert workspace.holder() == os.getpid()
    assert workspace.holder() is None
