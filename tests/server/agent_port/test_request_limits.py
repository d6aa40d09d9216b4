"""Limits of requests: how many, how much, how long."""

from __future__ import annotations

import asyncio

import pytest

from headwater.flower.fleet_server import PUSH_OBJECT
from headwater.server.agent_port.request_auth import WINDOW_S, Limits
from tests.server.agent_port.fake_port import PULL, FakePort, refused


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
