"""Authentication of requests: each refusal by its reason, then the same over a real port."""

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
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.main import create_app

from headwater import __version__
from headwater.flower.fleet_server import ACTIVATE, PATHS, PUSH_OBJECT, FleetServer
from headwater.security.signing import Identity, RequestClaim
from headwater.server import http_protocol
from headwater.server.agent_port import connection_limits
from headwater.server.agent_port.request_auth import WINDOW_S, Limits, RequestAuthenticator
from tests.flower_layer.deployment import Registry, running, wait_for

PULL = "/v1/fleet/pull-messages"
NOW = 1.8e9


class FakePort:
    """A request authenticator with an app behind it that notes what comes through."""

    def __init__(self, limits=None):
        self.now, self.registry = NOW, Registry()
        self.link = FleetServer(max_reply_bytes=lambda name: 2**20)
        self.through, self.wait = [], None
        self.authenticator = RequestAuthenticator(
            self.app, self.link, self.registry, limits or Limits(body_s=0.2), clock=lambda: self.now
        )
        self.a = self.enrol("a")

    def enrol(self, name):
        identity = Identity.create(name)
        self.registry.add(identity)
        self.link.register(name, identity.public.node_key)
        return identity

    async def app(self, scope, receive, send):
        message = await receive()
        self.through.append((scope["headwater.client"], scope["path"], message["body"]))
        if self.wait:
            await self.wait.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    def headers(self, identity, path, body, **change):
        """As an agent sends them; ``change`` alters what is signed."""
        facts = {
            "method": "POST",
            "path": path,
            "body": body,
            "instance": "1" * 32,
            "version": __version__,
            "now_ms": int(self.now * 1000),
        }
        return identity.request_headers(**facts | change) | {"content-length": str(len(body))}

    def ask(self, path=PULL, body=b"body", headers=None, *, identity=None, pieces=None, scope=(), **change):
        """Status, text and headers of the answer."""
        headers = self.headers(identity or self.a, path, body, **change) if headers is None else headers
        return asyncio.run(self.ask_async(path, body, headers, pieces, dict(scope)))

    async def ask_async(self, path, body, headers, pieces=None, scope=None):
        pairs = headers.items() if isinstance(headers, dict) else headers
        pieces = iter([body] if pieces is None else pieces)
        rest = [next(pieces, None)]
        self.read = 0

        async def receive():
            if rest[0] is None:
                await asyncio.sleep(3600)
            piece, rest[0] = rest[0], next(pieces, None)
            self.read += len(piece)
            return {"type": "http.request", "body": piece, "more_body": rest[0] is not None}

        sent = []

        async def send(message):
            sent.append(message)

        await self.authenticator(
            {
                "type": "http",
                "path": path,
                "method": "POST",
                "query_string": b"",
                "headers": [(k.encode(), v.encode()) for k, v in pairs],
            }
            | (scope or {}),
            receive,
            send,
        )
        if not sent:
            return None, "", {}
        text = b"".join(m["body"] for m in sent[1:]).decode()
        return sent[0]["status"], text, dict(sent[0]["headers"])

    def activate(self, **change):
        assert self.ask(ACTIVATE, **change)[0] == 200


@pytest.fixture
def fleet_port():
    fleet_port = FakePort()
    fleet_port.activate()
    fleet_port.through.clear()
    return fleet_port


def refused(fleet_port, reason, name="", *, times=1):
    assert fleet_port.authenticator.refused == ({reason: times} if times else {})
    assert fleet_port.authenticator.refused_by == ({(name, reason): times} if name else {})
    assert not fleet_port.through


def silent(answer):
    """What everyone without a valid key sees."""
    assert answer == (403, "", {b"content-length": b"0", b"connection": b"close"})


def test_a_signed_request_goes_through_under_its_name(fleet_port):
    assert fleet_port.ask(body=b"x" * 100)[:2] == (200, "fine")
    assert fleet_port.through == [("a", PULL, b"x" * 100)]
    assert not fleet_port.authenticator.refused
    assert fleet_port.link.online() == {"a"}


def test_a_body_in_pieces(fleet_port):
    assert fleet_port.ask(body=b"abcdef", pieces=[b"abc", b"", b"def"])[0] == 200
    assert fleet_port.through == [("a", PULL, b"abcdef")]


def test_strangers_get_one_answer_and_nothing_is_read(fleet_port):
    stranger = Identity.create("stranger")
    false = Identity.create("a")
    fleet_port.enrol("gone")
    gone = Identity.create("gone")
    fleet_port.registry.add(gone).revoked_at = "2026-01-01"
    ways = {
        "headers": {"headers": {"content-length": "4"}},
        "unknown": {"identity": stranger},
        "signature": {"identity": false},
        "revoked": {"identity": gone},
        "path": {"path": "/v1/fleet/register-node"},
    }
    for way in ways.values():
        silent(fleet_port.ask(**way))
        assert fleet_port.read == 0
    assert fleet_port.authenticator.refused == dict.fromkeys(ways, 1)
    assert not fleet_port.authenticator.refused_by
    assert not fleet_port.through


@pytest.mark.parametrize("scope", [{"method": "GET"}, {"query_string": b"a=1"}, {"path": PULL + "/"}])
def test_only_the_calls_themselves(fleet_port, scope):
    silent(fleet_port.ask(scope=scope))
    refused(fleet_port, "path")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("client", "b"), ("version", "0.1.1"), ("instance", "2" * 32), ("time", str(int(NOW * 1000) + 1)),
        ("nonce", "0" * 32), ("length", "5"), ("body", "0" * 64), ("signature", "A" * 86 + "=="),
    ],
)  # fmt: skip
def test_no_header_can_be_altered(fleet_port, header, value):
    fleet_port.enrol("b")
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    assert headers[f"x-headwater-{header}"] != value
    silent(fleet_port.ask(headers=headers | {f"x-headwater-{header}": value}))
    refused(fleet_port, "signature")


def test_a_header_that_comes_twice(fleet_port):
    headers = list(fleet_port.headers(fleet_port.a, PULL, b"body").items())
    silent(fleet_port.ask(headers=[*headers, ("x-headwater-client", "b")]))
    refused(fleet_port, "headers")


def test_another_path_than_the_signed_one(fleet_port):
    silent(fleet_port.ask(path=PUSH_OBJECT, headers=fleet_port.headers(fleet_port.a, PULL, b"body")))
    refused(fleet_port, "signature")


def test_a_replayed_request(fleet_port):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    assert fleet_port.ask(headers=headers)[0] == 200
    fleet_port.through.clear()
    for later in (0, WINDOW_S - 1):
        fleet_port.now = NOW + later
        assert fleet_port.ask(headers=headers)[:2] == (403, "")
    refused(fleet_port, "replayed", "a", times=2)
    fleet_port.now = NOW + WINDOW_S + 1
    assert fleet_port.ask(headers=headers)[:2] == (403, "")
    assert fleet_port.authenticator.refused["time"] == 1


def test_nonces_are_kept_for_as_long_as_they_matter_and_no_longer(fleet_port):
    """A time ahead of ours is let in for twice the window: so long its nonce must be known."""
    early = fleet_port.headers(fleet_port.a, PULL, b"body", now_ms=int((NOW + WINDOW_S - 1) * 1000))
    assert fleet_port.ask(headers=early)[0] == 200
    fleet_port.now += 2 * WINDOW_S - 2
    assert fleet_port.ask(headers=early)[0] == 403
    assert fleet_port.authenticator.refused == {"replayed": 1}
    for _ in range(50):
        fleet_port.now += WINDOW_S
        assert fleet_port.ask()[0] == 200
    assert len(fleet_port.authenticator._callers["a"].nonces) <= 4


@pytest.mark.parametrize("seconds", [-WINDOW_S - 1, WINDOW_S + 1, -86400, 10**9])
def test_another_time(fleet_port, seconds):
    assert fleet_port.ask(now_ms=int((NOW + seconds) * 1000))[:2] == (403, "")
    refused(fleet_port, "time", "a")


@pytest.mark.parametrize("body", [b"bodz", b"", b"bod", b"bodyy"])
def test_an_altered_body(fleet_port, body):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    silent(fleet_port.ask(headers=headers, body=body))
    refused(fleet_port, "length" if len(body) > 4 else "body", "a")


def test_a_length_that_was_not_signed(fleet_port):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body") | {"content-length": "5"}
    assert fleet_port.ask(headers=headers, body=b"bodyy")[:2] == (403, "")
    refused(fleet_port, "length", "a")


@pytest.mark.parametrize("length", [None, "", "-1", "+4", "4, 4", "0x4", "9" * 30])
def test_no_length(fleet_port, length):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    del headers["content-length"]
    status, text, more = fleet_port.ask(
        headers=headers | ({} if length is None else {"content-length": length})
    )
    assert (status, text, more[b"connection"]) == (411, "content-length is required\n", b"close")
    assert fleet_port.read == 0
    refused(fleet_port, "no length", "a")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_body_beyond_the_limit_of_its_path(fleet_port, path):
    most = fleet_port.authenticator._limits.body_bytes(path)
    status, text, more = fleet_port.ask(path=path, body=bytes(most + 1))
    assert (status, text, more[b"connection"]) == (413, f"at most {most} bytes\n", b"close")
    assert fleet_port.read == 0
    refused(fleet_port, "too large", "a")
    assert fleet_port.ask(path=path, body=bytes(min(most, 2**20)))[0] == 200


@pytest.mark.parametrize("version", ["0.2.0", "1.1.0", "0.0.9", "0", "0.10.0"])
def test_another_minor_version(fleet_port, version):
    status, text, more = fleet_port.ask(version=version)
    assert (status, text) == (426, f"this server is headwater {__version__}, you are {version}\n")
    assert b"connection" not in more
    refused(fleet_port, "version", "a")


def test_another_patch_version(fleet_port):
    assert fleet_port.ask(version="0.1.99")[0] == 200


def test_a_revoked_key_is_out_at_once(fleet_port):
    fleet_port.registry["a"].revoked_at = "2026-01-01"
    silent(fleet_port.ask())
    refused(fleet_port, "revoked")


def test_a_second_process_with_the_same_key_takes_over_for_good(fleet_port):
    old, new = "1" * 32, "2" * 32
    assert fleet_port.ask(instance=new)[:2] == (
        428,
        "the server does not know this session: activate\n",
    )
    fleet_port.activate(instance=new)
    assert fleet_port.ask(instance=new)[0] == 200
    fleet_port.through.clear()
    fleet_port.authenticator.refused.clear()
    fleet_port.authenticator.refused_by.clear()
    for path in (PULL, ACTIVATE):
        status, text, _ = fleet_port.ask(path=path, instance=old)
        assert (status, text) == (409, "another agent with your keys has taken over\n")
    refused(fleet_port, "replaced", "a", times=2)
    assert fleet_port.ask(instance=new)[0] == 200


def test_a_thousand_processes_of_one_key_are_not_remembered(fleet_port):
    for i in range(1000):
        fleet_port.activate(instance=f"{i:032x}")
        fleet_port.now += WINDOW_S
    caller = fleet_port.authenticator._callers["a"]
    assert len(caller.former) == 16
    assert len(caller.nonces) <= 4


def test_one_clients_process_is_not_anothers(fleet_port):
    b = fleet_port.enrol("b")
    assert fleet_port.ask(identity=b)[0] == 428
    fleet_port.activate(identity=b, instance="2" * 32)
    assert fleet_port.ask()[0] == 200


def test_bytes_per_hour():
    fleet_port = FakePort(Limits(bytes_per_hour=1000))
    fleet_port.activate(body=b"")
    assert fleet_port.ask(body=bytes(900))[0] == 200
    fleet_port.through.clear()
    assert fleet_port.ask(body=bytes(200))[:2] == (429, "come back next hour\n")
    refused(fleet_port, "bytes per hour", "a")
    fleet_port.now += 3600
    fleet_port.activate(body=b"")
    assert fleet_port.ask(body=bytes(200))[0] == 200


def test_requests_in_the_window():
    fleet_port = FakePort(Limits(requests_in_window=3))
    fleet_port.activate()
    assert [fleet_port.ask()[0] for _ in range(3)] == [200, 200, 429]
    fleet_port.now += 2 * WINDOW_S + 1
    assert fleet_port.ask()[0] == 200


def test_requests_at_once():
    fleet_port = FakePort(Limits(requests_at_once=2, body_s=0.2))
    b = fleet_port.enrol("b")
    fleet_port.activate()
    fleet_port.activate(identity=b)

    async def many():
        fleet_port.wait = asyncio.Event()
        asking = [
            asyncio.create_task(fleet_port.ask_async(PULL, b"", fleet_port.headers(fleet_port.a, PULL, b"")))
            for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        other = asyncio.create_task(fleet_port.ask_async(PULL, b"", fleet_port.headers(b, PULL, b"")))
        await asyncio.sleep(0.05)
        fleet_port.wait.set()
        return [(await task)[0] for task in [*asking, other]]

    assert asyncio.run(many()) == [200, 200, 429, 200]
    assert fleet_port.authenticator.refused_by == {("a", "at once"): 1}
    fleet_port.wait = None
    assert fleet_port.ask()[0] == 200


def test_a_request_is_done_before_its_answer_leaves():
    """Else an agent that goes on at once would find its own last request in its way."""
    fleet_port = FakePort(Limits(requests_at_once=1))
    fleet_port.activate()

    async def lingering(scope, receive, send):
        await fleet_port.app(scope, receive, send)
        await asyncio.sleep(0.3)

    fleet_port.authenticator._app = lingering

    async def one_after_the_other():
        asking = []
        for _ in range(2):
            headers = fleet_port.headers(fleet_port.a, PULL, b"")
            asking.append(asyncio.create_task(fleet_port.ask_async(PULL, b"", headers)))
            await asyncio.sleep(0.05)
        return [(await task)[0] for task in asking]

    assert asyncio.run(one_after_the_other()) == [200, 200]


def test_a_body_that_does_not_come(fleet_port):
    assert fleet_port.ask(pieces=[b"bo", b"d"])[0] == 403  # it ended early: not what was signed
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")

    async def slow():
        sent = []

        async def receive():
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"", "more_body": True}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": PULL, "method": "POST", "query_string": b""}
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
        await fleet_port.authenticator(scope | {"headers": pairs}, receive, send)
        return sent

    sent = asyncio.run(slow())
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert fleet_port.authenticator.refused == {"body": 1, "slow": 1}
    assert fleet_port.ask()[0] == 200


def test_replies_that_wait_stop_further_ones_before_they_are_read(fleet_port, monkeypatch):
    monkeypatch.setattr(fleet_port.link, "room", lambda name: 1000)
    assert fleet_port.ask(PUSH_OBJECT, body=bytes(1001))[0] == 429
    refused(fleet_port, "full", "a")
    assert fleet_port.ask(PUSH_OBJECT, body=bytes(1000))[0] == 200
    assert fleet_port.ask(PULL, body=bytes(1001))[0] == 200


def test_an_app_that_fails_frees_its_place(fleet_port):
    async def broken(scope, receive, send):
        raise RuntimeError("broken")

    fleet_port.authenticator._app = broken
    for _ in range(20):
        with pytest.raises(RuntimeError):
            fleet_port.ask()
    assert fleet_port.authenticator._callers["a"].at_once == 0


def test_what_is_no_http_is_closed(fleet_port):
    sent = []

    async def send(message):
        sent.append(message)

    for kind in ("websocket", "lifespan"):
        asyncio.run(fleet_port.authenticator({"type": kind}, None, send))
    assert sent == [{"type": "websocket.close"}]


# --- over a real port --------------------------------------------------------------------------------


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
    signature = identity.signing_key.sign(claim.text(method="POST", path=PUSH_OBJECT))
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
