"""``headwater client`` as an owner meets it, and the agent as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from headwater.client.agent.preflight import missing_paths
from headwater.config.agent import load_agent
from headwater.errors import ConfigError
from headwater.security.certificates import Authority, describe
from headwater.security.enrolment import read_request
from headwater.security.signing import Identity
from tests.client.agent.devices import agent_file
from tests.support.command import headwater


def test_init_writes_a_file_that_is_right_and_says_what_comes_next(tmp_path):
    path = tmp_path / "device" / "agent.toml"
    done = headwater("client", "init", path, "--name", "edge-7", "--server", "https://fed.example.org:9443/")
    assert done.code == 0
    assert f"headwater client enroll {path}" in done.out
    settings = load_agent(path)
    assert (settings.file.name, settings.file.server) == ("edge-7", "fed.example.org:9443")
    assert settings.state == tmp_path / "device" / "state"
    again = headwater("client", "init", path)
    assert again.code == 2
    assert "a file that exists" in again.error


def test_every_key_of_the_written_file_is_one_when_uncommented(tmp_path):
    headwater("client", "init", tmp_path / "a.toml")
    lines = []
    for line in (tmp_path / "a.toml").read_text().splitlines():
        bare = line.removeprefix("# ")
        lines.append(bare if line.startswith("# ") and (" = " in bare or bare.startswith("[")) else line)
    text = "\n".join(lines).replace("0123…", "0" * 64)
    (tmp_path / "a.toml").write_text(text)
    found = load_agent(tmp_path / "a.toml").file
    unset = {k for k, v in found.policy.model_dump().items() if v is None}
    assert unset == set(), "the written file names every rule"
    assert found.models.allow == ["0" * 64]
    assert found.plugins.allow == ["trainers:NAME"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"nam": "x"}, r"agent\.toml: nam: expected no such key"),
        ({"name": "-x"}, r"agent\.toml: name: expected 1 to 64 letters"),
        ({"server": "http://x:1"}, r"agent\.toml: server: .*always https"),
        ({"server": "::1:8443"}, r"agent\.toml: server: .*in brackets"),
        ({"server": "x:70000"}, r"agent\.toml: server"),
        ({"data": {}}, r"agent\.toml: data\.path: expected this key"),
        ({"policy": {"hours": "25:00-01:00"}}, r"agent\.toml: policy\.hours"),
        ({"policy": {"metered": True}}, r"agent\.toml: policy: .*metered = true without max_mb_per_day"),
        ({"policy": {"max_rank": "8"}}, r"agent\.toml: policy\.max_rank"),
        ({"policy": {"training": ["magic"]}}, r"agent\.toml: policy\.training"),
        ({"models": {"allow": ["abc"]}}, r"agent\.toml: models\.allow"),
    ],
)
def test_a_wrong_file_is_an_error_by_file_and_key(tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        agent_file(tmp_path, **changes)


def test_no_file_and_no_toml(tmp_path):
    with pytest.raises(ConfigError, match="headwater client init"):
        load_agent(tmp_path / "agent.toml")
    (tmp_path / "agent.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="valid TOML"):
        load_agent(tmp_path / "agent.toml")


def test_enroll_makes_keys_once_and_prints_a_request_that_holds_no_secret(tmp_path):
    agent_file(tmp_path)
    first = headwater("client", "enroll", tmp_path / "agent.toml")
    assert first.code == 0
    public = read_request(first.out.splitlines()[0])
    assert public.name == "ann"
    assert public.fingerprint() in first.out
    again = headwater("client", "enroll", tmp_path / "agent.toml")
    assert read_request(again.out.splitlines()[0]) == public
    assert Identity.load(tmp_path / "state" / "keys").public == public
    assert (tmp_path / "state" / "keys").stat().st_mode & 0o077 == 0


def test_enroll_shows_the_authority_to_compare_with_what_the_organiser_sees(tmp_path):
    agent_file(tmp_path)
    assert "ask the organiser for ca.pem" in headwater("client", "enroll", tmp_path / "agent.toml").out
    pem = Authority.create("t").certificate_pem
    (tmp_path / "ca.pem").write_bytes(pem)
    assert describe(pem) in headwater("client", "enroll", tmp_path / "agent.toml").out


def test_a_file_that_is_not_the_authority_is_named(tmp_path):
    agent_file(tmp_path)
    authority = Authority.create("t")
    certificate, key = authority.issue_server(["127.0.0.1"])
    for wrong, got in [(certificate, "a certificate of the server"), (key, "something else")]:
        (tmp_path / "ca.pem").write_bytes(wrong)
        for verb in ("run", "enroll"):
            error = headwater("client", verb, tmp_path / "agent.toml").error
            assert f"ca {tmp_path / 'ca.pem'}: expected the certificate of the organiser's authority" in error
            assert got in error


def test_what_is_absent_is_said_before_any_task(tmp_path):
    settings = agent_file(tmp_path, models={"folders": ["models"]})
    data, models = missing_paths(settings)
    assert data.startswith(f"data.path {tmp_path / 'ann.jsonl'}: nothing there")
    assert models.startswith(f"models.folders {tmp_path / 'models'}: nothing there")
    (tmp_path / "models").mkdir()
    (tmp_path / "ann.jsonl").touch()
    assert list(missing_paths(settings)) == []


def test_enroll_without_a_file(tmp_path):
    done = headwater("client", "enroll", "--name", "edge-1", "--state", tmp_path / "s")
    assert read_request(done.out.splitlines()[0]).name == "edge-1"
    other = headwater("client", "enroll", "--name", "edge-2", "--state", tmp_path / "s")
    assert other.code == 2
    assert "edge-1" in other.error
    assert headwater("client", "enroll").code == 2
    agent_file(tmp_path)
    assert "both" in headwater("client", "enroll", tmp_path / "agent.toml", "--name", "x").error


def test_run_says_what_is_missing(tmp_path):
    agent_file(tmp_path)
    assert "CONFIG" in headwater("client", "run").error
    assert "ca.pem" in headwater("client", "run", tmp_path / "agent.toml").error
    (tmp_path / "ca.pem").write_bytes(Authority.create("t").certificate_pem)
    assert "headwater client enroll" in headwater("client", "run", tmp_path / "agent.toml").error
    headwater("client", "enroll", "--name", "bob", "--state", tmp_path / "state")
    assert "'bob', for which the keys were made" in headwater("client", "run", tmp_path / "agent.toml").error


def test_status_before_the_first_run(tmp_path):
    agent_file(tmp_path)
    assert "has not run yet" in headwater("client", "status", tmp_path / "agent.toml").out


def test_the_agent_waits_for_an_absent_server_and_ends_on_sigterm(tmp_path):
    agent_file(tmp_path, server="127.0.0.1:9")
    (tmp_path / "ca.pem").write_bytes(Authority.create("t").certificate_pem)
    headwater("client", "enroll", tmp_path / "agent.toml")
    agent = subprocess.Popen(
        [sys.executable, "-m", "headwater", "client", "run", str(tmp_path / "agent.toml")],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with agent:
        try:
            lines = []
            while "no connection" not in (lines[-1] if lines else ""):
                lines.append(agent.stderr.readline())
                assert lines[-1], lines
            assert "agent 0.1.0 of ann for 127.0.0.1:9" in lines[0]
            status = headwater("client", "status", tmp_path / "agent.toml").out
            assert f"running, process {agent.pid}" in status
            assert "last contact  never" in status
            second = headwater("client", "run", tmp_path / "agent.toml")
            assert "got one that runs" in second.error
            agent.send_signal(signal.SIGTERM)
            assert agent.wait() == 0
        finally:
            agent.kill()
    status = headwater("client", "status", tmp_path / "agent.toml").out
    assert "not running" in status
    assert "ended" in (tmp_path / "state" / "agent.log").read_text().splitlines()[-1]
    assert json.loads((tmp_path / "state" / "status.json").read_text())["pid"] == agent.pid
    assert os.getpid() != agent.pid
