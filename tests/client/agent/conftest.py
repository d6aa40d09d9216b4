from __future__ import annotations

import pytest

from headwater.client.agent.task_handler import TaskHandler
from headwater.protocol.messages import ClientProfile
from tests.client.agent.devices import agent_file, ask, profile_request, sign
from tests.client.agent.fakes import FEDERATION, FakeWorker, HandlerInFolder
from tests.client.agent.homes import home

__all__ = ["home", "make"]


@pytest.fixture
def make(tmp_path):
    def build(policy=None, worker=None, joined=True, **options) -> HandlerInFolder:
        settings = agent_file(tmp_path, policy)
        found, log = worker or FakeWorker(), []
        handler = TaskHandler(settings, found, sign, log.append, **options)
        if joined:
            assert isinstance(ask(handler, profile_request(FEDERATION)), ClientProfile)
            found.asked.clear()
        return HandlerInFolder(handler, found, log, settings)

    return build
