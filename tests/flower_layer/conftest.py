from __future__ import annotations

import pytest

from headwater.flower.fleet_server import FleetServer
from tests.flower_layer.devices import MAX, Device


@pytest.fixture
def link():
    return FleetServer(max_reply_bytes=lambda name: MAX)


@pytest.fixture
def device(link):
    return Device(link, "a")
