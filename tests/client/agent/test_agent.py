"""The agent without a network: how it fetches, delivers, comes back and ends."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import pytest

from headwater.client.agent.agent import Agent
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.owner_log import StatusFile
from headwater.client.agent.task_clock import Clocks
from headwater.client.agent.task_handler import AgentStopping
from headwater.errors import DataError, DecodeError
from headwater.proto.wire import decode_signed
from headwater.protocol.failures import FailureCode
from headwater.protocol.messages import ClientFailure, EncodedUpdate
from tests.client.agent.devices import RUN, evaluation_of, opened, parts, profile_request, sign, vector_train
from tests.client.agent.fakes import FEDERATION, LOST, FakeWorker, HandlerInFolder, no


@dataclass(frozen=True)
class Delivery:
    message_id: str
    kind: str
    parts: dict[str, bytes]


@dataclass
class FakeConnection:
    """A server in memory. ``script`` holds what the next calls raise, by method."""

    inbox: queue.Queue = field(default_factory=queue.Queue)
    replies: list = field(default_factory=list)
    script: dict[str, deque] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        left = self.script.get(name)
        if left:
            error = left.popleft()
            if error is not None:
                raise error

    def _alone(self, name: str) -> None:
        assert self.busy.acquire(blocking=False), "two threads on one connection"
        try:
            self._call(name)
        finally:
            self.busy.release()

    def activate(self):
        self._alone("activate")

    def deactivate(self):
        self._call("deactivate")

    def heartbeat(self):
        self._call("heartbeat")

    def receive(self):
        self._alone("receive")
        try:
            return self.inbox.get_nowait()
        except queue.Empty:
            return None

    def reply(self, delivery, data):
        self._alone("reply")
        self.replies.append((delivery, data))


class Running:
    """An agent in a thread, with no pauses worth waiting for."""

    def __init__(self, handled: HandlerInFolder, connection: FakeConnection, tmp_path, stop=None) -> None:
        self.stop = stop or threading.Event()
        status = StatusFile(tmp_path / "status.json", "server:1")
        self.agent = Agent(
            connection, handled.handler, handled.log.append, self.stop, status, draw=lambda: 0.001
        )
        self.thread = threading.Thread(target=self.agent.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def until(condition, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


def train_delivery(number: int) -> Delivery:
    return Delivery(f"m{number}", "train", parts(vector_train(FEDERATION, round=number)))


def test_tasks_are_fetched_answered_and_delivered(make, tmp_path):
    found, connection = make(), FakeConnection()
    for number in (1, 2, 3):
        connection.inbox.put(train_delivery(number))
    with Running(found, connection, tmp_path):
        until(lambda: len(connection.replies) == 3)
    assert [opened(data).round for _, data in connection.replies] == [1, 2, 3]
    assert [d.parts for d, _ in connection.replies] == [{}] * 3, "a request is not held while it waits"
    assert connection.calls[0] == "activate"
    assert connection.calls[-1] == "deactivate"


def test_the_server_may_come_later_and_go_at_any_call(make, tmp_path):
    found = make()
    connection = FakeConnection(
        script={
            "activate": deque([LOST, LOST, LOST, None, LOST, None]),
            "receive": deque([None, LOST]),
            "reply": deque([LOST, LOST]),
        }
    )
    connection.inbox.put(train_delivery(1))
    with Running(found, connection, tmp_path):
        until(lambda: connection.replies)
    assert found.worker.asked == ["TrainRequest"], "trained once, however often the delivery failed"
    assert any("no connection" in line for line in found.log)


def test_a_reply_that_is_answered_with_garbage_is_not_sent_for_ever(make, tmp_path):
    found = make()
    garbled = DecodeError("server:1", expected="an answer", got="garbage")
    connection = FakeConnection(script={"reply": deque([garbled])})
    connection.inbox.put(train_delivery(1))
    connection.inbox.put(train_delivery(2))
    with Running(found, connection, tmp_path):
        until(lambda: connection.replies)
    assert [opened(data).round for _, data in connection.replies] == [2]


def test_a_reply_that_nobody_wants_is_dropped_and_one_that_is_refused_for_now_is_kept(make, tmp_path):
    found = make()
    connection = FakeConnection(script={"reply": deque([no(410), no(403)])})
    connection.inbox.put(train_delivery(1))
    connection.inbox.put(train_delivery(2))
    with Running(found, connection, tmp_path) as running:
        until(lambda: "accepted" in running.agent.connection_keeper.state)
        assert not connection.replies
        assert not running.agent.connection_keeper.up.is_set()
        running.agent.connection_keeper.wake()  # the minute is over
        until(lambda: connection.replies)
    assert [opened(data).round for _, data in connection.replies] == [2]
    assert any("does not want the reply any more" in line for line in found.log)


@pytest.mark.parametrize("status", [413, 422])
def test_a_reply_refused_by_size_or_form_is_answered_with_a_failure(make, tmp_path, status):
    """Silence would keep the server waiting for ever."""
    found = make()
    connection = FakeConnection(script={"reply": deque([no(status), LOST])})
    connection.inbox.put(train_delivery(3))
    with Running(found, connection, tmp_path):
        until(lambda: connection.replies)
    ((delivery, data),) = connection.replies
    failure = opened(data)
    assert isinstance(failure, ClientFailure)
    assert (delivery.message_id, failure.run, failure.round) == ("m3", RUN, 3)
    assert failure.failure.code is FailureCode.REPLY_REFUSED
    assert failure.failure.numbers[0] == status
    assert decode_signed(data, max_bytes=10**6)[1] == sign(b"")
    assert any(f"{status} because" in line for line in found.log)


def test_every_kind_of_reply_has_a_failure_for_it_and_a_failure_has_none(make):
    found = make()
    requests = profile_request(FEDERATION), evaluation_of(vector_train(FEDERATION)), vector_train(FEDERATION)
    for request, number in zip(requests, (0, 1, 1), strict=True):
        failure = found.handler.instead_of(found.handler.answer(parts(request)), 413, "413")
        assert (opened(failure).run, opened(failure).round) == (RUN, number)
        assert found.handler.instead_of(failure, 413, "413") is None


def test_a_failure_that_is_refused_too_is_dropped(make, tmp_path):
    found = make()
    connection = FakeConnection(script={"reply": deque([no(413), no(422)])})
    connection.inbox.put(train_delivery(1))
    connection.inbox.put(train_delivery(2))
    with Running(found, connection, tmp_path):
        until(lambda: connection.replies)
    assert [opened(data).round for _, data in connection.replies] == [2]


def test_a_task_in_the_middle_of_a_stop_is_dropped_within_seconds(make, tmp_path):
    stop = threading.Event()
    found = make(worker=FakeWorker(), should_stop=stop.is_set)
    found.worker.seconds = 600  # longer than a test may take
    connection = FakeConnection()
    connection.inbox.put(train_delivery(1))
    with Running(found, connection, tmp_path, stop):
        until(lambda: found.worker.asked)
    assert connection.replies == []
    assert connection.calls[-1] == "deactivate"
    with pytest.raises(AgentStopping):
        found.handler.answer(parts(vector_train(FEDERATION)))


@pytest.mark.parametrize("error", [None, LOST, no(413)])
def test_a_finished_reply_is_delivered_before_the_goodbye(make, tmp_path, error):
    """An update that is there counts, also of a device that goes; one that is refused holds up no end."""
    stop = threading.Event()
    found, connection = make(), FakeConnection(script={"reply": deque([error])})
    answer = found.handler.answer

    def stopped_while_it_answers(parts):
        data = answer(parts)
        stop.set()
        return data

    found.handler.answer = stopped_while_it_answers
    connection.inbox.put(train_delivery(1))
    with Running(found, connection, tmp_path, stop) as running:
        until(stop.is_set)
        running.thread.join(60)
    assert connection.calls[-2:] == ["reply", "deactivate"]
    assert [type(opened(data)) for _, data in connection.replies] == ([] if error else [EncodedUpdate])
    assert json.loads((tmp_path / "status.json").read_text())["doing"] == "nothing"


def test_while_the_server_is_away_a_finished_reply_is_no_training(make, tmp_path):
    """A revoked device, say, is not shown as one that trains."""
    found, connection = make(), FakeConnection(script={"reply": deque([no(403)] * 50)})
    connection.inbox.put(train_delivery(1))
    status = tmp_path / "status.json"
    with Running(found, connection, tmp_path) as running:
        until(lambda: status.exists() and "keeps a finished reply" in status.read_text())
        content = json.loads(status.read_text())
        assert "revoked" in content["state"]
        assert content["again"] > time.time() - 60
        running.stop.set()


def test_the_rows_in_memory_stand_in_the_status_while_they_are_there(make, tmp_path):
    found, connection = make(), FakeConnection()
    found.worker.rows = RowsRead("r1", "a", "b")
    connection.inbox.put(train_delivery(1))

    def shown():
        return json.loads((tmp_path / "status.json").read_text())["rows"]

    with Running(found, connection, tmp_path):
        until(lambda: shown() == ["r1", "a", "b"])
        found.worker.rows = None  # as when the owner's hours are over and the child is ended
        until(lambda: shown() is None)


def test_what_the_owner_mends_is_noticed_while_the_server_is_away(make, tmp_path):
    (tmp_path / "ann.jsonl").write_text("{}\n")
    clock = [0.0]
    found = make(joined=False, clocks=Clocks(elapsed=lambda: clock[0]))
    found.worker.error = DataError("ann.jsonl:3", got="'goood'")
    assert isinstance(found.ask(profile_request(FEDERATION)), ClientFailure)
    connection = FakeConnection(script={"activate": deque([LOST] * 10**4)})
    found.worker.error = None
    (tmp_path / "ann.jsonl").write_text("{} \n")
    with Running(found, connection, tmp_path):
        clock[0] = 100.0
        until(lambda: not list(found.handler.setbacks.problems))
    assert "receive" not in connection.calls


def test_an_absent_server_does_not_hold_up_the_end(make, tmp_path):
    connection = FakeConnection(script={"activate": deque([LOST] * 10**4)})
    with Running(make(), connection, tmp_path) as running:
        until(lambda: len(connection.calls) > 3)
        running.stop.set()
    assert "deactivate" not in connection.calls


def test_a_fault_in_the_agent_does_not_end_it(make, tmp_path, monkeypatch):
    found, connection = make(), FakeConnection()
    calls = []

    def faulty():
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("bug")

    monkeypatch.setattr(found.handler, "rest", faulty)
    with Running(found, connection, tmp_path) as running:
        until(lambda: calls)
        monkeypatch.setattr(running.agent._stop, "wait", lambda s=0: running.agent._stop.is_set())
    assert any("a fault in the agent" in line and "bug" in line for line in found.log)


def test_heartbeats_go_on_while_a_task_is_worked_for(make, tmp_path):
    found = make()
    found.worker.seconds = 0.6
    connection = FakeConnection(script={"heartbeat": deque([None, LOST])})
    connection.inbox.put(train_delivery(1))
    running = Running(found, connection, tmp_path)
    running.agent.connection_keeper._heartbeat_s = 0.05
    with running:
        until(lambda: connection.replies)
    middle = connection.calls[connection.calls.index("receive") : connection.calls.index("reply")]
    assert middle.count("heartbeat") >= 2
    assert "activate" in middle, "and the server may restart in the middle of it"


def test_the_connection_keeper_waits_with_activating_while_a_download_is_under_way(make, tmp_path):
    found = make()
    connection = FakeConnection(script={"heartbeat": deque([LOST])})
    slow = connection.receive

    def receive():
        connection._alone = lambda name: (_ for _ in ()).throw(AssertionError("two threads at once"))
        time.sleep(0.5)
        del connection._alone
        return slow()

    connection.receive = receive
    connection.inbox.put(train_delivery(1))
    running = Running(found, connection, tmp_path)
    running.agent.connection_keeper._heartbeat_s = 0.05
    with running:
        until(lambda: connection.replies)
        until(lambda: connection.calls.count("activate") == 2)
