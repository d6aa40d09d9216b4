from __future__ import annotations

import pytest

from tests.server.agent_port.fake_port import FakePort


@pytest.fixture
def fleet_port():
    fleet_port = FakePort()
    fleet_port.activate()
    fleet_port.through.clear()
    return fleet_port
