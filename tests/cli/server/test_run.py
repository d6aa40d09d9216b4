"""``headwater server status|submit|pause|…``: what an organiser asks of a daemon, and what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from headwater.errors import ConfigError, StorageError
from tests.cli.server.folders import FEDERATION, tar_of
from tests.support.command import headwater
from tests.support.control_certificates import certificates
from tests.support.control_port import RUN, write_identity


def test_status(folder):
    done = headwater("server", "status", folder)
    assert (done.code, done.err) == (0, "")
    for shown in (
        "headwater 0.1.0", "123 MB", "1 of 2 online", "390 days", "sentiment", "3/20", "2/4", "0.812",
        "1.23 MB", "train 4", "never", "client bo: no answer in 60 s", "12 × unknown key", "disk is full",
        "run r1: ε 1.234 of 4 at δ 1e-05, 12 more rounds",
    ):  # fmt: skip
        assert shown in done.out


def test_status_as_json(folder):
    done = headwater("server", "status", folder, "--json")
    found = json.loads(done.out)
    assert found["runs"][0]["value"] == RUN.value
    assert found["runs"][1]["value"] is None  # not NaN, which is no JSON
    assert [c["client"] for c in found["clients"]] == ["ann", "bo"]
    assert found["clients"][1]["seen_s_ago"] is None


def test_a_daemon_elsewhere(server, organiser, tmp_path):
    there = ("--server", server.address, "--identity", write_identity(tmp_path / "me"))
    assert json.loads(headwater("server", "status", *there, "--json").out)["version"] == "0.1.0"
    assert headwater("server", "pause", *there, "r7").code == 0
    assert headwater("server", "set", "r7", "rounds=4", *there).code == 0
    assert headwater("server", "adapters", "list", *there, "r7").code == 0
    assert organiser.calls[1:] == [("pause", "r7"), ("change", "r7", {"rounds": "4"}), ("adapters", "r7")]


def test_a_federation_is_checked_here_and_queued_there(folder, organiser, tmp_path, server):
    file = tmp_path / "f" / "federation.toml"
    file.parent.mkdir()
    file.write_text(FEDERATION)
    done = headwater("server", "submit", folder, file)
    assert done.out.startswith("run r1: queued"), done.err
    assert organiser.calls == [("submit", FEDERATION, file.parent)]
    there = ("--server", server.address, "--identity", folder / "secrets")
    assert "--folder" in headwater("server", "submit", *there, file).error
    assert headwater("server", "submit", *there, file, "--folder", "/srv/f").code == 0
    assert str(organiser.calls[-1][2]) == "/srv/f"
    file.write_text(FEDERATION.replace("rounds", "round"))
    assert f"{file}: federation.round" in headwater("server", "submit", folder, file).error
    assert "nothing there" in headwater("server", "submit", folder, tmp_path / "none.toml").error
    assert len(organiser.calls) == 2


def test_runs_are_steered(folder, organiser):
    paused = "run r1: running, round 3 of 20; pauses after round 4\n"
    assert headwater("server", "pause", folder, "r1").out == paused
    assert headwater("server", "resume", folder, "r1").out == "run r1: running, round 3 of 20\n"
    assert "stopped" in headwater("server", "stop", folder, "r1").out
    assert json.loads(headwater("server", "stop", folder, "r1", "--json").out)["state"] == "stopped"
    done = headwater("server", "set", folder, "r1", "deadline_s=600", "rounds=20")
    assert done.code == 0
    assert done.out == (
        "run r1: running, round 3 of 20; deadline_s 120 → 600, at once\n"
        "warning: min_clients is 5, but 2 devices are enrolled\n"
    )
    assert organiser.calls == [
        ("pause", "r1"), ("resume", "r1"), ("stop", "r1"), ("stop", "r1"),
        ("change", "r1", {"deadline_s": "600", "rounds": "20"}),
    ]  # fmt: skip


def test_the_latest_run_is_meant_if_none_is_named(folder, organiser, tmp_path):
    """Which one that is, the daemon knows; each answer names it."""
    verbs = (["pause"], ["resume"], ["stop"], ["set", "rounds=5"])
    for verb, *words in verbs:
        assert headwater("server", verb, folder, *words).out.startswith("run r1")
    organiser.archive = [tar_of(("adapter_config.json", b"{}"))]
    actions = (["list"], ["rollback", "1"], ["unpin", "1"], ["export", "--out", str(tmp_path / "a")])
    for action, *words in actions:
        assert "run r1" in headwater("server", "adapters", action, folder, *words).out
    assert [call[1] for call in organiser.calls[:-1]] == [""] * (len(verbs) + len(actions))


def test_a_resume_says_where_the_paths_start_now(folder, organiser, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    assert headwater("server", "resume", folder, "r1", "--folder", "moved").code == 0
    there = ("--server", server.address, "--identity", folder / "secrets")
    assert headwater("server", "resume", *there, "--folder", "/srv/f").code == 0
    assert [tuple(map(str, call[1:])) for call in organiser.calls] == [
        ("r1", str(tmp_path / "moved")), ("", "/srv/f"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["status", "DIR", "more"], "0 arguments"),
        (["status"], "--server and --identity"),
        (["status", "--server", "localhost:1"], "together"),
        (["status", "--server", "localhost", "--identity", "DIR"], "host:port"),
        (["status", "none"], "nothing there"),
        (["submit", "DIR"], "1 arguments"),
        (["set", "DIR", "r1"], "KEY=VALUE"),
        (["set", "DIR", "r1", "rounds=1", "rounds=2"], "once"),
        (["set", "DIR", "r1", "=2"], "once"),
        (["adapters", "rollback", "DIR"], "1 to 2 arguments"),
        (["adapters", "rollback", "DIR", "r1", "-"], "a version's number"),
        (["adapters", "unpin", "DIR", "r1", "x"], "a version's number"),
        (["adapters", "export", "DIR"], "--out FOLDER"),
        (["adapters", "export", "DIR", "--version", "-1", "--out", "o"], "at least 1"),
    ],
)
def test_what_does_not_make_sense_is_refused(folder, organiser, words, match, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = headwater("server", *[folder if w == "DIR" else w for w in words])
    assert match in done.error
    assert done.code == ConfigError.exit_code
    assert [c for c in organiser.calls if c[0] != "status"] == []


def test_what_the_daemon_refuses(folder, organiser):
    organiser.error = StorageError("writing runs.json", expected="room for 9 bytes", got="disk full")
    done = headwater("server", "stop", folder, "r1")
    assert done.error == "headwater: error HW11: writing runs.json: expected room for 9 bytes, got disk full"
    assert done.code == 11


def test_no_daemon_names_the_command_that_starts_it(folder, server):
    server.stop(0)
    for verb in ("status", "watch"):
        done = headwater("server", verb, folder)
        assert f"headwater server run {folder}" in done.error
        assert server.address in done.error


def test_a_key_that_others_can_read_is_refused(folder):
    (folder / "secrets" / "organiser.key").chmod(0o644)
    assert "0600" in headwater("server", "status", folder).error
    (folder / "secrets" / "ca.pem").unlink()
    assert "ca.pem" in headwater("server", "status", folder).error


def test_as_a_process_and_light(folder):
    """No torch, and a refused handshake prints nothing but our error."""
    code = (
        "import sys; from headwater.cli.main import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "server", "status", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sentiment" in done.stdout
    (folder / "secrets" / "ca.pem").write_bytes(certificates().other_authority.pem)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 13
    assert len(done.stderr.splitlines()) == 1
    assert "does not fit" in done.stderr
