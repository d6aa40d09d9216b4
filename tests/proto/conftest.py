from __future__ import annotations

import pytest

from tests.support.control_port import FakeOrganiser, client_of, serving


@pytest.fixture
def organiser():
    return FakeOrganiser()


@pytest.fixture
def server(organiser):
    with serving(organiser) as server:
        yield server


@pytest.fixture
def client(server):
    with client_of(server.address) as client:
        yield client
