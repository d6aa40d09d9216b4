"""DeviceGrid: any grid, seen through simulated devices: replies come when their devices would have sent them.

The grid within does the work, as fast as this machine can. When its reply would arrive follows from the
request, the reply's length and the client's device. Of two replies the one that arrives first is handed on
first; those that arrive in the same microsecond, in order of their clients' names.

A reply's length is known when it is there, so a task is executed when its computation would have ended before
the next reply arrives. What nobody waits for any longer by then is executed by no engine: the grid within is
given at once only what is :class:`certain <.certain.CertainTasks>`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from flwr.app import Error, Message, MessageType
from flwr.serverapp import Grid

from headwater.errors import FederationStopped
from headwater.flower import RECORD, count_bytes, pack, unpack
from headwater.flower.one_run import OneRunGrid
from headwater.proto.wire import decode_request, encode_request
from headwater.protocol.messages import ClientFailure, ClientProfile, EvaluateRequest, TrainRequest
from headwater.server.clients.exchange import Cancels, Introduces
from headwater.simulation.devices.at_work import TaskAtWork
from headwater.simulation.devices.certain import CertainTasks
from headwater.simulation.devices.clock import NEVER, VirtualClock
from headwater.simulation.devices.costs import Passes
from headwater.simulation.devices.fleet import Fleet
from headwater.simulation.devices.tasks import DROPPED, SimulatedTask, Spent

MOST_ATTEMPTS = 100
"""So often one client is asked in one round; what fails as often will not succeed."""
_KINDS = (MessageType.TRAIN, MessageType.EVALUATE)
_REAL_POLL_S = 0.002
_FAILED = 3
"""Flower's code of a failed message; its own text says why."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What devices have less of than this machine.

    Args:
        rows: of a client that it may train on now; None for all.
        lacking: why a client's memory is too small for what it is asked; empty if it is not.
    """

    rows: Callable[[str], int | None]
    lacking: Callable[[TrainRequest | EvaluateRequest], str]


NO_LIMITS = DeviceLimits(lambda client: None, lambda request: "")

_Queue = list[tuple[int, str, str]]
"""A heap of times, clients and message ids."""


class DeviceGrid(OneRunGrid):
    """Nodes of ``inner``, on simulated devices.

    Args:
        inner: who does the work.
        clock: the simulated time.
        fleet: the devices.
        passes: what a request asks for.
        check: called while this machine computes; raises if the run is to end now.
        certain: which trainings the grid within may work on ahead.
        limits: of the devices; none if absent.
    """

    def __init__(
        self,
        inner: Grid,
        clock: VirtualClock,
        fleet: Fleet,
        passes: Passes,
        check: Callable[[], None] = lambda: None,
        certain: CertainTasks | None = None,
        limits: DeviceLimits = NO_LIMITS,
    ) -> None:
        self._inner, self._clock, self._fleet, self._passes, self._check = inner, clock, fleet, passes, check
        self._tasks: dict[str, SimulatedTask] = {}
        self._messages: dict[str, Message] = {}
        self._replies: dict[str, Message] = {}
        self._computing: dict[str, _Queue] = {kind: [] for kind in _KINDS}
        self._arriving: dict[str, _Queue] = {kind: [] for kind in _KINDS}
        self._asked: dict[tuple[str, str], tuple[int, int]] = {}  # by kind and client: round, attempts
        self._left: dict[tuple[str, int], TaskAtWork] = {}
        self._certain = CertainTasks() if certain is None else certain
        self._own_ids = 0
        self._inner_ids: dict[str, str | None] = {}  # of messages that were handed on late
        self._held: dict[str, Message] = {}
        self._spent: list[Spent] = []
        self._limits = limits
        clock.watch(self.next_arrival)

    # --- what a server asks of a grid ---------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, online or not."""
        return self._inner.get_node_ids()

    def introductions(self) -> Callable[[int], ClientProfile | ClientFailure] | None:
        """As of the grid within: it takes no simulated time."""
        return self._inner.introductions() if isinstance(self._inner, Introduces) else None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; return an id for each. A question for a profile takes no simulated time."""
        messages = list(messages)
        tasks = [self._task(m) if m.metadata.message_type in _KINDS else None for m in messages]
        order = sorted(range(len(messages)), key=lambda i: _order(tasks[i]))
        certain = self._certain_among([task for task in tasks if task is not None])
        through = [i for i in order if not (task := tasks[i]) or id(task) in certain]
        # None for a message that could not be pushed, and no ids where all were too large
        pushed: list[str | None] = list(self._inner.push_messages([messages[i] for i in through]))
        pushed += [None] * (len(through) - len(pushed))
        found: dict[int, str | None] = dict(zip(through, pushed, strict=True))
        for i, task in enumerate(tasks):
            if i not in found and task is not None:
                self._own_ids += 1
                found[i] = f"{'failed' if task.failure else 'held'}-{self._own_ids}"
                if not task.failure:
                    self._held[str(found[i])] = messages[i]
            if task is not None and found[i] is not None:
                self._take(str(found[i]), task, messages[i])
        return [found[i] for i in range(len(messages))]  # type: ignore[misc]  # Flower's type knows no None

    def arrived(self, kinds: Collection[str]) -> str | None:
        """The id of the first reply to messages of these kinds that has arrived and was not pulled."""
        best: tuple[int, str, str] | None = None
        for kind in kinds:
            if kind in self._arriving:
                self._execute(kind, self._clock.now)
                top = self._top(self._arriving[kind])
                best = top if best is None or (top is not None and top < best) else best
        return best[2] if best is not None and best[0] <= self._clock.now else None

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Those of these replies that have arrived."""
        here, other = list[Message](), list[str]()
        for message_id in message_ids:
            task = self._tasks.get(message_id)
            if task is None:
                other.append(message_id)
                continue
            self._execute(task.kind, self._clock.now)
            if task.arrives <= self._clock.now:
                here.append(self._handed_on(message_id, task))
        return here + (list(self._inner.pull_messages(other)) if other else [])

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for these any more: their clients stop now. What was not executed yet is not."""
        message_ids = list(message_ids)
        for message_id in message_ids:
            task = self._tasks.pop(message_id, None)
            if task is not None:
                self._spent.append(task.spent(self._clock.now, resumes=self._fleet.resumes))
            self._replies.pop(message_id, None)
            self._messages.pop(message_id, None)
        if isinstance(self._inner, Cancels):
            inner = [self._inner_ids.pop(i, i) for i in message_ids if self._held.pop(i, None) is None]
            self._inner.cancel(i for i in inner if i is not None)

    # --- what simulated time asks of it -------------------------------------------------------------

    def next_arrival(self, limit: int) -> int:
        """When the next reply arrives after now; some later time if that is after ``limit``."""
        found = NEVER
        for kind in _KINDS:
            self._execute(kind, limit)
            later = (t for t in self._arriving[kind] if t[2] in self._tasks and t[0] > self._clock.now)
            top = self._top(self._arriving[kind])
            if top is not None:
                found = min(found, top[0] if top[0] > self._clock.now else min(later, default=(NEVER,))[0])
        return found

    def at_work(self) -> list[TaskAtWork]:
        """The trainings that are out, for a run that goes on later."""
        found = []
        for message_id, task in self._tasks.items():
            if task.kind == MessageType.TRAIN:
                envelope, state = unpack(self._messages[message_id].content, "envelope", "state")
                attempt = self._asked[task.kind, task.client][1]
                found.append(TaskAtWork(envelope, state, task.asked, attempt))
        return found

    def working(self) -> set[str]:
        """Whose trainings are out."""
        return {task.client for task in self._tasks.values() if task.kind == MessageType.TRAIN}

    def expect(self, left: Iterable[TaskAtWork]) -> list[TrainRequest]:
        """The requests of an earlier process: when they are sent again, they count as sent when they were."""
        requests = []
        for task in left:
            request = decode_request(task.envelope, task.state)
            assert isinstance(request, TrainRequest), "what at_work gives"
            self._left[request.client, request.round] = task
            requests.append(request)
        return requests

    def take_spent(self) -> list[Spent]:
        """What clients spent on tasks that have ended since this was last asked for."""
        spent, self._spent = self._spent, []
        return spent

    # --- how ----------------------------------------------------------------------------------------

    def _task(self, message: Message) -> SimulatedTask:
        request = decode_request(*unpack(message.content, "envelope", "state"))
        assert isinstance(request, TrainRequest | EvaluateRequest), "what such a message holds"
        client, device = request.client, self._fleet.device(request.client)
        kind = message.metadata.message_type
        asked, attempt = self._begun(kind, request)
        if attempt > MOST_ATTEMPTS:
            raise FederationStopped(
                f"round {request.round}, client {client}",
                expected="an answer",
                got=f"none to {MOST_ATTEMPTS} requests",
                hint="Lower simulation.devices.dropout or cohort.min_clients, raise cohort.deadline_s, "
                "or look at its speed, link and time online.",
            )
        if isinstance(request, TrainRequest) and request.plan.rows is None:
            request = self._with_rows(message, request)
        size = count_bytes(message.content)
        compute = device.compute(self._passes(request))
        drops_after = None
        if device.dropout:
            share = self._fleet.uniform(client, kind, request.round, attempt)
            if share < device.dropout:  # then share / dropout is uniform, too: where it happens
                drops_after = int((device.link.download(size) + compute) * share / device.dropout)
        lacking = self._limits.lacking(request)
        if lacking:  # it has loaded what it was sent, and begins
            drops_after = device.link.download(size)
        task = SimulatedTask(client, kind, device, asked, size, compute, drops_after, lacking or DROPPED)
        task.begin(resumes=self._fleet.resumes)
        return task

    def _with_rows(self, message: Message, request: TrainRequest) -> TrainRequest:
        """The request, which from now on says how many rows its client has, if not all."""
        if (rows := self._limits.rows(request.client)) is None:
            return request
        request = replace(request, plan=replace(request.plan, rows=rows))
        envelope, state = encode_request(request)
        message.content[RECORD] = pack(envelope=envelope, state=state)[RECORD]
        return request

    def _begun(self, kind: str, request: TrainRequest | EvaluateRequest) -> tuple[int, int]:
        """When a request was sent, and how many times its client was asked in this round, with it."""
        left = self._left.pop((request.client, request.round), None) if kind == MessageType.TRAIN else None
        if left is None:
            number, before = self._asked.get((kind, request.client), (request.round, 0))
            found = self._clock.now, before + 1 if number == request.round else 1
        else:
            found = left.asked, left.attempt
        self._asked[kind, request.client] = request.round, found[1]
        return found

    def _take(self, message_id: str, task: SimulatedTask, message: Message) -> None:
        message.metadata.__dict__["_message_id"] = message_id  # Flower's own links set it so
        self._tasks[message_id], self._messages[message_id] = task, message
        queue, when = self._computing, task.computed
        if task.failure:
            queue, when = self._arriving, task.arrives
        heappush(queue[task.kind], (when, task.client, message_id))

    def _top(self, queue: _Queue) -> tuple[int, str, str] | None:
        """The first of a heap that is still waited for."""
        while queue and queue[0][2] not in self._tasks:
            heappop(queue)
        return queue[0] if queue else None

    def _execute(self, kind: str, limit: int) -> None:
        """Have every reply here that may be the first to arrive up to ``limit``."""
        while (first := self._top(self._computing[kind])) is not None:
            known = self._top(self._arriving[kind])
            now = self._clock.now
            sure = known is not None and known < first and (known[0] > now or limit <= now)
            if first[0] > limit or sure:
                return
            heappop(self._computing[kind])
            message_id = first[2]
            task, reply = self._tasks[message_id], self._awaited(message_id)
            task.finish(_size(reply), resumes=self._fleet.resumes)
            if not task.failure:
                self._replies[message_id] = reply
            heappush(self._arriving[kind], (task.arrives, task.client, message_id))

    def _certain_among(self, tasks: list[SimulatedTask]) -> set[int]:
        """Those that the grid within is given at once, by identity: evaluations, and certain trainings."""
        found = {id(task) for task in tasks if task.kind != MessageType.TRAIN and not task.failure}
        train = [task for task in tasks if task.kind == MessageType.TRAIN]
        if train:
            number = self._asked[MessageType.TRAIN, train[0].client][0]
            out = (task for task in self._tasks.values() if task.kind == MessageType.TRAIN)
            sure = self._certain.among(train, out, round=number, now=self._clock.now)
            found |= {id(task) for task, so in zip(train, sure, strict=True) if so and not task.failure}
        return found

    def _within(self, message_id: str) -> str | None:
        """The message's id in the grid within, which has it from now on; None if it could not be pushed."""
        if (message := self._held.pop(message_id, None)) is not None:
            message.metadata.__dict__["_message_id"] = ""  # as of a message that was not sent
            ids: list[str | None] = list(self._inner.push_messages([message]))
            self._inner_ids[message_id] = ids[0] if ids else None
        return self._inner_ids.get(message_id, message_id)

    def _awaited(self, message_id: str) -> Message:
        """The reply of the grid within, however long this machine takes."""
        if (inner := self._within(message_id)) is None:
            error = Error(code=_FAILED, reason="Flower could not push the message")
            return Message(error, reply_to=self._messages[message_id])
        while True:
            self._check()
            found = list(self._inner.pull_messages([inner]))
            if found:
                return found[0]
            time.sleep(_REAL_POLL_S)

    def _handed_on(self, message_id: str, task: SimulatedTask) -> Message:
        del self._tasks[message_id]
        self._inner_ids.pop(message_id, None)
        message = self._messages.pop(message_id)
        self._spent.append(task.spent(self._clock.now, resumes=self._fleet.resumes))
        reply = self._replies.pop(message_id, None)
        if reply is None:
            return Message(Error(code=_FAILED, reason=task.failure), reply_to=message)
        return reply

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then let simulated time pass until every message is answered."""
        ids = set(self.push_messages(messages))
        replies: list[Message] = []
        while len(replies) < len(ids):
            replies.extend(self.pull_messages(ids))
            if len(replies) < len(ids):
                self._clock.sleep(NEVER)
        return replies


def _order(task: SimulatedTask | None) -> tuple[int, str]:
    """In which order tasks are executed: as their computations end, so that few replies must be held."""
    return (-1, "") if task is None else (task.computed, task.client)


def _size(reply: Message) -> int:
    """Bytes of a reply; 0 of an error."""
    return 0 if reply.has_error() else count_bytes(reply.content)
