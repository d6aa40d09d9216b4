from __future__ import annotations

import pytest

from headwater.flower.fleet_server import FleetServer
from tests.flower_layer.devices import MAX, Device
from tests.flower_layer.lines import agent, own_server, server

__all__ = ["agent", "device", "link", "own_server", "server"]


@pytest.fixture
def link():
    return FleetServer(max_reply_bytes=lambda name: MAX)


@pytest.fixture
def device(link):
    return Device(link, "a")
