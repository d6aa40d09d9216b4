"""``headwater doctor``: each thing that can be wrong is found, and said with what to do about it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import threading
import time
import tomllib
from collections import namedtuple
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
import uvicorn

from headwater.cli.doctor import machine, member, packages
from headwater.security.certificates import Authority
from headwater.server.http_protocol import fleet_port
from headwater.server.workspace.lock import FolderLock
from tests.client.agent.devices import agent_file
from tests.server.agent_port.fake_port import FakePort
from tests.support.command import headwater
from tests.support.runs import bare_federation, tiny_federation

ROOT = Path(__file__).parents[2]


def one(findings):
    (found,) = findings
    return found


def bad(findings):
    return [(found.check, found.exit_code) for found in findings if found.state == "bad"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A fleet port, as the daemon has it: its address, and its authority's certificate."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.create("test")
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    for name, pem in zip(("cert.pem", "key.pem"), authority.issue_server(["localhost"]), strict=True):
        (folder / name).write_bytes(pem)
    config = fleet_port(
        FakePort().authenticator, host="127.0.0.1", port=0,
        certificate=folder / "cert.pem", key=folder / "key.pem",
    )  # fmt: skip
    running = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()
    yield f"localhost:{listener.getsockname()[1]}", folder / "ca.pem"
    running.should_exit = True
    thread.join()
    listener.close()


def test_this_machine_is_told_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = headwater("doctor", "--json")
    content = json.loads(done.out)
    seen = {found["check"]: found for found in content["findings"]}
    assert content["bad"] == done.code == 0
    assert {"python", "headwater", "packages", "torch", "gpu", "memory", "file limit", "clock"} <= set(seen)
    assert {"disk, runs", "disk, temporary", "port, engine network", "model cache"} <= set(seen)
    assert {f"extra {name}" for name in packages.EXTRAS} <= set(seen)
    assert metadata.version("torch") in seen["torch"]["text"]
    shown = headwater("doctor").out
    assert shown.endswith("Nothing is wrong.\n")
    for check in seen:
        assert check in shown


def test_every_extra_that_people_install_is_explained():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(packages.EXTRAS) == set(declared) - {"dev", "fuzz"}


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch):
    known, about = metadata.version, Message()
    about["Provides-Extra"], about["provides-extra"] = "speed", "gguf"
    declared = ["torch>=2.9", "numpy", 'numba>=0.68; extra == "speed"', 'gguf; extra == "gguf"']

    def version(name):
        if name == "numba":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else known(name)

    monkeypatch.setattr(metadata, "requires", lambda name: declared)
    monkeypatch.setattr(metadata, "metadata", lambda name: about)
    monkeypatch.setattr(metadata, "version", version)
    found = {f.check: f for f in packages.requirements()}
    assert found["packages"].state == "bad"
    assert found["packages"].text == "torch is 1.0, but >=2.9 is needed"
    assert found["packages"].exit_code == 12
    assert found["extra speed"].state == "note"
    assert found["extra speed"].text == "numba is not installed"
    assert 'pip install "headwater[speed]"' in found["extra speed"].advice
    assert found["extra gguf"].text == f"gguf {known('gguf')}"
    assert found["extra ray"].text == "the installed headwater does not know it"


def test_another_python_is_refused(monkeypatch):
    monkeypatch.setattr(packages.sys, "version_info", (3, 9, 1))
    assert bad(packages.installation()) == [("python", 12)]


def test_disks(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    states = {10**7: "bad", 10**9: "note", 10**10: "ok"}
    for free, state in states.items():
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**12, 0, free))
        found = one(machine.disk("runs", tmp_path / "not" / "there"))
        assert (found.state, found.exit_code) == (state, 11 if state == "bad" else 0)
        assert str(tmp_path) in found.text
        assert "not" not in found.text.removeprefix(str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert bad(machine.disk("runs", tmp_path)) == [("disk, runs", 11)]


def test_file_limits(monkeypatch):
    for hard, state in ((512, "note"), (1024, "ok"), (resource.RLIM_INFINITY, "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda which, hard=hard: (256, hard))
        assert one(machine.file_limit()).state == state


def test_a_clock_behind_the_installation_is_bad(monkeypatch):
    assert one(machine.clock()).state == "ok"
    monkeypatch.setattr(time, "time", lambda: 1e9)
    found = one(machine.clock())
    assert (found.state, found.exit_code) == ("bad", 2)
    assert "2001-09-09" in found.text


def test_a_taken_port_is_bad_unless_it_is_our_own():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        found = one(machine.port("web", "127.0.0.1", number))
        assert (found.state, found.exit_code) == ("bad", 2)
        assert one(machine.port("web", "127.0.0.1", number, ours=True)).state == "ok"
    assert one(machine.port("web", "127.0.0.1", number)).state == "ok"
    assert one(machine.port("web", "no.such.host.invalid", 1)).state == "bad"


def test_a_server_that_answers_tells_its_time(server):
    address, ca = server
    answers, clock = member.reach(address, ca)
    assert (answers.state, clock.state) == ("ok", "ok")
    for off, state in ((-20, "ok"), (60, "note"), (-60, "note"), (400, "bad"), (-400, "bad")):
        _, clock = member.reach(address, ca, now=lambda off=off: time.time() + off)
        assert clock.state == state, off
        assert ("ahead of" if off > 0 else "behind") in clock.text
    said = re.search(r"(\d+) s behind", clock.text)
    assert 395 <= int(said[1]) <= 405


def test_a_server_of_another_authority_or_name_is_bad(server, tmp_path):
    address, ca = server
    (tmp_path / "other.pem").write_bytes(Authority.create("other").certificate_pem)
    found = one(member.reach(address, tmp_path / "other.pem"))
    assert (found.state, found.exit_code) == ("bad", 13)
    assert "ca.pem the organiser's?" in found.advice
    assert [f.state for f in member.reach(address, None)] == ["ok", "ok"]
    assert one(member.reach(address.replace("localhost", "127.0.0.2"), ca)).state == "bad"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"127.0.0.1:{listener.getsockname()[1]}"
    found = one(member.reach(nobody, ca))
    assert "Is the server running" in found.advice


def test_the_exit_code_is_that_of_the_first_bad_finding(tmp_path):
    file = bare_federation(tmp_path)
    assert headwater("doctor", file).code == 0
    file.write_text(file.read_text().replace("rounds = 3", "rounds = 0"))
    done = headwater("doctor", file)
    assert done.code == 2
    assert "federation.rounds" in done.out
    assert done.out.endswith("are bad.\n")
    assert headwater("doctor", tmp_path / "no.toml").code == 2
    assert headwater("doctor", "--server", "http://x:1").code == 2


def test_what_a_federation_needs_and_is_not_there(tmp_path, monkeypatch):
    file = tiny_federation(tmp_path, baselines={"probe": True})
    assert bad(member.needs(file)) == []
    monkeypatch.setattr(member.importlib.util, "find_spec", lambda name: None)
    assert bad(member.needs(file)) == [("baselines.probe", 12)]
    (tmp_path / "train.jsonl").unlink()
    shutil.rmtree(tmp_path / "bert")
    found = bad(member.needs(file))
    assert found == [("model.path", 4), ("data.path", 3), ("baselines.probe", 12)]
    (tmp_path / "train.jsonl").mkdir()
    (tmp_path / "train.jsonl" / "a.parquet").write_bytes(b"")
    assert ("data.path", 12) in bad(member.needs(file))


def test_what_an_agent_needs(tmp_path, server):
    address, ca = server
    settings = agent_file(tmp_path, server=address)
    file = settings.folder / "agent.toml"
    shutil.copy(ca, settings.ca)
    missing = [f for f in member.needs(file) if f.state == "bad"]
    assert {f.check for f in missing} <= {"agent file"}
    assert [f.state for f in member.needs(file)][-2:] == ["ok", "ok"]
    settings.ca.unlink()
    assert one(f for f in member.needs(file) if str(settings.ca) in f.check).exit_code == 2


def test_a_server_s_ports(tmp_path):
    folder = tmp_path / "server"
    with contextlib.ExitStack() as stack:
        ports = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)
        ]
    made = headwater("server", "init", folder, "--names", "localhost")
    assert made.code == 0, made.err
    text = (folder / "server.toml").read_text()
    for port, old in zip(ports, (8443, 8444, 8445), strict=True):
        text = re.sub(rf'"[\d.]+:{old}"', f'"127.0.0.1:{port}"', text)
    (folder / "server.toml").write_text(text)
    assert bad(member.needs(folder)) == []
    with socket.create_server(("127.0.0.1", ports[1])):
        assert bad(member.needs(folder / "server.toml")) == [("port, control", 2)]
        with FolderLock(folder).held():
            assert bad(member.needs(folder)) == []
