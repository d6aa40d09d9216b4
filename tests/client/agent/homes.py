"""A device at an owner's home, with a clock that is moved by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from headwater.cli.client import status as client_status
from headwater.client.agent.owner_log import StatusFile
from headwater.client.agent.task_clock import Clocks
from headwater.client.agent.task_handler import RECHECK_S, TaskHandler
from headwater.data.files.problems import BadRows
from headwater.errors import DataError
from headwater.protocol.failures import FailureCode
from headwater.protocol.messages import ClientFailure
from tests.client.agent.devices import agent_file, ask, profile_request, sign, vector_federation, vector_train
from tests.client.agent.fakes import FakeWorker

FEDERATION = vector_federation()
PROFILE, TRAIN = profile_request(FEDERATION), vector_train(FEDERATION)
BAD = BadRows([DataError(f"ann.jsonl:{n}", got="'goood'", hint="Mend it.") for n in (3, 7, 9)], 3)


class Clock:
    """Seconds and local time, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(1_800_000_000 + self.seconds)


class Home:
    """An owner's folder, with an agent in it that can be started again."""

    def __init__(self, folder: Path, policy=None) -> None:
        self.folder, self.log, self.clock, self.worker = folder, [], Clock(), FakeWorker()
        (folder / "ann.jsonl").write_text("{}\n")
        self.start(policy)

    def start(self, policy=None) -> None:
        self.settings = agent_file(self.folder, policy)
        self.handler = TaskHandler(
            self.settings, self.worker, sign, self.log.append, clocks=Clocks(self.clock.now, self.clock)
        )

    def ask(self, request):
        return ask(self.handler, request)

    def code(self, request) -> FailureCode | None:
        reply = self.ask(request)
        return reply.failure.code if isinstance(reply, ClientFailure) else None

    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def recheck(self) -> None:
        self.wait(RECHECK_S + 1)
        self.handler.recheck()

    def edit(self) -> None:
        (self.folder / "ann.jsonl").write_text(f"{self.clock.seconds}\n")

    def status(self) -> list[tuple[str, str]]:
        status = StatusFile(self.settings.state / "status.json", "server:1", self.settings.sha256)
        status.rows(self.handler.rows)
        return list(client_status.lines(self.settings, self.clock.now()))

    def needs(self) -> list[str]:
        return [text for key, text in self.status() if key == "needs you"]


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)
