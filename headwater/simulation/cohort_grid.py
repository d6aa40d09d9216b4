"""CohortGrid: whole batches of clients go to one process, and their replies come in one order.

Who is beside whom, and which reply comes first, hang on the tasks alone and on no clock: the bits are the
same in this process, in worker processes and in Ray's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import Error, Message

from headwater.client.execution.execute import ProcessSpent, WantOfMemory
from headwater.client.execution.runtime import ClientRuntime
from headwater.errors import HeadwaterError, TrainingError
from headwater.flower import unpack
from headwater.proto.wire import decode_request
from headwater.protocol.messages import EvaluateRequest, TrainRequest
from headwater.simulation.batches import Size, batches
from headwater.simulation.cohort_record import CohortRecord
from headwater.simulation.grid import QueuedGrid
from headwater.simulation.workplace import Encoded, Workplace


@dataclass(frozen=True, slots=True)
class _Member:
    """A training task that waits: its message, what it says, and how it travels."""

    message_id: str
    request: TrainRequest
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class _Job:
    """Messages that are answered together.

    Args:
        ids: of the messages.
        start: has them answered; the replies come in the order of ``ids``.
        members: the clients of a batch.
    """

    ids: tuple[str, ...]
    start: Callable[[], Future[Any]]
    members: tuple[_Member, ...] = ()


class CohortGrid(QueuedGrid):
    """Messages wait until a pull executes them, trainings in batches of clients.

    Args:
        clients: client names, sorted.
        runtime: says who is a batch.
        place: where they are trained.
        record: how large batches are.
    """

    def __init__(
        self, clients: Sequence[str], runtime: ClientRuntime, place: Workplace, record: CohortRecord
    ) -> None:
        super().__init__(clients, runtime)
        self._runtime, self._place, self._record = runtime, place, record
        self._sizes: dict[tuple[str, int | None], Size | None] = {}

    def _execute(self, messages: dict[str, Message]) -> Generator[tuple[str, bytes | Error], None, None]:
        """Replies in the order of the jobs, whichever is done first."""
        waiting: deque[tuple[_Job, Future[Any]]] = deque()
        jobs, more = self._jobs(messages), True
        try:
            while more or waiting:
                while more and len(waiting) < self._place.width:
                    if (job := next(jobs, None)) is None:
                        more = False
                    elif any(i in self._sent for i in job.ids):  # else all of it was cancelled
                        waiting.append((job, job.start()))
                if waiting:
                    yield from self._replies(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _replies(self, job: _Job, future: Future[Any]) -> Iterator[tuple[str, bytes | Error]]:
        try:
            found = self._place.result(future)
        except ProcessSpent as error:
            raise TrainingError(
                "training process",
                expected="to go on with fewer clients at once, after want of memory",
                got="oneDNN, which can create no primitive in it any more",
                hint="--resume goes on in a new process, with the smaller batches.",
            ) from error
        except WantOfMemory:
            if len(job.members) < 2:
                raise
            found = None
        if found is None:
            del future  # and what its error holds
            for half in self._halves(job):
                yield from self._replies(half, half.start())
            return
        replies = found if isinstance(found, list) else [found] * len(job.ids)
        yield from zip(job.ids, replies, strict=True)

    def _halves(self, job: _Job) -> list[_Job]:
        by_name = {member.request.client: member for member in job.members}
        parts = self._record.halve(job.members[0].request.round, list(by_name))
        return [self._job([by_name[name] for name in part]) for part in parts]

    def _jobs(self, messages: dict[str, Message]) -> Iterator[_Job]:
        """Profiles come first, each message by itself; then evaluations, then trainings, in batches."""
        train: dict[str, _Member] = {}
        measure: list[tuple[str, Encoded]] = []
        states: dict[bytes, bytes] = {}  # one copy for all who start from it
        for message_id, message in messages.items():
            envelope, state = unpack(message.content, "envelope", "state")
            state = states.setdefault(state, state)
            try:
                request = decode_request(envelope, state)
            except HeadwaterError:  # where it goes says so
                request = None
            if isinstance(request, TrainRequest):
                train[request.client] = _Member(message_id, request, (envelope, state))
            elif isinstance(request, EvaluateRequest):
                measure.append((message_id, (envelope, state)))
            else:
                name = self._name(message)
                yield _Job((message_id,), partial(self._place.submit, name, envelope, state))
        for start in range(0, len(measure), self._runtime.cohort):
            lot = measure[start : start + self._runtime.cohort]
            asked = partial(self._place.submit_batch, [encoded for _, encoded in lot])
            yield _Job(tuple(message_id for message_id, _ in lot), asked)
        rounds: dict[int, list[TrainRequest]] = {}
        for member in train.values():
            rounds.setdefault(member.request.round, []).append(member.request)
        for number, requests in rounds.items():
            for batch in batches(requests, self._record.most(number), self._size_of):
                for part in self._record.parts(number, [request.client for request in batch]):
                    yield self._job([train[name] for name in part])

    def _job(self, members: Sequence[_Member]) -> _Job:
        start = partial(self._place.submit_batch, [member.encoded for member in members])
        return _Job(tuple(member.message_id for member in members), start, tuple(members))

    def _size_of(self, request: TrainRequest) -> Size | None:
        """Examples and tokens, with the adapter's, of a client that may be one of several."""
        if not self._runtime.context.batches(request.plan.training):
            return None
        name, rows = request.client, request.plan.rows
        if (name, rows) not in self._sizes:
            try:
                examples = self._runtime.data.client(name).train[:rows]
                model = self._runtime.context.model
                more = 0 if model is None else model.virtual_tokens
                size = len(examples), sum(len(example.tokens) + more for example in examples)
                self._sizes[name, rows] = size
            except HeadwaterError:  # where it is trained says so
                self._sizes[name, rows] = None
        return self._sizes[name, rows]
