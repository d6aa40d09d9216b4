"""The web page's application: what a stranger gets (nothing), and what the organiser gets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import select
import socket
import threading
from dataclasses import replace

import httpx
import pytest
from fastapi.routing import APIRoute

from headwater.errors import ConfigError
from headwater.server.status_page import app as web
from headwater.server.status_page import serve as web_serve
from headwater.server.status_page.app import (
    _ASSETS,
    MOST_DOWNLOADS,
    MOST_WAIT_S,
    MOST_WAITING,
    make_app,
    open_app,
)
from headwater.server.status_page.guard import HEADERS, WebAuth
from headwater.server.status_page.serve import serving
from tests.support.organisers import RUN, TOKEN, ToyOrganiser

BEARER = {"authorization": f"Bearer {TOKEN}"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


@pytest.fixture
def toy(tmp_path):
    toy = ToyOrganiser(tmp_path)
    toy.begin()
    toy.end_round(1, 0.6)
    return toy


@pytest.fixture
def app(toy):
    return make_app(toy, toy.monitor, token=TOKEN, rounds=toy.rounds)


def ask(app, path, method="GET", headers=None, base="http://127.0.0.1:8445"):
    """One request, in this process."""

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(go())


def routes(toy):
    """Every path of the running app."""
    app = open_app(toy, toy.monitor, toy.rounds)
    return [r.path for r in app.routes if isinstance(r, APIRoute)] + [
        r.path for r in app.routes if not isinstance(r, APIRoute)
    ]


# --- a stranger ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer " + "y" * len(TOKEN)},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": "Bearer"},
        {"cookie": f"token={TOKEN}"},
        {"authorization": "Bearer \xff\xfe"},
    ],
)
def test_without_the_token_every_path_is_401_and_empty(toy, app, headers):
    paths = routes(toy)
    assert {"/api/status", "/api/rounds", "/api/events", "/api/adapter", "/api/adapters", "/metrics"} <= set(
        paths
    )
    for path in [
        *paths,
        "/nothing",
        "/docs",
        "/openapi.json",
        f"/api/status?token={TOKEN}",
        "/%2e",
        "/assets/",
    ]:
        for method in METHODS:
            answer = ask(app, path, method, {k: v.encode("latin-1") for k, v in headers.items()})
            if path in _ASSETS and method in ("GET", "HEAD"):
                assert answer.status_code == 200
                continue
            assert (answer.status_code, answer.content) == (401, b""), (path, method)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_the_open_paths_hold_no_data(toy, app):
    toy.monitor.error("a secret error")
    for path in _ASSETS:
        before = ask(app, path).content
        toy.end_round(2, 0.7)
        assert ask(app, path).content == before
        for secret in ("ann", RUN, "a secret error", TOKEN):
            assert f'"{secret}"' not in before.decode()
            assert secret == "ann" or secret not in before.decode()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8445", 200),
        ("localhost:9000", 200),  # another port: a tunnel
        ("LOCALHOST", 200),
        ("[::1]:8445", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8445", 421),
        ("evil.example@127.0.0.1:8445", 421),
        ("127.0.0.1:8445@evil.example", 421),
        ("127.0.0.1:x", 421),
        ("127.0.0.1:8445/", 421),
        ("0.0.0.0:8445", 421),
        ("", 421),
    ],
)
def test_the_host_must_be_this_machine(app, host, status):
    """Also for the shell: a rebound name gets no page."""
    for path in ("/", "/api/status"):
        assert ask(app, path, headers={**BEARER, "host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:8445"}, 200),
        ({"origin": "http://localhost:8445"}, 403),
        ({"origin": "http://127.0.0.1:8471"}, 403),
        ({"origin": "https://127.0.0.1:8445"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_other_sites_are_refused_even_with_the_token(app, headers, status):
    answer = ask(app, "/api/status", headers={**BEARER, **headers})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    if status != 200:
        assert answer.content == b""


def test_a_header_that_comes_twice_is_refused(app):
    async def go(headers):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            return (await client.get("/api/status", headers=headers)).status_code

    twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")]
    assert asyncio.run(go(twice)) == 401
    assert asyncio.run(go([*BEARER.items(), ("host", "localhost"), ("host", "localhost")])) == 421


def test_every_answer_is_hardened(app):
    for path, headers in (("/", {}), ("/api/status", BEARER), ("/api/status", {}), ("/nothing", BEARER)):
        answer = ask(app, path, headers=headers)
        assert HEADERS.items() <= dict(answer.headers).items()
    policy = HEADERS["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_websockets_are_closed_and_a_short_token_is_a_mistake(app):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "websocket", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    with pytest.raises(ValueError, match="32"):
        WebAuth(app, "short", frozenset())


# --- the organiser --------------------------------------------------------------------------------------


def test_status_metrics_and_adapters(app, toy):
    status = ask(app, "/api/status", headers=BEARER).json()
    assert status["runs"][0]["round"] == 1
    assert [c["client"] for c in status["clients"]] == ["ann", "ben", "cleo"]
    assert "headwater_run_round{" in ask(app, "/metrics", headers=BEARER).text
    found = ask(app, "/api/adapters", headers=BEARER).json()
    assert (found["made"], found["kept"]) == (2, 2)
    assert [a["version"] for a in found["adapters"]] == [2, 1]  # newest first
    toy.monitor.run_queued("other", "x", 3)
    assert ask(app, "/api/status", headers=BEARER).json()["runs"][1]["value"] is None  # NaN is no JSON


def test_many_versions_are_cut_but_never_the_best(app, toy):
    for number in range(2, 400):
        toy.end_round(number, 0.55)
    found = ask(app, "/api/adapters", headers=BEARER).json()
    assert found["made"] == 400
    assert len(found["adapters"]) == 301
    assert found["adapters"][-1]["best"]


def test_rounds(app, toy):
    found = ask(app, "/api/rounds", headers=BEARER).json()
    assert [row["round"] for row in found["rows"]] == [0, 1]
    assert (found["metric"], found["lower"]) == ("accuracy", ["loss"])
    assert found["rows"][1]["metrics"].keys() == {"accuracy", "loss", "training loss"}
    toy.end_round(2, float("nan"), {"ann": "late"})
    (row,) = ask(app, f"/api/rounds?run={RUN}&after=1", headers=BEARER).json()["rows"]
    assert (row["round"], row["accepted"], row["asked"]) == (2, 2, 3)
    assert "accuracy" not in row["metrics"]
    for run in ("../../etc", "other", f"{RUN}/../x"):
        assert ask(app, f"/api/rounds?run={run}", headers=BEARER).status_code == 404


def test_events_wait_for_what_happens(app, toy):
    last = toy.monitor.last_seq
    threading.Timer(0.2, lambda: toy.monitor.notice("news")).start()
    found = ask(app, f"/api/events?after={last}&wait={MOST_WAIT_S}", headers=BEARER).json()
    assert [e["text"] for e in found["events"]] == ["news"]
    assert ask(app, f"/api/events?after={last + 1}&wait=0.2", headers=BEARER).json()["events"] == []
    assert ask(app, "/api/events?wait=1e9", headers=BEARER).status_code == 422


def test_only_so_many_may_wait(app, toy):
    async def go():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", headers=BEARER
        ) as client:
            path = f"/api/events?after={toy.monitor.last_seq}&wait={MOST_WAIT_S}"
            asked = [asyncio.create_task(client.get(path)) for _ in range(MOST_WAITING + 3)]
            first = itertools.islice(asyncio.as_completed(asked), 3)
            refused = [(await answer).status_code for answer in first]
            toy.monitor.notice("news")
            codes = [(await answer).status_code for answer in asked]
            again = await client.get("/api/events")
            return refused, sorted(codes), again.status_code

    refused, codes, again = asyncio.run(go())
    assert refused == [503] * 3
    assert codes == [200] * MOST_WAITING + [503] * 3
    assert again == 200


def test_an_adapter_is_a_download(app, toy, tmp_path):
    toy.adapter_folder = tmp_path
    answer = ask(app, f"/api/adapter?run={RUN}&version=1", headers=BEARER)
    assert answer.headers["content-disposition"] == f'attachment; filename="{RUN}-v1.tar"'
    assert answer.headers["content-type"] == "application/x-tar"
    assert len(answer.content) > 1000
    hostile = ask(app, '/api/adapter?run=..%2F"%0d%0aset-cookie:x&version=1', headers=BEARER)
    name = hostile.headers["content-disposition"].removeprefix('attachment; filename="')
    assert re.fullmatch(r'[A-Za-z0-9_-][A-Za-z0-9._-]*-v1\.tar"', name)
    assert "set-cookie" not in hostile.headers
    missing = ask(app, "/api/adapter?version=99", headers=BEARER)
    assert missing.status_code == 404
    assert "version 99" in missing.json()["error"]


def test_downloads_that_fail_or_are_cut_free_their_place(toy, app):
    def broken(run="", version=0):
        yield b"x" * 100
        raise ConfigError("disk", expected="bytes", got="none")

    toy.export = broken
    for _ in range(3 * MOST_DOWNLOADS):
        with pytest.raises(RuntimeError):  # the server cuts the connection: half a tar is no tar
            ask(app, "/api/adapter", headers=BEARER)
    toy.export = lambda run="", version=0: iter([b"whole"])
    assert ask(app, "/api/adapter", headers=BEARER).content == b"whole"


# --- over real sockets ----------------------------------------------------------------------------------


def test_served_on_loopback_only_and_ends(toy, app):
    with serving(app, 0) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/api/status", headers=BEARER, timeout=60)
        assert answer.status_code == 200
        assert "server" not in answer.headers
        with pytest.raises(ConfigError, match="web port"), serving(app, port):
            pass
        others = [a[4][0] for a in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)]
        for address in {a for a in others if not a.startswith("127.")}:
            with pytest.raises(OSError, match=r".*"):
                socket.create_connection((address, port), 1)
    with pytest.raises(OSError, match=r".*"):
        socket.create_connection(("127.0.0.1", port), 1)


def test_a_waiting_page_does_not_hold_up_the_end(toy, monkeypatch):
    monkeypatch.setattr(web, "MOST_WAIT_S", 600)  # longer than a test may take
    monkeypatch.setattr(web_serve, "_STOP_S", 600.0)
    asked, events = threading.Event(), toy.monitor.events

    def waits(after, timeout_s=0.0):
        asked.set()
        return events(after, timeout_s)

    monkeypatch.setattr(toy.monitor, "events", waits)
    with serving(make_app(toy, toy.monitor, token=TOKEN, rounds=toy.rounds), 0) as port:
        path = f"http://127.0.0.1:{port}/api/events?after={toy.monitor.last_seq}&wait=600"
        waiting = threading.Thread(target=_get, args=(path,))
        waiting.start()
        assert asked.wait(60)
    waiting.join()


def _get(path):
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(path, headers=BEARER, timeout=None)


def test_silent_connections_are_closed(app, monkeypatch):
    page = web_serve._PageProtocol
    monkeypatch.setattr(page, "limits", replace(page.limits, head_s=0.5))
    with serving(app, 0) as port, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(200)]
        with contextlib.suppress(OSError):  # it may be closed already
            idle[-1].send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        for connection in (idle[0], idle[-1]):
            connection.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""  # closed


def test_silent_connections_cannot_shut_out_the_organiser(app, monkeypatch):
    page = web_serve._PageProtocol  # their time to ask is not over
    monkeypatch.setattr(page, "limits", replace(page.limits, head_s=600))
    with serving(app, 0) as port, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(200)]
        idle[-1].send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        answer = httpx.get(f"http://127.0.0.1:{port}/api/status", headers=BEARER, timeout=60)
        assert answer.status_code == 200
        closed, most = [], 200 - web_serve.MOST_CONNECTIONS
        while len(closed) < most:
            closed, _, _ = select.select(idle, [], [], 0)
        assert idle[-1] not in closed


def test_a_stranger_s_body_is_not_taken(app):
    with serving(app, 0) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n\r\n"
        )
        connection.settimeout(5)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                pass


def test_headers_are_bounded(app):
    with serving(app, 0) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                connection.sendall(b"X: " + b"y" * 1000 + b"\r\n")
            raise AssertionError("10 MB of headers were read")


def test_the_rounds_json_never_has_nan(app, toy):
    text = ask(app, "/api/rounds", headers=BEARER).text
    assert json.loads(text, parse_constant=lambda c: pytest.fail(c))
