"""The agent's answer to a task: refusals, deaths of its worker, the day's budget, the same bytes again."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

import pytest

from headwater.client.agent.outbox import KEPT_REPLIES, Outbox, request_digest
from headwater.client.agent.task_clock import Clocks
from headwater.client.agent.task_handler import TaskHandler
from headwater.errors import StorageError, TrainingError
from headwater.proto.wire import decode_signed
from headwater.protocol.failures import Failure, FailureCode, coded
from headwater.protocol.messages import ClientFailure, EncodedUpdate, Evaluation
from headwater.receipts.sent import SENT, read_sent
from tests.client.agent.devices import (
    agent_file,
    ask,
    evaluation_of,
    opened,
    parts,
    profile_request,
    sign,
    vector_train,
)
from tests.client.agent.fakes import FEDERATION, FakeWorker


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
    found = make({"hours": "22:00-06:00"}, clocks=Clocks(now=lambda: clock[0]))
    found.handler.rest()
    assert found.worker.closed == 0
    clock[0] = datetime(2026, 3, 2, 6, 0)
    found.handler.rest()
    assert found.worker.closed == 1
    assert "it is 06:00 here" in refused(found, vector_train(FEDERATION))


def test_a_repeated_task_gives_the_same_bytes_without_training(make, tmp_path):
    found = make()
    first = found.handler.answer(parts(vector_train(FEDERATION)))
    again = TaskHandler(agent_file(tmp_path), found.worker, sign, print)
    assert again.answer(parts(vector_train(FEDERATION))) == first
    assert found.worker.asked == ["TrainRequest"]
    assert again.answer(parts(vector_train(FEDERATION, round=2))) != first


def test_the_owner_has_a_hash_of_each_update_that_left(make, tmp_path, monkeypatch):
    found = make()
    one = found.handler.answer(parts(vector_train(FEDERATION)))
    again = TaskHandler(agent_file(tmp_path), found.worker, sign, print)
    again.answer(parts(vector_train(FEDERATION)))  # the same bytes
    other = again.answer(parts(vector_train(FEDERATION, round=2)))
    again.answer(parts(evaluation_of(vector_train(FEDERATION))))
    again.answer(parts(profile_request(FEDERATION)))
    rows = list(read_sent(found.settings.state / SENT))
    assert [row.round for row in rows] == [1, 2]
    assert [row.sha256 for row in rows] == [hashlib.sha256(data).hexdigest() for data in (one, other)]

    def full(path, line):
        raise StorageError(f"writing {path}", got="No space left on device")

    monkeypatch.setattr("headwater.receipts.sent.append_line", full)
    assert isinstance(found.ask(vector_train(FEDERATION, round=3)), EncodedUpdate)
    assert any("sent.jsonl" in line and "No space left" in line for line in found.log)


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
