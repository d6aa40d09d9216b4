"""Stand-ins for tests of the agent: a worker that answers at once, and a task handler over it in a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass

from headwater.client.agent.task_handler import TaskHandler
from headwater.client.agent.worker import WorkerDied
from headwater.errors import ConnectionLost, Refused
from headwater.proto.wire import decode_request, encode_reply
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import (
    ClientProfile,
    EncodedUpdate,
    Evaluation,
    Payload,
    ProfileRequest,
    TrainRequest,
)
from tests.client.agent.devices import VECTOR_SHA256, ask, vector_federation

FEDERATION = vector_federation()


class FakeWorker:
    """Answers as a worker would, at once; ``deaths`` first attempts end with its death."""

    def __init__(self, deaths: int = 0, seconds: float = 0.0) -> None:
        self.deaths, self.seconds = deaths, seconds
        self.asked: list[str] = []
        self.closed = 0
        self.notice = ""
        self.rows = None
        self.error: Exception | None = None

    def answer(self, joined, model, envelope, state, tick=lambda: None) -> bytes:
        request = decode_request(envelope, state)
        self.asked.append(type(request).__name__)
        ends = time.monotonic() + self.seconds
        while time.monotonic() < ends:
            tick()
            time.sleep(0.01)
        if self.deaths:
            self.deaths -= 1
            died = WorkerDied("worker died: killed by signal 9 (SIGKILL), perhaps out of memory")
            raise coded(died, FailureCode.WORKER_DIED, 9, 0)
        if self.error is not None:
            raise self.error
        if isinstance(request, ProfileRequest):
            return encode_reply(ClientProfile("ann", 7, 0, VECTOR_SHA256, "0" * 64, request.run, "0.1.0"))
        if isinstance(request, TrainRequest):
            # as real ones: other bytes each time, for the seconds in it
            payload = Payload("dense.fp32.v1", len(self.asked).to_bytes(4, "big"))
            return encode_reply(
                EncodedUpdate(
                    request.run,
                    request.round,
                    "ann",
                    request.spec,
                    request.state_sha256,
                    payload,
                    {},
                    7,
                    0,
                    {},
                )
            )
        return encode_reply(Evaluation("ann", request.round, 7, {"loss": 0.0}, request.run))

    def close(self) -> None:
        self.closed += 1


@dataclass
class HandlerInFolder:
    """A task handler with a fake worker, in a folder."""

    handler: TaskHandler
    worker: FakeWorker
    log: list[str]
    settings: object

    def ask(self, request):
        return ask(self.handler, request)


LOST = ConnectionLost("server:1", expected="an answer", got="ConnectError")


def no(status: int) -> Refused:
    error = Refused("server:1", expected="to be let in", got=f"{status} because")
    error.status = status
    return error
