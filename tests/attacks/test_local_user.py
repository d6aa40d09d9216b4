"""Somebody with an account on the server's machine, and none of its secrets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.grounds import UNKNOWN

pytestmark = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux's /proc")
LISTENING = "0A"
NOBODY = 65534


def listening(pid: int) -> list[tuple[str, int]]:
    """(address in hex, port) of a process's listening TCP sockets, and its bound UDP and Unix ones."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            inodes.add(match[1])
    found = []
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (fields[3] == LISTENING or kind.startswith("udp")):
                address, _, port = fields[1].partition(":")
                found.append((address, int(port, 16)))
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and len(fields) > 7:
            found.append((fields[7], 0))
    return found


def secrets(grounds) -> list[bytes]:
    """Every secret there is: the token, and the middle of each private key."""
    workspace = grounds.network.workspace
    found = [workspace.credentials.web_token().encode()]
    found += [path.read_bytes().splitlines()[1] for path in (workspace.path / "secrets").glob("*.key")]
    assert len(found) >= 4
    return found


def test_the_daemon_has_three_ports_all_on_loopback_here(grounds):
    found = listening(grounds.pid)
    assert sorted(port for _, port in found) == sorted(grounds.network.ports)
    assert {address for address, _ in found} <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_others_can_read_nothing_of_the_workspace(grounds):
    for path in (grounds.network.workspace.path, *grounds.network.workspace.path.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        inside_closed = any(not stat.S_IMODE(p.stat().st_mode) & 0o077 for p in path.parents)
        assert not mode & 0o077 or inside_closed, (path, oct(mode))
        assert not mode & 0o022, (path, oct(mode))
        if "secrets" in path.parts and path.is_file():
            assert mode == 0o600, (path, oct(mode))


def test_no_secret_in_arguments_environment_or_logs(grounds):
    line = Path(f"/proc/{grounds.pid}/cmdline").read_bytes()
    environment = Path(f"/proc/{grounds.pid}/environ").read_bytes()
    logs = b"".join(p.read_bytes() for p in (grounds.network.workspace.path / "logs").iterdir())
    said = grounds.network.daemon.log.read_bytes()
    assert logs
    for where in (line, environment, logs, said):
        assert b"PRIVATE KEY" not in where
        for secret in secrets(grounds):
            assert secret not in where


def test_a_strangers_words_do_not_reach_the_log(grounds, unmoved):
    """What a caller without a key sends is not written down: no names, no control characters, no flood."""
    words = b"s3cret-of-a-stranger\x1b[2J"
    log = grounds.network.workspace.path / "logs" / "daemon.log"
    before = log.stat().st_size
    for _ in range(100):
        grounds.exchange(
            b"GET /" + words + b" HTTP/1.1\r\nhost: x\r\nx-headwater-client: " + words + b"\r\n\r\n"
        )
        grounds.exchange(grounds.request(UNKNOWN, "/v1/fleet/pull-messages", b""))
    text = log.read_bytes()
    assert b"s3cret" not in text
    assert UNKNOWN.encode() not in text
    assert len(text) - before < 20_000


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_as_nobody(grounds, unmoved):
    """Really as another user: nothing can be read, listed or signalled, and the page wants its token."""
    workspace, pid = grounds.network.workspace.path, grounds.pid
    files = [p for p in workspace.rglob("*") if p.is_file()]
    assert len(files) > 9
    files += [Path(f"/proc/{pid}/{name}") for name in ("environ", "mem", "maps")]

    def attack() -> list[str]:
        done = []
        for path in files:
            with contextlib.suppress(OSError), path.open("rb") as file:
                done.append(f"opened {file.name}")
        for what, act in {
            "signalled": lambda: os.kill(pid, 0),
            "files": lambda: list(Path(f"/proc/{pid}/fd").iterdir()),
            "workspace": lambda: list(workspace.iterdir()),
        }.items():
            with contextlib.suppress(OSError):
                act()
                done.append(what)
        with grounds.tcp(2) as web:
            web.sendall(b"GET /api/status HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            done.append(web.recv(12).decode())
        return done

    assert as_nobody(attack) == ["HTTP/1.1 401"]


def as_nobody(act: Callable[[], list[str]]) -> list[str]:
    """What ``act`` gives in a child process that has become another user for good."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writes, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return json.loads(data)
