"""``headwater server init|run|clients|backup|restore|renew`` as an organiser meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from contextlib import contextmanager

import pytest

from headwater.cli.main import main
from headwater.cli.server import verbs as server
from headwater.config import load_federation
from headwater.proto.control import serve
from headwater.security.enrolment import make_request
from headwater.server.workspace.workspace import Workspace
from tests.security.people import ANN, BOB, identity
from tests.support.command import headwater
from tests.support.control_port import FakeOrganiser
from tests.support.runs import tiny_federation


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "fl"
    done = headwater(
        "server", "init", folder, "--names", "FL.example.org, 10.0.0.7", "--listen", "127.0.0.1:0",
        "--control", "127.0.0.1:0", "--web", "127.0.0.1:0",
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder, done.out


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may change."""
    subprocess.run(["cp", "-a", str(made[0]), str(tmp_path / "fl")], check=True)
    return tmp_path / "fl"


def test_help_of_every_verb_imports_nothing_heavy():
    program = (
        "import sys\nfrom headwater.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'flwr', 'grpc', 'cryptography', 'fastapi', 'numpy', 'google'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    for arguments in (["server", "--help"], ["server", "init", "--help"], ["server", "clients", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: headwater server")


def test_help_lists_every_verb_and_every_verb_has_help():
    listed = headwater("server", "--help").out
    for verb in server.VERBS:
        assert f"\n    {verb} " in listed
        assert f"usage: headwater server {verb}" in headwater("server", verb, "--help").out


@pytest.mark.parametrize(
    "arguments",
    [[], ["swim"], ["init"], ["clients"], ["clients", "eat", "x"], ["backup", "x"], ["restore", "x"]],
)
def test_what_it_does_not_know_is_a_usage_error(arguments):
    done = headwater("server", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: headwater server")


def test_init_says_what_comes_next_and_what_owners_compare(made):
    folder, out = made
    assert f"  headwater server run {folder}\n" in out
    assert "  headwater client enroll agent.toml\n" in out
    assert f"  headwater server clients accept {folder} LINE\n" in out
    shown = subprocess.run(
        ["openssl", "x509", "-in", folder / "secrets/ca.pem", "-noout", "-fingerprint", "-sha256"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown.split("=")[1].strip().replace(":", "").lower() in out
    settings = tomllib.loads((folder / "server.toml").read_text())
    assert settings["listen"]["names"] == ["fl.example.org", "10.0.0.7"]
    assert load_federation(folder / "federation.toml", ["model.path=models/minilm"])


def test_init_takes_a_federation_and_a_plain_machine_s_name(tmp_path):
    file = tiny_federation(tmp_path)
    done = headwater("server", "init", tmp_path / "fl", "--federation", file)
    assert done.code == 0
    assert (tmp_path / "fl/federation.toml").read_bytes() == file.read_bytes()
    assert "for others give --names" in done.out
    assert "model.path 'bert' is not there, but at" in done.out  # it is relative to another folder now


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "a b"], "listen.names.0: expected a DNS name"),
        (["--listen", "8443"], "listen.fleet: expected HOST:PORT"),
        (["--web", "0.0.0.0:80"], "listen.web: expected 127.0.0.1:PORT"),
        (["--name", "\x1b[31m"], "name: expected 1 to 64 letters"),
        (["--federation", "missing.toml"], "federation file missing.toml"),
    ],
)
def test_init_refuses_before_it_writes(tmp_path, arguments, message):
    done = headwater("server", "init", tmp_path / "fl", *arguments)
    assert done.code == 2
    assert message in done.error
    assert list(tmp_path.iterdir()) == []


def test_init_does_not_touch_a_folder_with_something_in_it(folder):
    before = (folder / "secrets/ca.key").read_bytes()
    done = headwater("server", "init", folder)
    assert "expected a new or empty folder" in done.error
    assert (folder / "secrets/ca.key").read_bytes() == before


# --- clients ---------------------------------------------------------------------------------------


def test_a_device_is_accepted_listed_and_revoked_without_a_daemon(folder):
    done = headwater("server", "clients", "accept", folder, make_request(ANN))
    assert done.out.startswith(f"ann: accepted, fingerprint {ANN.public.fingerprint()}\n")
    assert "by voice" in done.out
    listed = headwater("server", "clients", "list", folder).out.splitlines()
    assert listed[1].split() == ["ann", "offline", ANN.public.fingerprint()]
    assert headwater("server", "clients", "revoke", folder, "ann").code == 0
    row = json.loads(headwater("server", "clients", "list", folder, "--json").out)[0]
    assert (row["client"], row["state"]) == ("ann", "revoked")
    assert "revoked" in headwater("server", "clients", "accept", folder, make_request(ANN)).error


def test_requests_come_as_file_or_standard_input_too_several_at_once(folder, tmp_path):
    file = tmp_path / "requests"
    file.write_text(f"{make_request(ANN)}\n\nGive this line to the organiser.\n")
    done = headwater("server", "clients", "accept", folder, file, "-", stdin=make_request(BOB).encode())
    assert re.findall(r"^(\w+): accepted", done.out, re.MULTILINE) == ["ann", "bob"]


@pytest.mark.parametrize(
    "letter", ["Hello,\nthis is my line:\n\n{}\n\nBest, ann", "here it is: {}", "<{}>", "> <{}>"]
)
def test_a_letter_is_a_request_as_an_argument_too(folder, letter):
    """As ``"$(cat mail)"`` gives it, or with the brackets that some put around what is to be copied."""
    done = headwater("server", "clients", "accept", folder, letter.format(make_request(ANN)))
    assert done.out.startswith("ann: accepted"), done.err


@pytest.mark.parametrize("length", [299, 300, 301, 302])
def test_a_line_that_was_cut_is_said_to_be_too_short(folder, length):
    done = headwater("server", "clients", "accept", folder, make_request(ANN)[:length])
    assert "a part of it is missing" in done.error
    assert "base64" not in done.error


@pytest.mark.parametrize("given", ["right", "wrong"])
def test_a_fingerprint_that_was_told_decides(folder, given):
    fingerprint = (ANN if given == "right" else BOB).public.fingerprint()
    done = headwater("server", "clients", "accept", folder, make_request(ANN), "--fingerprint", fingerprint)
    if given == "right":
        assert done.code == 0
        assert "Compare" not in done.out
    else:
        assert "Nothing was accepted" in done.error
    assert len(Workspace(folder).registry().by_name()) == (given == "right")


def test_one_bad_request_of_several_accepts_none(folder):
    altered = make_request(BOB)[:-8] + "AAAAAAAA"
    done = headwater("server", "clients", "accept", folder, make_request(ANN), altered)
    assert done.code != 0
    assert done.out == ""
    assert Workspace(folder).registry().by_name() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["accept", "DIR"], "expected at least one LINE"),
        (["revoke", "DIR"], "expected at least one NAME"),
        (["revoke", "DIR", "nobody"], "expected an enrolled name"),
        (["accept", "DIR", "no-such-file"], "expected a line headwater-enrol-v1"),
        (["list", "DIR", "more"], "expected nothing behind the folder"),
        (["list"], "expected the server's folder"),
    ],
)
def test_what_clients_cannot_do_is_said(folder, arguments, message):
    words = [folder if word == "DIR" else word for word in arguments]
    assert message in headwater("server", "clients", *words).error


@contextmanager
def daemon_at_work(folder):
    """The folder's lock, and its control port in front of an organiser that only remembers."""
    workspace, organiser = Workspace(folder), FakeOrganiser()
    certificate, key = workspace.credentials.server()
    port = serve(
        organiser, "127.0.0.1:0", server_cert=certificate, server_key=key, ca=workspace.credentials.ca()
    )
    settings = workspace.settings_file.read_text()
    workspace.settings_file.write_text(re.sub(r"control = \S+", f'control = "{port.address}"', settings))
    try:
        with workspace.locked():
            yield organiser
    finally:
        port.stop(0.5)


def test_a_daemon_at_work_is_asked_and_its_registry_left_alone(folder):
    line = make_request(ANN)
    with daemon_at_work(folder) as organiser:
        assert headwater("server", "clients", "accept", folder, line).code == 0
        assert headwater("server", "clients", "revoke", folder, "ann").code == 0
        listed = headwater("server", "clients", "list", folder).out
    assert organiser.calls == [("accept", line), ("revoke", "ann"), ("status",)]
    assert "no answer in 60 s" in listed
    assert not (folder / "clients.json").exists()


# --- run, backup, restore, renew --------------------------------------------------------------------


def test_run_closes_what_it_writes_and_returns_the_daemon_s_code(folder, monkeypatch):
    seen = []

    def run(workspace):
        seen.append((workspace.path, os.umask(0o077)))
        return 7

    monkeypatch.setattr("headwater.server.daemon.daemon.run", run)
    assert main(["server", "run", str(folder)]) == 7
    assert seen == [(folder, 0o077)]


def test_run_of_a_folder_that_is_not_in_order_says_why(folder, tmp_path):
    assert "headwater server init" in headwater("server", "run", tmp_path / "none").error
    (folder / "secrets/server.key").chmod(0o644)
    assert f"chmod 600 {folder}/secrets/server.key" in headwater("server", "run", folder).error


@pytest.mark.slow  # imports torch in a process of its own
def test_the_real_daemon_starts_accepts_and_ends_on_sigterm(folder):
    """What init made is what run needs; a second daemon is refused; clients goes through the first."""
    daemon = subprocess.Popen(
        [sys.executable, "-m", "headwater", "server", "run", str(folder)], stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        while not any("control port: " in line for line in lines):
            line = daemon.stderr.readline()
            assert line, lines
            lines.append(line)
        address = re.search(r"control port: (\S+)", lines[-1])[1]
        settings = (folder / "server.toml").read_text()
        (folder / "server.toml").write_text(re.sub(r"control = \S+", f'control = "{address}"', settings))
        assert headwater("server", "clients", "accept", folder, make_request(ANN)).code == 0
        assert f"process {daemon.pid} runs in" in headwater("server", "run", folder).error
        assert f"process {daemon.pid} runs in" in headwater("server", "renew", folder, "--authority").error
        row = json.loads(headwater("server", "clients", "list", folder, "--json").out)[0]
        assert (row["client"], row["fingerprint"]) == ("ann", ANN.public.fingerprint())
        assert headwater("server", "backup", folder, folder.parent / "b.tar").code == 0
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stderr.close()
    assert list(Workspace(folder).registry().by_name()) == ["ann"]


def test_backup_and_restore_say_what_they_hold_and_what_to_do(folder, tmp_path):
    assert headwater("server", "clients", "accept", folder, make_request(ANN)).code == 0
    plain, full = tmp_path / "plain.tar", tmp_path / "full.tar"
    assert "Without keys" in headwater("server", "backup", folder, plain).out
    assert "PRIVATE KEYS" in headwater("server", "backup", folder, full, "--with-secrets").out
    assert full.stat().st_mode & 0o777 == 0o600

    done = headwater("server", "restore", tmp_path / "one", full)
    assert f"headwater server run {tmp_path / 'one'}" in done.out
    assert "--authority" not in done.out
    assert Workspace.open(tmp_path / "one").registry().get("ann").public == ANN.public

    done = headwater("server", "restore", tmp_path / "two", plain)
    assert f"headwater server renew {tmp_path / 'two'} --authority" in done.out
    assert "--authority" in headwater("server", "run", tmp_path / "two").error
    assert headwater("server", "renew", tmp_path / "two", "--authority").code == 0
    assert Workspace.open(tmp_path / "two").registry().get("ann").public == ANN.public

    assert "expected a new or empty folder" in headwater("server", "restore", tmp_path / "one", full).error
    assert "got a file that exists" in headwater("server", "backup", folder, full).error


@pytest.mark.parametrize(
    ("options", "changed", "said"),
    [
        ([], {"server.key", "server.pem"}, "takes it when it starts again"),
        (["--organiser"], {"organiser.key", "organiser.pem"}, "stays good until it ends"),
        (["--token"], {"web.token"}, "takes it when it starts again"),
        (["--token", "--organiser"], {"web.token", "organiser.key", "organiser.pem"}, "web.token: new"),
    ],
)
def test_renew_changes_what_it_is_told_to(folder, options, changed, said):
    before = {p.name: p.read_bytes() for p in (folder / "secrets").iterdir()}
    done = headwater("server", "renew", folder, *options)
    assert done.code == 0
    assert said in done.out
    after = {p.name: p.read_bytes() for p in (folder / "secrets").iterdir()}
    assert {name for name in after if after[name] != before[name]} == changed
    assert Workspace.open(folder).notices() == ()


def test_renew_takes_the_names_that_server_toml_has_now(folder):
    settings = (folder / "server.toml").read_text()
    (folder / "server.toml").write_text(settings.replace('"10.0.0.7"', '"10.0.0.8"'))
    assert "10.0.0.8" in Workspace.open(folder).notices()[0]
    assert "10.0.0.8" in headwater("server", "renew", folder).out
    assert Workspace.open(folder).notices() == ()


def test_nobody_is_enrolled_by_two_commands_under_one_name(folder):
    """Two organisers' commands at once: one wins, the other is told."""
    lines = [make_request(identity("ann", seed)) for seed in (3, 4)]
    command = [sys.executable, "-m", "headwater", "server", "clients", "accept", str(folder)]
    running = [
        subprocess.Popen([*command, line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for line in lines
    ]
    errors = [process.communicate()[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 2]
    assert b"a name that is free" in b"".join(errors)
