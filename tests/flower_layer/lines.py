"""A server and an agent over a real port, and a line between them that breaks where a test says."""

from __future__ import annotations

import re
import threading

import pytest

from headwater.errors import ConnectionLost
from tests.flower_layer.deployment import running

PATHS = {
    "pull": "/v1/fleet/pull-object",
    "push": "/v1/fleet/push-object",
    "confirm": "/v1/fleet/confirm-message-received",
    "fetch": "/v1/fleet/pull-messages",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path):
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def agent(server, request):
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:64]
    connection = server.connect(server.enrol(name))
    connection.name = name
    connection.activate()
    yield connection
    connection.close()
    server.link.unregister(connection.name)


class Line:
    """Breaks a connection's calls: those of ``path`` after the first ``whole``, before or after they act."""

    def __init__(self, connection, path, *, whole, answered=False):
        self.calls, self._path, self._whole, self._answered = [], path, whole, answered
        self._post, self._lock = connection._http._post, threading.Lock()
        connection._http._post = self.post
        self.broken = True

    def post(self, path, body, max_bytes):
        with self._lock:
            self.calls.append(path)
            breaks = self.broken and path == self._path and self.calls.count(path) > self._whole
        if breaks and not self._answered:
            raise ConnectionLost("line", got="cut")
        answer = self._post(path, body, max_bytes)
        if breaks:
            raise ConnectionLost("line", got="cut")
        return answer

    def mend(self):
        self.broken = False
        self.calls.clear()
