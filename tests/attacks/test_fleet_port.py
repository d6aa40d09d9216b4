"""The one open port, tried by whoever can reach it: every path there is, every kind of key, broken HTTP."""

from __future__ import annotations

import base64
import contextlib
import datetime
import re
import ssl
import time

import grpc
import pytest
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.main import create_app

from headwater.flower.fleet_server import PATHS, FleetServer
from headwater.server.status_page.app import open_app
from tests.attacks.grounds import EVIL, HONEST, REVOKED, UNKNOWN, Answer, http_request
from tests.attacks.organiser import methods

PULL = "/v1/fleet/pull-messages"
REFUSAL = (403, (("connection", "close"), ("content-length", "0")), b"")
"""All that a stranger ever hears."""


@pytest.fixture(scope="module")
def paths(grounds):
    """Every path of Flower's server, of both of our apps, and every gRPC method, as they are today."""
    flower = {path for _, path in PROTOBUF_REQUEST_TYPES} | set(walk(create_app().routes))
    ours = set(walk(FleetServer(max_reply_bytes=lambda name: 0)._api.routes))
    web = set(walk(open_app(None, None, lambda run: None).routes))
    control = {f"/{method}" for method in methods(grounds)}
    found = flower | ours | web | control | set(PATHS)
    assert (len(flower) > 70, len(web) > 8, len(control) > 12, ours) == (True, True, True, PATHS)
    return sorted(found | {"/", "*", "/v1/fleet", "/v1/fleet/", "/openapi.json", "/docs", "/.git/config"})


def walk(routes, prefix=""):
    """Every path below some routes, placeholders filled in."""
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from walk(router.routes, prefix + route.include_context.prefix)
        elif hasattr(route, "path"):
            yield re.sub(r"\{.*?\}", "1", prefix + route.path)


def heads(grounds, path):
    """The same path with each kind of key that is none, and what may be known of it besides."""
    body = fleet_pb2.PullMessagesRequest(node=Node(node_id=1)).SerializeToString()
    a, keys = HONEST[0], grounds.keys
    asked = path if path.startswith("/") else "/"

    def signed(name, key=None, **change):
        return grounds.request(name, asked, body, key=key, **change)

    yield "no key", http_request("POST", path, {}, body)
    yield "no key, no body", http_request("GET", path, {})
    yield "unknown", signed(UNKNOWN)
    yield "revoked", signed(REVOKED)
    yield "an enrolled name, a stranger's key", signed(a, keys[UNKNOWN])
    yield "an enrolled name, another client's key", signed(a, keys[EVIL])
    yield "an enrolled name, a revoked key", signed(a, keys[REVOKED])
    elsewhere = grounds.request(a, "/elsewhere", body)
    yield "signed for another path", elsewhere.replace(b"POST /elsewhere", f"POST {path}".encode(), 1)
    yield "altered time", signed(a, late_x_headwater_time=str(int(time.time() * 1000) + 7))
    yield "altered nonce", signed(a, late_x_headwater_nonce="0" * 32)
    yield "another version", signed(UNKNOWN, version="9.9.9")


def test_every_path_gives_a_stranger_the_same_refusal(grounds, unmoved, paths):
    tried = 0
    for path in paths:
        for why, data in heads(grounds, path):
            assert grounds.exchange(data).shape == REFUSAL, (path, why)
            tried += 1
    assert tried == 11 * len(paths)
    refused = grounds.refused()
    assert {"path", "headers", "unknown", "revoked", "signature"} <= set(refused), refused


def test_no_method_opens_a_path(grounds, unmoved):
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "POST", "BREW"):
        for path in (PULL, "/openapi.json"):
            assert grounds.exchange(http_request(method, path, {})).shape == REFUSAL, (method, path)


def test_an_enrolled_key_opens_nothing_but_the_eight_calls(grounds, unmoved, paths):
    for path in set(paths) - PATHS - {"*"}:
        assert grounds.exchange(grounds.request(HONEST[0], path, b"")).shape == REFUSAL, path


ODD_PATHS = (
    "/v1/fleet/Pull-Messages",
    "/V1/FLEET/PULL-MESSAGES",
    "/v1/fleet/pull-messages/",
    "//v1/fleet/pull-messages",
    "/v1/fleet/%2e%2e/fleet/pull-messages",
    "/v1/fleet/../fleet/pull-messages",
    "/v1/fleet/%70ull-messages",
    "/v1/fleet/pull-messages?x=1",
    "/v1/fleet/pull-messages%00",
    "/v1/fleet/pull-messages;x",
    "/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "http://localhost/v1/fleet/pull-messages",
    "https://elsewhere.example/",
    "localhost:443",
)


@pytest.mark.parametrize("path", ODD_PATHS)
def test_odd_paths(grounds, unmoved, path):
    assert grounds.exchange(http_request("POST", path, {}, b"")).shape == REFUSAL
    if path.startswith("/"):  # not with an enrolled key either: what was signed is what is asked
        assert grounds.exchange(grounds.request(HONEST[0], path, b"")).shape == REFUSAL


HEAD = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: localhost\r\n"
INNER = b"GET /inner HTTP/1.1\r\nhost: localhost\r\n\r\n"
BROKEN = {
    "length and chunks": HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "chunks and length": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + INNER,
    "two lengths": HEAD + b"content-length: 0\r\ncontent-length: 41\r\n\r\n" + INNER,
    "a list of lengths": HEAD + b"content-length: 0, 41\r\n\r\n" + INNER,
    "a negative length": HEAD + b"content-length: -1\r\n\r\n" + INNER,
    "a signed length": HEAD + b"content-length: +4\r\n\r\nabcd" + INNER,
    "a huge length": HEAD + b"content-length: 99999999999999999999999\r\n\r\n" + INNER,
    "an odd coding": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + INNER,
    "two codings": HEAD
    + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n"
    + INNER,
    "chunks of another size": HEAD + b"transfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n" + INNER,
    "a folded header": HEAD + b"content-length: 0\r\n x: y\r\n\r\n" + INNER,
    "a space before the colon": HEAD + b"content-length : 0\r\n\r\n" + INNER,
    "bare newlines": b"POST / HTTP/1.1\nhost: x\ncontent-length: 0\n\n" + INNER,
    "no host": b"GET /v1/fleet/pull-messages HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "an upgrade to HTTP/2": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\n"
    b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    "a WebSocket": b"GET /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
    b"upgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "a continuation asked for": HEAD + b"content-length: 1000\r\nexpect: 100-continue\r\n\r\n",
    "a tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a head of 20 KB": b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
    "zeros": bytes(200) + b"\r\n\r\n",
    "two requests at once": HEAD + b"content-length: 0\r\n\r\n" + INNER,
}


@pytest.mark.parametrize("why", BROKEN)
def test_broken_http_gets_one_refusal_and_the_connection_ends(grounds, unmoved, why):
    with grounds.tls() as connection:
        connection.sendall(BROKEN[why])
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(2**16):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    if why == "chunks of another size" and not received:
        return  # what breaks in the middle of a request ends without a word
    assert received.count(b"HTTP/1.") == 1, received
    assert (head[:12], body) == (b"HTTP/1.1 403", b""), received
    assert b"content-length: 0" in head


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 100]
)
def test_the_port_speaks_nothing_without_tls(grounds, unmoved, data):
    with grounds.tcp() as plain:
        plain.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := plain.recv(1000):
                received += piece
    assert len(received) <= 7  # a TLS alert
    assert b"HTTP" not in received


def test_tls_offers_no_other_protocol_and_no_session_of_another(grounds, unmoved):
    with grounds.tls(protocols=("h2", "http/1.1")) as connection:
        assert connection.selected_alpn_protocol() in (None, "http/1.1")
        assert connection.version() == "TLSv1.3"
    context = ssl.create_default_context()
    with grounds.tcp() as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_grpc_is_not_spoken_here(grounds, unmoved):
    ca = grounds.network.workspace.credentials.ca()
    with grpc.secure_channel(
        f"localhost:{grounds.network.ports[0]}", grpc.ssl_channel_credentials(ca)
    ) as channel:
        call = channel.unary_unary("/headwater.v1.Control/GetStatus")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=60)


@pytest.fixture
def session(grounds):
    """A client with an open session: (its name, its instance, its node)."""
    name, instance = HONEST[0], "7" * 32
    node_key = grounds.keys[name].public.node_key
    body = fleet_pb2.ActivateNodeRequest(public_key=node_key, heartbeat_interval=30).SerializeToString()
    answer = ask(grounds, name, "/v1/fleet/activate-node", body, instance=instance)
    assert answer.status == 200
    return name, instance, fleet_pb2.ActivateNodeResponse.FromString(answer.body).node_id


def ask(grounds, name, path, body, *, node_name="", **change) -> Answer:
    """A request with all that Flower asks for too; ``node_name``: whose node key to show instead."""
    return grounds.exchange(full_request(grounds, name, path, body, node_name=node_name, **change))


def full_request(grounds, name, path, body, *, node_name="", **change) -> bytes:
    shown = grounds.keys[node_name or name]
    stamp = datetime.datetime.now(tz=datetime.UTC).isoformat()
    more = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(shown.public.node_key).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(shown.sign_timestamp(stamp)).decode(),
        TIMESTAMP_HEADER: stamp,
        "content-type": "application/protobuf",
    }
    late = {f"late_{k.lower().replace('-', '_')}": v for k, v in more.items()}
    return grounds.request(name, path, body, **late, **change)


def pull(node) -> bytes:
    return fleet_pb2.PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def test_the_same_bytes_again(grounds, session):
    name, instance, node = session
    data = full_request(grounds, name, PULL, pull(node), instance=instance)
    assert grounds.exchange(data).status == 200
    before = grounds.facts(), grounds.refused()
    for _ in range(3):
        assert empty(grounds.exchange(data))
    assert grounds.facts() == before[0]
    assert named(grounds, "replayed", name) - before[1].get(f"replayed ({name})", 0) == 3


@pytest.mark.parametrize("ago_s", [301, 3600, 10**9, -301, -(10**8)])
def test_an_old_request_or_one_of_the_future(grounds, unmoved, session, ago_s):
    name, instance, node = session
    before = named(grounds, "time", name)
    when = int((time.time() - ago_s) * 1000)
    answer = ask(grounds, name, PULL, pull(node), instance=instance, now_ms=when)
    assert empty(answer)
    assert named(grounds, "time", name) == before + 1


def test_an_altered_body(grounds, unmoved, session):
    name, instance, node = session
    before = named(grounds, "body", name)
    for last in (b"\x00", b"\x7f"):
        data = full_request(grounds, name, PULL, pull(node), instance=instance)
        assert empty(grounds.exchange(data[:-1] + last))
    assert named(grounds, "body", name) == before + 2
    body = pull(node)
    longer = full_request(
        grounds, name, PULL, body, instance=instance, late_content_length=str(len(body) + 1)
    )
    assert empty(grounds.exchange(longer + b"x"))


def test_a_valid_client_on_behalf_of_another(grounds, session):
    """Client A, with its own valid key, names B's node: in Flower's headers, and in the message."""
    victim, _, node = session
    evil = grounds.connect(EVIL)
    evil.activate()
    own, instance = evil._node, evil._http._instance
    before = grounds.facts()
    tree = message_pb2.ObjectTree(object_id="0" * 64)
    bodies = {
        "pull-messages": fleet_pb2.PullMessagesRequest(node=Node(node_id=node)),
        "push-messages": fleet_pb2.PushMessagesRequest(node=Node(node_id=node), message_object_trees=[tree]),
        "pull-object": message_pb2.PullObjectRequest(node=Node(node_id=node), object_id="0" * 64),
        "push-object": message_pb2.PushObjectRequest(node=Node(node_id=node), object_id="0" * 64),
        "deactivate-node": fleet_pb2.DeactivateNodeRequest(node_id=node),
        "activate-node": fleet_pb2.ActivateNodeRequest(
            public_key=grounds.keys[victim].public.node_key, heartbeat_interval=30
        ),
        "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest(
            node=Node(node_id=node), message_object_id="0" * 64
        ),
    }
    for call, request in bodies.items():
        body = request.SerializeToString()
        for shown in (EVIL, victim):
            answer = ask(grounds, EVIL, f"/v1/fleet/{call}", body, node_name=shown, instance=instance)
            assert answer.status in (401, 403, 410, 422), (call, shown, answer)
            assert not any(word.encode() in answer.body for word in (str(node), victim))
            # the same as for a node that does not exist
            stranger = replace_node(request, own ^ node ^ 12345).SerializeToString()
            if call != "activate-node":  # it names a key
                nobody = ask(grounds, EVIL, f"/v1/fleet/{call}", stranger, node_name=shown, instance=instance)
                assert (answer.status, answer.body) == (nobody.status, nobody.body), call
    assert grounds.facts() == before
    assert sum(n for reason, n in grounds.refused().items() if EVIL in reason) >= 10
    evil.heartbeat()
    evil.deactivate()
    evil.close()


def replace_node(request, node):
    """The same request of another node."""
    other = type(request)()
    other.CopyFrom(request)
    if hasattr(other, "node"):
        other.node.node_id = node
    elif hasattr(other, "node_id"):
        other.node_id = node
    return other


def empty(answer: Answer) -> bool:
    return (answer.status, answer.body) == (403, b"")


def named(grounds, reason, client) -> int:
    return grounds.refused().get(f"{reason} ({client})", 0)
