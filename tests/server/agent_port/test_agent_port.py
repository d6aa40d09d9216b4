"""The same over a real port: closed paths, slow and endless senders, connections."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.main import create_app

from headwater import __version__
from headwater.flower.fleet_server import PATHS, PUSH_OBJECT
from headwater.security.claims import RequestClaim, signed_text
from headwater.security.signing import Identity
from headwater.server import http_protocol
from headwater.server.agent_port import connection_limits
from headwater.server.agent_port.request_auth import Limits
from tests.flower_layer.deployment import running, wait_for
from tests.server.agent_port.fake_port import PULL


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


def client_for(server):
    context = ssl.create_default_context(cadata=server.ca.decode())
    return httpx.Client(
        base_url=f"https://127.0.0.1:{server.port}", verify=context, trust_env=False, timeout=60
    )


def flower_paths():
    """Every route that Flower's own server has, and every one it parses protobufs for."""

    def walk(routes):
        for route in routes:
            if hasattr(route, "path"):
                yield route.path
            original = getattr(route, "original_router", None)
            if original is not None:
                yield from walk(original.routes)
            yield from walk(getattr(route, "routes", None) or [])

    app = create_app()
    return sorted({path for _, path in PROTOBUF_REQUEST_TYPES} | set(walk(app.routes)))


def test_every_path_of_flower_is_closed_to_strangers(server):
    paths = flower_paths()
    assert len(paths) > 70
    assert {"/v1/fleet/register-node", "/v1/control/start-run", "/docs", "/openapi.json"} <= set(paths)
    with client_for(server) as client:
        for path in [*paths, "/", "/redoc", "/v1/fleet", "//v1/fleet/pull-messages"]:
            path = re.sub(r"\{.*?\}", "1", path)
            for method in ("GET", "POST"):
                answer = client.request(method, path)
                assert (answer.status_code, answer.content) == (403, b""), (method, path)
                assert answer.headers["connection"] == "close"
                assert "server" not in answer.headers


def test_what_is_not_in_the_list_is_closed_to_clients_too(server):
    me = server.enrol("curious")
    connection = server.connect(me)
    connection.activate()
    instance = connection._http._instance
    with client_for(server) as client:
        for path in [p for p in flower_paths() if p not in PATHS and "{" not in p]:
            headers = me.request_headers(
                method="POST",
                path=path,
                body=b"",
                instance=instance,
                version=__version__,
                now_ms=int(time.time() * 1000),
            )
            assert client.post(path, headers=headers).status_code == 403, path
    connection.close()


def test_the_fleet_app_is_closed_without_an_authenticator(server):
    async def ask(scope):
        sent = []

        async def send(message):
            sent.append(message)

        await server.link.app(
            {"type": "http", "path": PULL, "method": "POST", "query_string": b"", "headers": []} | scope,
            None,
            send,
        )
        return sent[0]["status"]

    server.enrol("b")
    assert asyncio.run(ask({})) == 403
    assert asyncio.run(ask({"headwater.client": "b"})) == 403
    assert asyncio.run(ask({"headwater.client": "nobody"})) == 403


def raw(port, certificate):
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    plain = socket.create_connection(("127.0.0.1", port), timeout=60)
    return context.wrap_socket(plain)


def signed_head(identity, length, body_sha256=None, instance="1" * 32, **more):
    """The head of a request to push-object, signed for ``length`` bytes that need not exist."""
    claim = RequestClaim(
        identity.name, __version__, instance, int(time.time() * 1000), secrets.token_hex(16), length,
        body_sha256 or hashlib.sha256(b"").hexdigest(), bytes(64),
    )  # fmt: skip
    signature = identity.signing_key.sign(signed_text(claim, method="POST", path=PUSH_OBJECT))
    headers = replace(claim, signature=signature).headers() | {"host": "x"} | more
    lines = [f"POST {PUSH_OBJECT} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


SERVER = """
import sys, threading
from pathlib import Path
from tests.flower_layer.deployment import Server
from headwater.security.signing import Identity
folder = Path(sys.argv[1])
server = Server(folder)
server.enrol("a").save(folder / "keys")
(folder / "ca.pem").write_bytes(server.ca)
print(server.port, flush=True)
sys.stdin.read()
"""


def peak_kib(pid, *, reset=False):
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew at what is used now
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1])


def stream_zeros(connection, head, *, chunked):
    """Send zeros until the server hangs up, or the test's own limit is over.

    However much that is: a fast machine sends more than 1 GB in the second until it does.
    """
    connection.sendall(head)
    zeros = bytes(2**16)
    frame = b"10000\r\n" + zeros + b"\r\n" if chunked else zeros
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(frame)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_a_gigabyte_is_not_taken_in(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        port = int(process.stdout.readline())
        a = Identity.load(tmp_path / "keys")
        stranger = Identity.create("stranger")
        chunked = {"transfer-encoding": "chunked"}
        plain = f"POST {PUSH_OBJECT} HTTP/1.1\r\nhost: x\r\n"
        heads = {
            "no key": f"{plain}content-length: 1000000000\r\n\r\n".encode(),
            "unknown key": signed_head(stranger, 10**9, **{"content-length": str(10**9)}),
            "no key, chunked": f"{plain}transfer-encoding: chunked\r\n\r\n".encode(),
            "known key, over the limit": signed_head(a, 10**9, **{"content-length": str(10**9)}),
            "known key, chunked": signed_head(a, 0, **chunked),
            "one endless head": b"POST / HTTP/1.1\r\nx: ",
        }
        with raw(port, tmp_path / "ca.pem") as warm_up:
            stream_zeros(warm_up, heads["no key"], chunked=False)
        before = peak_kib(process.pid, reset=True)
        for name, head in heads.items():
            with raw(port, tmp_path / "ca.pem") as connection:
                stream_zeros(connection, head, chunked="chunked" in name)
        grown = peak_kib(process.pid) - before
        assert grown < 20 * 1024, f"{grown} KiB"
    finally:
        process.stdin.close()
        process.wait()


def drip(connection):
    """Send a byte each 0.1 s until the server hangs up, or the test's own limit is over."""
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"P")
            time.sleep(0.1)


def test_a_slow_body_is_cut(tmp_path):
    with running(tmp_path) as server:
        a = server.enrol("a")
        connection = server.connect(a)
        connection.activate()
        instance = connection._http._instance
        server.authenticator._limits = Limits(body_s=0.5)
        with raw(server.port, server.certificate_of_authority(tmp_path)) as slow:
            slow.sendall(signed_head(a, 1000, instance=instance, **{"content-length": "1000"}))
            drip(slow)
        server.authenticator._limits = Limits()
        connection.heartbeat()
        assert server.authenticator.refused == {"slow": 1}
        connection.close()


def test_a_slow_head_is_cut(tmp_path, monkeypatch):
    with running(tmp_path) as server:
        monkeypatch.setattr(http_protocol.DeadlineProtocol, "limits", http_protocol.Limits(head_s=0.3))
        with raw(server.port, server.certificate_of_authority(tmp_path)) as slow:
            drip(slow)
        wait_for(lambda: not server.uvicorn.server_state.connections)
        monkeypatch.setattr(http_protocol.DeadlineProtocol, "limits", http_protocol.Limits(head_s=30))
        connection = server.connect(server.enrol("a"))
        connection.activate()
        (held,) = server.uvicorn.server_state.connections
        assert held._deadline.when() - held.loop.time() > 30  # a request in time has ended that wait
        connection.heartbeat()
        assert list(server.uvicorn.server_state.connections) == [held]
        connection.close()


def test_it_listens_before_it_says_that_it_has_started(monkeypatch):
    seen = []

    async def startup(self, sockets=None):  # uvicorn's own sets started
        seen.append(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = connection_limits.LimitedServer(uvicorn.Config(lambda: None))
        asyncio.run(server.startup([listener]))
    assert seen == [1]


def test_strangers_make_room_for_each_other_and_never_take_an_agents(tmp_path, monkeypatch):
    monkeypatch.setattr(connection_limits, "UNAUTHENTICATED", 3)
    monkeypatch.setattr(connection_limits, "HANDSHAKE_S", 600)  # nobody's time is over here
    monkeypatch.setattr(http_protocol.DeadlineProtocol, "limits", http_protocol.Limits(head_s=600))
    with running(tmp_path) as server, contextlib.ExitStack() as stack:
        authority = server.certificate_of_authority(tmp_path)
        agent = server.connect(server.enrol("a"))
        agent.activate()  # proven: no place of a stranger's
        (first,) = agent._http._http._transport._pool.connections
        open_ones = server.uvicorn.server_state.connections
        held = [stack.enter_context(raw(server.port, authority)) for _ in range(3)]
        wait_for(lambda: len(open_ones) == 4)
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        drip(held[0])  # the oldest makes room, also for one that does not even speak TLS
        newest = [stack.enter_context(raw(server.port, authority)) for _ in range(3)]
        assert silent.recv(1) == b""
        newest[-1].sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert newest[-1].recv(1000).startswith(b"HTTP/1.1 403")
        other = server.connect(server.enrol("b"))
        other.activate()
        agent.heartbeat()
        assert agent._http._http._transport._pool.connections == [first]
        other.close()
        agent.close()


def test_a_client_has_a_fixed_number_of_connections(tmp_path, monkeypatch):
    monkeypatch.setattr(connection_limits, "EACH", 2)
    with running(tmp_path) as server, contextlib.ExitStack() as stack:
        connections = [server.connect(server.enrol("a"))]
        connections += [server.connect(connections[0]._http._identity) for _ in range(3)]
        for connection in connections:
            stack.callback(connection.close)
            connection.activate()
        wait_for(lambda: len(server.uvicorn.server_state.connections) == 2)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
    ],
)
def test_whom_addresses_belong_to(host, network):
    assert connection_limits.network_of(host) == network


def test_old_tls_is_refused(server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)
