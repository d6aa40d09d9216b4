"""The agent without a network: what it answers, what it keeps, how it comes back, how it ends."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime

import pytest

from headwater.client.agent.agent import Agent, is_running, only_agent, sweep
from headwater.client.agent.connection_keeper import ConnectionKeeper, for_a_person
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.outbox import KEPT_REPLIES, Outbox, request_digest
from headwater.client.agent.owner_log import LOG_BYTES, OwnerLog, StatusFile
from headwater.client.agent.task_handler import AgentStopping, TaskHandler
from headwater.client.agent.worker import WorkerDied
from headwater.errors import ConnectionLost, DataError, DecodeError, Refused, StorageError, TrainingError
from headwater.proto.wire import decode_request, decode_signed, encode_reply
from headwater.protocol.failures import Failure, FailureCode, coded
from headwater.protocol.messages import (
    ClientFailure,
    ClientProfile,
    EncodedUpdate,
    Evaluation,
    Payload,
    ProfileRequest,
    TrainRequest,
)
from tests.client.agent.devices import (
    RUN,
    VECTOR_SHA256,
    agent_file,
    ask,
    evaluation_of,
    opened,
    parts,
    profile_request,
    sign,
    vector_federation,
    vector_train,
)

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


# --- what is answered -----------------------------------------------------------------------------


def test_every_kind_is_answered_and_signed(make):
    found = make()
    assert isinstance(found.ask(vector_train(FEDERATION)), EncodedUpdate)
    assert isinstance(found.ask(evaluation_of(vector_train(FEDERATION))), Evaluation)
    signatures = []
    handler = TaskHandler(
        found.settings, found.worker, lambda data: signatures.append(data) or b"x" * 64, print
    )
    data, signature = decode_signed(handler.answer(parts(profile_request(FEDERATION))), max_bytes=10**6)
    assert signatures == [data]
    assert signature == b"x" * 64


def refused(found, request) -> str:
    before = len(found.worker.asked)
    reply = found.ask(request)
    assert isinstance(reply, ClientFailure)
    assert reply.client == "ann"
    assert len(found.worker.asked) == before, "nothing is worked for"
    assert reply.reason == reply.failure.sentence()
    return found.log[-1].partition(": refused: ")[2]


def test_another_clients_task_is_refused_by_name(make):
    reason = refused(make(), vector_train(FEDERATION, client="ben"))
    assert reason == "client ann: expected a task for this client, got one for ben"


def test_a_run_that_was_never_joined_is_refused_by_name(make):
    found = make(joined=False)
    assert "got run 0123" in refused(found, vector_train(FEDERATION))
    assert "run id" in refused(found, vector_train(FEDERATION, run="../../etc"))


def test_a_policy_refusal_names_rule_run_and_round(make):
    found = make({"training": ["backprop"]}, joined=False)
    reply = found.ask(profile_request(FEDERATION))
    failure = Failure(FailureCode.POLICY_TRAINING)
    assert reply == ClientFailure.coded("ann", 0, failure, profile_request(FEDERATION).run)
    assert found.log[-1].endswith("refused: policy training ['backprop']: the task wants 'noop'")
    assert "training" in refused(found, vector_train(FEDERATION, round=4))


def test_the_owners_examples_decide_after_the_profile(make):
    found = make({"max_examples": 6}, joined=False)
    reply = found.ask(profile_request(FEDERATION))
    assert reply.reason == "policy max_examples 6: the task takes all 7 of this device"
    assert reply.failure == Failure(FailureCode.POLICY_EXAMPLES, (6, 7))


def test_a_restarted_agent_knows_the_run(make, tmp_path):
    make()
    again = TaskHandler(agent_file(tmp_path), FakeWorker(), sign, print)
    assert isinstance(ask(again, vector_train(FEDERATION)), EncodedUpdate)


def test_a_base_that_is_not_here_or_not_allowed_is_refused(make, tmp_path):
    content = FEDERATION.model_dump(mode="json") | {
        "model": {"kind": "encoder", "path": "x"},
        "adapter": {"kind": "lora"},
        "data": {"kind": "classification", "path": "x", "labels": ["a", "b"], "partition": {"kind": "files"}},
    }
    import json

    from headwater.config import Federation

    request = profile_request(Federation.model_validate_json(json.dumps(content)), "ab" * 32)
    assert f"base model sha256 {'ab' * 32}" in refused(make(joined=False), request)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"envelope": b"x"},
        {"envelope": b"\xff\xff", "state": b""},
        {"envelope": b"", "state": b"", "bundle": b"PK\3\4 headwater/__init__.py"},
    ],
)
def test_garbage_is_answered_with_a_failure(make, bad):
    found = make()
    reply = opened(found.handler.answer(bad))
    assert isinstance(reply, ClientFailure)
    assert found.worker.asked == []


# --- death, time and budget -----------------------------------------------------------------------


def test_a_task_whose_worker_dies_is_repeated_once(make):
    found = make()
    found.worker.deaths = 1
    assert isinstance(found.ask(vector_train(FEDERATION)), EncodedUpdate)
    found.worker.deaths = 2
    reply = found.ask(vector_train(FEDERATION, round=2))
    assert reply.failure.code is FailureCode.WORKER_DIED
    assert found.log[-1].endswith("refused: worker died: killed by signal 9 (SIGKILL), perhaps out of memory")
    assert found.worker.asked == ["TrainRequest"] * 4


def test_what_the_worker_cannot_do_is_a_failure(make):
    found = make()
    found.worker.error = coded(TrainingError("loss is nan"), FailureCode.DIVERGED)
    assert found.ask(vector_train(FEDERATION)).failure.code is FailureCode.DIVERGED
    assert found.log[-1].endswith("refused: loss is nan")


def test_want_of_memory_below_the_owners_cap_is_the_owners_rule(make):
    found = make({"memory_mb": 700})
    found.worker.error = MemoryError("2 GB")
    assert found.ask(vector_train(FEDERATION)).failure == Failure(FailureCode.POLICY_MEMORY, (700,))
    assert "policy memory_mb 700: the task wants more" in found.log[-1]


def test_work_of_the_day_ends_a_task_in_the_middle(make):
    found = make({"max_work_s_per_day": 0.3})
    found.worker.seconds = 600  # longer than a test may take
    reply = found.ask(vector_train(FEDERATION))
    assert reply.failure.code is FailureCode.POLICY_WORK_PER_DAY
    assert found.log[-1].endswith("policy max_work_s_per_day 0.3: used up in the middle of the task")
    assert found.handler.usage.today(datetime.now()).work_s >= 0.29
    assert "0 s are used today" in refused(found, vector_train(FEDERATION, round=2))


def test_bytes_are_counted_and_stop_the_fetching(make):
    found = make({"max_mb_per_day": 0.01})
    used = found.handler.usage.today(datetime.now()).bytes
    size = sum(len(p) for p in parts(profile_request(FEDERATION)).values())
    assert used == size
    assert found.handler.paused() is None
    found.handler.count(10_000)
    assert "policy max_mb_per_day 0.01" in found.handler.paused()
    assert "policy max_mb_per_day" in refused(found, vector_train(FEDERATION))


def test_a_damaged_usage_file_ends_no_agent(make):
    found = make()
    (found.settings.state / "usage.json").write_text('{"half')
    again = make({"max_mb_per_day": 100}, joined=False)
    assert "usage.json" in again.log[0]
    assert "max_mb_per_day 100" in again.handler.paused()


def test_out_of_hours_the_worker_is_let_go(make):
    clock = [datetime(2026, 3, 1, 23, 0)]
    found = make({"hours": "22:00-06:00"}, now=lambda: clock[0])
    found.handler.rest()
    assert found.worker.closed == 0
    clock[0] = datetime(2026, 3, 2, 6, 0)
    found.handler.rest()
    assert found.worker.closed == 1
    assert "it is 06:00 here" in refused(found, vector_train(FEDERATION))


# --- the same bytes again -------------------------------------------------------------------------


def test_a_repeated_task_gives_the_same_bytes_without_training(make, tmp_path):
    found = make()
    first = found.handler.answer(parts(vector_train(FEDERATION)))
    again = TaskHandler(agent_file(tmp_path), found.worker, sign, print)
    assert again.answer(parts(vector_train(FEDERATION))) == first
    assert found.worker.asked == ["TrainRequest"]
    assert again.answer(parts(vector_train(FEDERATION, round=2))) != first


def test_a_full_disk_keeps_no_reply_back(make, monkeypatch):
    found = make()

    def full(path, data, **options):
        raise StorageError(f"writing {path}", got="No space left on device")

    monkeypatch.setattr("headwater.client.agent.outbox.write_atomically", full)
    assert isinstance(found.ask(vector_train(FEDERATION)), EncodedUpdate)
    assert any("No space left" in line for line in found.log)


def test_the_outbox_is_bounded_and_checks_itself(tmp_path, monkeypatch):
    box = Outbox(tmp_path)
    digests = [request_digest(bytes([i]), b"") for i in range(KEPT_REPLIES + 2)]
    for digest in digests:
        box.put(digest, digest.encode())
    assert [box.get(d) is not None for d in digests] == [False, False] + [True] * KEPT_REPLIES
    path = tmp_path / f"{digests[-1]}.reply"
    path.write_bytes(path.read_bytes()[:-1])
    assert box.get(digests[-1]) is None
    monkeypatch.setattr("headwater.client.agent.outbox.MAX_BYTES", 10)
    box.put(digests[0], b"x" * 100)
    assert [p.name for p in tmp_path.iterdir()] == [f"{digests[0]}.reply"]


def test_digests_do_not_run_parts_together():
    assert request_digest(b"ab", b"c") != request_digest(b"a", b"bc")


# --- the connection -------------------------------------------------------------------------------


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


LOST = ConnectionLost("server:1", expected="an answer", got="ConnectError")


def no(status: int) -> Refused:
    error = Refused("server:1", expected="to be let in", got=f"{status} because")
    error.status = status
    return error


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
    found = make(joined=False, clock=lambda: clock[0])
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


# --- the connection keeper, without threads ---------------------------------------------------------


class Beat:
    def __init__(self, *script) -> None:
        self.script = deque(script)
        self.calls: list[str] = []

    def activate(self):
        self._next("activate")

    def heartbeat(self):
        self._next("heartbeat")

    def _next(self, name):
        self.calls.append(name)
        error = self.script.popleft()
        if error:
            raise error


def kept(*script, draw=lambda: 1.0):
    """Run a connection keeper over a script of answers: its pauses, calls and lines."""
    beat, stop, log, pauses = Beat(*script), threading.Event(), [], []
    connection_keeper = ConnectionKeeper(beat, log.append, stop, threading.Lock(), draw=draw)

    def wait(seconds):
        pauses.append(seconds)
        if not beat.script:
            stop.set()

    connection_keeper._wait = wait
    connection_keeper.run()
    return connection_keeper, [p for p in pauses if p], beat.calls, log


def test_pauses_grow_to_a_minute_and_start_again_after_a_success():
    _, pauses, _, log = kept(*[LOST] * 8, None, None, LOST, None)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 10, 10, 1, 10]
    assert sum("no connection" in line for line in log) == 2, "once for each time it was lost"


def test_jitter_is_full():
    _, pauses, _, _ = kept(*[LOST] * 4, None, draw=lambda: 0.25)
    assert pauses == [0.25, 0.5, 1, 2, 10]


@pytest.mark.parametrize(
    ("status", "seconds", "says"),
    [
        (403, 66, "revoked or not yet accepted"),
        (409, 330, "another agent runs"),
        (426, 330, "another version"),
    ],
)
def test_refusals_for_a_person(status, seconds, says):
    connection_keeper, pauses, calls, log = kept(None, LOST, no(status), None)
    assert pauses == [10, 1, seconds, 10]
    assert calls == ["activate", "heartbeat", "activate", "activate"]
    assert any(says in line and f"{status} because" in line for line in log)
    assert connection_keeper.state == "connected"


def test_a_403_out_of_the_blue_is_asked_again_soon():
    """A server whose clock was set says so a second later; a device that is revoked is told so again."""
    _, pauses, _, log = kept(None, no(403), no(403), None)
    assert pauses == pytest.approx([10, 3.3, 66, 10])
    assert len([line for line in log if "revoked" in line]) == 1


def test_other_refusals_back_off_like_a_lost_connection():
    _, pauses, _, log = kept(no(413), None)
    assert pauses == [1, 10]
    assert "the connection failed" in log[0]


def test_words_of_a_refusal_decide_nothing():
    assert for_a_person(no(403))
    assert not for_a_person(Refused("x", got="403 y"))
    assert not for_a_person(ConnectionLost("x", got="403 y"))


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


# --- files ------------------------------------------------------------------------------------------


def test_one_agent_for_a_folder(tmp_path, monkeypatch):
    assert not is_running(tmp_path)
    with only_agent(tmp_path / "s"):
        assert is_running(tmp_path / "s")
        moments = iter([0.0, 1.0, 9.0])
        monkeypatch.setattr("headwater.client.agent.agent.time.monotonic", lambda: next(moments))
        with pytest.raises(StorageError, match="got one that runs"), only_agent(tmp_path / "s"):
            pass
    assert not is_running(tmp_path / "s")


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    kept = tmp_path / "runs" / "a" / "ann.feedback"
    for path in (tmp_path / ".usage.json.77.tmp", tmp_path / "runs" / "a" / ".ann.feedback.77.tmp", kept):
        path.write_bytes(b"x")
    sweep(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]


def test_the_log_rotates_and_cannot_be_forged(tmp_path, capsys):
    log = OwnerLog(tmp_path / "agent.log")
    log.say("a reason\nwith \x1b[31mtricks\r of a server")
    assert "a reason·with ·[31mtricks· of a server" in capsys.readouterr().err
    assert len((tmp_path / "agent.log").read_text().splitlines()) == 1
    for _ in range(2200):
        log.say("x" * 2000)
    sizes = [p.stat().st_size for p in tmp_path.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= LOG_BYTES


def test_a_delivery_keeps_its_other_fields_while_it_waits():
    from headwater.flower.fleet_client import Delivery as Real

    real = Real("m", "train", {"envelope": b"x"}, origin="from here")
    assert replace(real, parts={}) == Real("m", "train", {}, origin="from here")
    assert replace(real, parts={}).origin == "from here"
