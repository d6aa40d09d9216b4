"""The gate: each refusal by its reason, then the same over a real port."""

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
from headwater.server import http_protocol as fleet_port
from headwater.server.agent_port import connection_limits as doorman
from headwater.server.agent_port.request_auth import WINDOW_S, Limits, RequestAuthenticator
from tests.flower_layer.deployment import Registry, running, wait_for

PULL = "/v1/fleet/pull-messages"
NOW = 1.8e9


class ReplyVerifier:
    """A gate with an app behind it that notes what comes through."""

    def __init__(self, limits=None):
        self.now, self.registry = NOW, Registry()
        self.link = FleetServer(max_reply_bytes=lambda name: 2**20)
        self.through, self.wait = [], None
        self.gate = RequestAuthenticator(
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

        await self.gate(
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
def door():
    door = ReplyVerifier()
    door.activate()
    door.through.clear()
    return door


def refused(door, reason, name="", *, times=1):
    assert door.gate.refused == ({reason: times} if times else {})
    assert door.gate.refused_by == ({(name, reason): times} if name else {})
    assert not door.through


def silent(answer):
    """What everyone without a valid key sees."""
    assert answer == (403, "", {b"content-length": b"0", b"connection": b"close"})


def test_a_signed_request_goes_through_under_its_name(door):
    assert door.ask(body=b"x" * 100)[:2] == (200, "fine")
    assert door.through == [("a", PULL, b"x" * 100)]
    assert not door.gate.refused
    assert door.link.online() == {"a"}


def test_a_body_in_pieces(door):
    assert door.ask(body=b"abcdef", pieces=[b"abc", b"", b"def"])[0] == 200
    assert door.through == [("a", PULL, b"abcdef")]


def test_strangers_get_one_answer_and_nothing_is_read(door):
    stranger = Identity.create("stranger")
    false = Identity.create("a")
    door.enrol("gone")
    gone = Identity.create("gone")
    door.registry.add(gone).revoked_at = "2026-01-01"
    ways = {
        "headers": {"headers": {"content-length": "4"}},
        "unknown": {"identity": stranger},
        "signature": {"identity": false},
        "revoked": {"identity": gone},
        "path": {"path": "/v1/fleet/register-node"},
    }
    for way in ways.values():
        silent(door.ask(**way))
        assert door.read == 0
    assert door.gate.refused == dict.fromkeys(ways, 1)
    assert not door.gate.refused_by
    assert not door.through


@pytest.mark.parametrize("scope", [{"method": "GET"}, {"query_string": b"a=1"}, {"path": PULL + "/"}])
def test_only_the_calls_themselves(door, scope):
    silent(door.ask(scope=scope))
    refused(door, "path")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("client", "b"), ("version", "0.1.1"), ("instance", "2" * 32), ("time", str(int(NOW * 1000) + 1)),
        ("nonce", "0" * 32), ("length", "5"), ("body", "0" * 64), ("signature", "A" * 86 + "=="),
    ],
)  # fmt: skip
def test_no_header_can_be_altered(door, header, value):
    door.enrol("b")
    headers = door.headers(door.a, PULL, b"body")
    assert headers[f"x-headwater-{header}"] != value
    silent(door.ask(headers=headers | {f"x-headwater-{header}": value}))
    refused(door, "signature")


def test_a_header_that_comes_twice(door):
    headers = list(door.headers(door.a, PULL, b"body").items())
    silent(door.ask(headers=[*headers, ("x-headwater-client", "b")]))
    refused(door, "headers")


def test_another_path_than_the_signed_one(door):
    silent(door.ask(path=PUSH_OBJECT, headers=door.headers(door.a, PULL, b"body")))
    refused(door, "signature")


def test_a_replayed_request(door):
    headers = door.headers(door.a, PULL, b"body")
    assert door.ask(headers=headers)[0] == 200
    door.through.clear()
    for later in (0, WINDOW_S - 1):
        door.now = NOW + later
        assert door.ask(headers=headers)[:2] == (403, "")
    refused(door, "replayed", "a", times=2)
    door.now = NOW + WINDOW_S + 1
    assert door.ask(headers=headers)[:2] == (403, "")
    assert door.gate.refused["time"] == 1


def test_nonces_are_kept_for_as_long_as_they_matter_and_no_longer(door):
    """A time ahead of ours is let in for twice the window: so long its nonce must be known."""
    early = door.headers(door.a, PULL, b"body", now_ms=int((NOW + WINDOW_S - 1) * 1000))
    assert door.ask(headers=early)[0] == 200
    door.now += 2 * WINDOW_S - 2
    assert door.ask(headers=early)[0] == 403
    assert door.gate.refused == {"replayed": 1}
    for _ in range(50):
        door.now += WINDOW_S
        assert door.ask()[0] == 200
    assert len(door.gate._callers["a"].nonces) <= 4


@pytest.mark.parametrize("seconds", [-WINDOW_S - 1, WINDOW_S + 1, -86400, 10**9])
def test_another_time(door, seconds):
    assert door.ask(now_ms=int((NOW + seconds) * 1000))[:2] == (403, "")
    refused(door, "time", "a")


@pytest.mark.parametrize("body", [b"bodz", b"", b"bod", b"bodyy"])
def test_an_altered_body(door, body):
    headers = door.headers(door.a, PULL, b"body")
    silent(door.ask(headers=headers, body=body))
    refused(door, "length" if len(body) > 4 else "body", "a")


def test_a_length_that_was_not_signed(door):
    headers = door.headers(door.a, PULL, b"body") | {"content-length": "5"}
    assert door.ask(headers=headers, body=b"bodyy")[:2] == (403, "")
    refused(door, "length", "a")


@pytest.mark.parametrize("length", [None, "", "-1", "+4", "4, 4", "0x4", "9" * 30])
def test_no_length(door, length):
    headers = door.headers(door.a, PULL, b"body")
    del headers["content-length"]
    status, text, more = door.ask(headers=headers | ({} if length is None else {"content-length": length}))
    assert (status, text, more[b"connection"]) == (411, "content-length is required\n", b"close")
    assert door.read == 0
    refused(door, "no length", "a")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_body_beyond_the_limit_of_its_path(door, path):
    most = door.gate._limits.body_bytes(path)
    status, text, more = door.ask(path=path, body=bytes(most + 1))
    assert (status, text, more[b"connection"]) == (413, f"at most {most} bytes\n", b"close")
    assert door.read == 0
    refused(door, "too large", "a")
    assert door.ask(path=path, body=bytes(min(most, 2**20)))[0] == 200


@pytest.mark.parametrize("version", ["0.2.0", "1.1.0", "0.0.9", "0", "0.10.0"])
def test_another_minor_version(door, version):
    status, text, more = door.ask(version=version)
    assert (status, text) == (426, f"this server is headwater {__version__}, you are {version}\n")
    assert b"connection" not in more
    refused(door, "version", "a")


def test_another_patch_version(door):
    assert door.ask(version="0.1.99")[0] == 200


def test_a_revoked_key_is_out_at_once(door):
    door.registry["a"].revoked_at = "2026-01-01"
    silent(door.ask())
    refused(door, "revoked")


def test_a_second_process_with_the_same_key_takes_over_for_good(door):
    old, new = "1" * 32, "2" * 32
    assert door.ask(instance=new)[:2] == (
        428,
        "the server does not know this session: activate\n",
    )
    door.activate(instance=new)
    assert door.ask(instance=new)[0] == 200
    door.through.clear()
    door.gate.refused.clear()
    door.gate.refused_by.clear()
    for path in (PULL, ACTIVATE):
        status, text, _ = door.ask(path=path, instance=old)
        assert (status, text) == (409, "another agent with your keys has taken over\n")
    refused(door, "replaced", "a", times=2)
    assert door.ask(instance=new)[0] == 200


def test_a_thousand_processes_of_one_key_are_not_remembered(door):
    for i in range(1000):
        door.activate(instance=f"{i:032x}")
        door.now += WINDOW_S
    caller = door.gate._callers["a"]
    assert len(caller.former) == 16
    assert len(caller.nonces) <= 4


def test_one_clients_process_is_not_anothers(door):
    b = door.enrol("b")
    assert door.ask(identity=b)[0] == 428
    door.activate(identity=b, instance="2" * 32)
    assert door.ask()[0] == 200


def test_bytes_per_hour():
    door = ReplyVerifier(Limits(bytes_per_hour=1000))
    door.activate(body=b"")
    assert door.ask(body=bytes(900))[0] == 200
    door.through.clear()
    assert door.ask(body=bytes(200))[:2] == (429, "come back next hour\n")
    refused(door, "bytes per hour", "a")
    door.now += 3600
    door.activate(body=b"")
    assert door.ask(body=bytes(200))[0] == 200


def test_requests_in_the_window():
    door = ReplyVerifier(Limits(requests_in_window=3))
    door.activate()
    assert [door.ask()[0] for _ in range(3)] == [200, 200, 429]
    door.now += 2 * WINDOW_S + 1
    assert door.ask()[0] == 200


def test_requests_at_once():
    door = ReplyVerifier(Limits(requests_at_once=2, body_s=0.2))
    b = door.enrol("b")
    door.activate()
    door.activate(identity=b)

    async def many():
        door.wait = asyncio.Event()
        asking = [
            asyncio.create_task(door.ask_async(PULL, b"", door.headers(door.a, PULL, b""))) for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        other = asyncio.create_task(door.ask_async(PULL, b"", door.headers(b, PULL, b"")))
        await asyncio.sleep(0.05)
        door.wait.set()
        return [(await task)[0] for task in [*asking, other]]

    assert asyncio.run(many()) == [200, 200, 429, 200]
    assert door.gate.refused_by == {("a", "at once"): 1}
    door.wait = None
    assert door.ask()[0] == 200


def test_a_request_is_done_before_its_answer_leaves():
    """Else an agent that goes on at once would find its own last request in its way."""
    door = ReplyVerifier(Limits(requests_at_once=1))
    door.activate()

    async def lingering(scope, receive, send):
        await door.app(scope, receive, send)
        await asyncio.sleep(0.3)

    door.gate._app = lingering

    async def one_after_the_other():
        asking = []
        for _ in range(2):
            headers = door.headers(door.a, PULL, b"")
            asking.append(asyncio.create_task(door.ask_async(PULL, b"", headers)))
            await asyncio.sleep(0.05)
        return [(await task)[0] for task in asking]

    assert asyncio.run(one_after_the_other()) == [200, 200]


def test_a_body_that_does_not_come(door):
    assert door.ask(pieces=[b"bo", b"d"])[0] == 403  # it ended early: not what was signed
    headers = door.headers(door.a, PULL, b"body")

    async def slow():
        sent = []

        async def receive():
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"", "more_body": True}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": PULL, "method": "POST", "query_string": b""}
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
        await door.gate(scope | {"headers": pairs}, receive, send)
        return sent

    sent = asyncio.run(slow())
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert door.gate.refused == {"body": 1, "slow": 1}
    assert door.ask()[0] == 200


def test_replies_that_wait_stop_further_ones_before_they_are_read(door, monkeypatch):
    monkeypatch.setattr(door.link, "room", lambda name: 1000)
    assert door.ask(PUSH_OBJECT, body=bytes(1001))[0] == 429
    refused(door, "full", "a")
    assert door.ask(PUSH_OBJECT, body=bytes(1000))[0] == 200
    assert door.ask(PULL, body=bytes(1001))[0] == 200


def test_an_app_that_fails_frees_its_place(door):
    async def broken(scope, receive, send):
        raise RuntimeError("broken")

    door.gate._app = broken
    for _ in range(20):
        with pytest.raises(RuntimeError):
            door.ask()
    assert door.gate._callers["a"].at_once == 0


def test_what_is_no_http_is_closed(door):
    sent = []

    async def send(message):
        sent.append(message)

    for kind in ("websocket", "lifespan"):
        asyncio.run(door.gate({"type": kind}, None, send))
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


def test_the_links_app_is_closed_without_a_gate(server):
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
        server.gate._limits = Limits(body_s=0.5)
        with raw(server.port, server.certificate_of_authority(tmp_path)) as slow:
            slow.sendall(signed_head(a, 1000, instance=instance, **{"content-length": "1000"}))
            drip(slow)
        server.gate._limits = Limits()
        connection.heartbeat()
        assert server.gate.refused == {"slow": 1}
        connection.close()


def test_a_slow_head_is_cut(tmp_path, monkeypatch):
    with running(tmp_path) as server:
        monkeypatch.setattr(fleet_port.DeadlineProtocol, "limits", fleet_port.Limits(head_s=0.3))
        with raw(server.port, server.certificate_of_authority(tmp_path)) as slow:
            drip(slow)
        wait_for(lambda: not server.uvicorn.server_state.connections)
        monkeypatch.setattr(fleet_port.DeadlineProtocol, "limits", fleet_port.Limits(head_s=30))
        connection = server.connect(server.enrol("a"))
        connection.activate()
        (held,) = server.uvicorn.server_state.connections
        assert held._deadline.when() - held.loop.time() > 30  # a request in time has ended that wait
        connection.heartbeat()
        assert list(server.uvicorn.server_state.connections) == [held]
        connection.close()


def test_strangers_make_room_for_each_other_and_never_take_an_agents(tmp_path, monkeypatch):
    monkeypatch.setattr(doorman, "STRANGERS", 3)
    monkeypatch.setattr(doorman, "HANDSHAKE_S", 600)  # nobody's time is over here
    monkeypatch.setattr(fleet_port.DeadlineProtocol, "limits", fleet_port.Limits(head_s=600))
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
    monkeypatch.setattr(doorman, "EACH", 2)
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
    assert doorman.network_of(host) == network


def test_old_tls_is_refused(server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)
