"""The page on loopback, tried by a local user without the token and by sites in the organiser's browser."""

from __future__ import annotations

import re
import socket

import pytest

from headwater.server.status_page.app import open_app
from tests.attacks.grounds import http_request, read_answer

SECURED = ("content-security-policy", "x-frame-options", "x-content-type-options", "referrer-policy")


@pytest.fixture(scope="module")
def token(grounds):
    return grounds.network.workspace.credentials.web_token()


@pytest.fixture(scope="module")
def data_paths():
    found = {r.path for r in open_app(None, None, lambda run: None).routes}
    found = sorted(p for p in found if p.startswith("/api") or p == "/metrics")
    assert len(found) >= 6
    return found


def ask(grounds, path, method="GET", *, host=None, **headers):
    with grounds.tcp(2) as connection:
        port = grounds.network.ports[2]
        given = {"host": host or f"127.0.0.1:{port}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.sendall(http_request(method, path, given))
        return read_answer(connection)


def test_nothing_without_the_token(grounds, unmoved, data_paths, token):
    shapes = set()
    for path in [*data_paths, "/nothing", "/docs", "/openapi.json", "/api/../api/status", "//api/status"]:
        for authorization in ("", "Bearer", "Bearer x", f"Bearer {token[:-1]}", f"Basic {token}", token):
            shapes.add(ask(grounds, path, authorization=authorization).shape)
        shapes.add(ask(grounds, f"{path}?token={token}").shape)  # a URL is no place for a secret
        shapes.add(ask(grounds, path, cookie=f"token={token}").shape)
    (shape,) = shapes  # whether a path exists, nobody learns
    assert (shape[0], shape[2]) == (401, b"")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "x@y"]
)
def test_a_rebound_name_gets_nothing(grounds, unmoved, data_paths, token, host):
    for path in [*data_paths, "/"]:
        answer = ask(grounds, path, host=host, authorization=f"Bearer {token}")
        assert (answer.status, answer.body) == (421, b"")


@pytest.mark.parametrize(
    "more",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_another_site_gets_nothing(grounds, unmoved, data_paths, token, more):
    for path in data_paths:
        answer = ask(grounds, path, authorization=f"Bearer {token}", **more)
        assert (answer.status, answer.body) == (403, b"")
        assert "access-control-allow-origin" not in answer.headers


def test_the_token_opens_it_and_it_cannot_be_changed(grounds, unmoved, data_paths, token):
    for path in ("/api/status", "/metrics"):
        answer = ask(grounds, path, authorization=f"Bearer {token}")
        assert answer.status == 200
        assert token.encode() not in answer.body
        assert set(SECURED) <= set(answer.headers)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        for path in data_paths:
            assert ask(grounds, path, method, authorization=f"Bearer {token}").status == 405


@pytest.mark.parametrize("run", ["../../../etc/passwd", "%2e%2e%2f", "..", "\\..", "a%00b", "x" * 3000])
def test_a_run_is_no_path(grounds, unmoved, token, run):
    for path in ("/api/rounds", "/api/adapter", "/api/adapters"):
        answer = ask(grounds, f"{path}?run={run}", authorization=f"Bearer {token}")
        assert answer.status in (404, 422)
        assert b"root:" not in answer.body
        assert b"Traceback" not in answer.body


def test_the_page_itself_holds_nothing(grounds, unmoved, token):
    body = ask(grounds, "/").body
    assert body
    for secret in (token, *grounds.keys):
        assert secret.encode() not in body
    assert not re.search(rb"(?:src|href)=\"https?:", body)  # nothing is loaded from elsewhere


def test_it_listens_on_loopback_only(grounds):
    others = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with (
            pytest.raises(ConnectionRefusedError),
            socket.create_connection((address, grounds.network.ports[2]), timeout=2),
        ):
            pass
