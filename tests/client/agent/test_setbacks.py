"""What a device could not do: pauses, the owner's files, failures that go on, room."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.cli.client import status as client_status
from headwater.client.agent import disk_room as room
from headwater.client.agent import setbacks
from headwater.client.agent.backoff import FIRST_S, LONGEST_S, Backoff
from headwater.client.agent.data_stamp import stamp
from headwater.client.agent.disk_room import SLACK_BYTES, needed_bytes
from headwater.client.agent.outbox import Outbox
from headwater.client.execution.execute import execute
from headwater.client.execution.store import DirectoryStore
from headwater.errors import ModelError, StorageError, TrainingError
from headwater.protocol.failures import Failure, FailureCode, coded
from headwater.protocol.messages import EncodedUpdate
from tests.client.agent.devices import RUN, TextDevice, evaluation_of, profile_request
from tests.client.agent.homes import BAD, FEDERATION, PROFILE, TRAIN


def test_pauses_double_up_to_an_hour_and_begin_with_the_second_failure():
    backoff = Backoff()
    pauses = [backoff.failed("r", "train", FailureCode.TRAINING_FAILED, 0.0, "x") for _ in range(10)]
    assert pauses == [0, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert backoff.failed("r", "evaluate", FailureCode.TRAINING_FAILED, 0.0, "x") == 0
    backoff.succeeded("r", "train")
    assert backoff.failed("r", "train", FailureCode.TRAINING_FAILED, 0.0, "x") == 0
    assert backoff.failed("s", "train", FailureCode.DISK_FULL, 0.0, "x") == FIRST_S


@given(st.lists(st.floats(0.1, 600), min_size=1, max_size=300))
def test_work_that_always_fails_is_rarely_done(gaps):
    """However often it is asked for: in T seconds at most 2 + log2 + T/hour times."""
    backoff, now, done = Backoff(), 0.0, 0
    for gap in gaps:
        now += gap
        if backoff.pause("r", "train", now, lambda: "x") is None:
            done += 1
            backoff.failed("r", "train", FailureCode.TRAINING_FAILED, now, "x")
    assert done <= 2 + 7 + now / LONGEST_S


def test_other_files_end_a_pause_and_are_looked_at_in_a_pause_only():
    backoff, looked = Backoff(), []
    for _ in range(3):
        backoff.failed("r", "train", FailureCode.TRAINING_FAILED, 0.0, "old")
    assert backoff.pause("r", "train", 1.0, lambda: "old").failures == 3
    assert backoff.pause("r", "profile", 1.0, lambda: "old") is not None, "the server must not count on it"
    assert backoff.pause("r", "evaluate", 1.0, lambda: looked.append(1) or "old") is None
    assert not looked
    assert backoff.pause("r", "train", 1.0, lambda: "new") is None
    assert backoff.pause("r", "train", 121.0, lambda: looked.append(1) or "old") is None
    assert not looked
    assert backoff.failed("r", "train", FailureCode.TRAINING_FAILED, 130.0, "new") == 0


def test_every_change_of_a_file_changes_the_stamp_and_the_agents_own_do_not(tmp_path):
    data, state = tmp_path / "data", tmp_path / "data" / "state"
    (data / "deep").mkdir(parents=True)
    state.mkdir()
    rows = data / "deep" / "rows.jsonl"
    seen = [stamp([data, tmp_path / "absent"], skip=state)]

    def changed() -> bool:
        seen.append(stamp([data, tmp_path / "absent"], skip=state))
        return seen[-1] != seen[-2]

    rows.write_text("a")
    assert changed()
    times = rows.stat()
    rows.write_text("b")
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))  # as an editor that hides its traces
    assert changed()
    (tmp_path / "absent").write_text("x")
    assert changed()
    rows.rename(rows.with_name("other.jsonl"))
    assert changed()
    (state / "usage.json").write_text("x")
    assert not changed()


def test_a_training_that_always_fails_is_not_done_in_every_round(home):
    home.ask(PROFILE)
    home.worker.asked.clear()
    home.worker.error = TrainingError("no")
    codes = []
    for number in range(1, 57):  # a round every 10 s
        home.wait(10)
        codes.append(home.code(replace(TRAIN, round=number)))
    assert len(home.worker.asked) <= 5
    assert codes[:2] == [FailureCode.TRAINING_FAILED] * 2
    assert set(codes) == {FailureCode.TRAINING_FAILED, FailureCode.TRIES_LATER}
    assert sum("tried again in" in line for line in home.log) <= 10, "and the log does not fill"
    assert home.code(PROFILE) is FailureCode.TRIES_LATER
    (shown,) = home.needs()
    assert "no" in shown


@pytest.mark.parametrize("what", ["files", "restart", "time"])
def test_what_ends_a_pause(home, what):
    home.ask(PROFILE)
    home.worker.error = TrainingError("no")
    for number in (1, 2, 3):
        home.code(replace(TRAIN, round=number))
    assert home.code(replace(TRAIN, round=4)) is FailureCode.TRIES_LATER
    home.worker.error = None
    if what == "files":
        home.edit()
    elif what == "restart":
        home.start()
    else:
        home.wait(FIRST_S + 1)
    assert isinstance(home.ask(replace(TRAIN, round=5)), EncodedUpdate)
    assert home.needs() == []


def test_a_run_that_the_device_has_forgotten_has_no_problem_any_more(home):
    home.worker.error = BAD
    home.code(PROFILE)
    home.worker.error = None
    for number in range(4):
        home.ask(profile_request(FEDERATION, run=f"{number}" * 8))
    assert home.needs() == []


def disk(monkeypatch, free: list[int]) -> None:
    for module in (room, setbacks, client_status):
        monkeypatch.setattr(module, "free_bytes", lambda folder: free[0], raising=False)


def test_room_is_looked_at_before_any_work_and_its_want_ends_by_itself(home, monkeypatch):
    free = [10**9]
    disk(monkeypatch, free)
    home.ask(PROFILE)
    home.worker.asked.clear()
    free[0] = 2 * SLACK_BYTES // 3
    reply = home.ask(TRAIN)
    assert home.worker.asked == []
    assert reply.failure.code is FailureCode.DISK_FULL
    needed, left = reply.failure.numbers
    assert (left, needed > SLACK_BYTES) == (free[0], True)
    assert str(home.folder) not in reply.reason
    assert str(home.settings.state) in home.needs()[0]
    for number in range(2, 57):
        home.wait(10)
        assert home.code(replace(TRAIN, round=number)) in {FailureCode.TRIES_LATER, FailureCode.DISK_FULL}
    assert home.code(PROFILE) in {FailureCode.TRIES_LATER, None}
    assert "TrainRequest" not in home.worker.asked
    free[0] = needed
    home.recheck()
    assert home.needs() == []
    assert isinstance(home.ask(replace(TRAIN, round=57)), EncodedUpdate)


def test_a_disk_that_fills_while_it_is_written_to_is_the_same(home):
    home.ask(PROFILE)
    home.worker.error = StorageError("writing /secret/ann.feedback", got="No space left on device")
    home.worker.error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert home.ask(TRAIN).failure == Failure(FailureCode.DISK_FULL, (0, 0)), "it seems that there is room"
    assert home.code(replace(TRAIN, round=2)) is FailureCode.TRIES_LATER


@pytest.mark.parametrize("codec", [{"kind": "compeft", "density": 0.2}, {"kind": "dense"}])
def test_what_a_training_keeps_is_no_more_than_was_asked_for(tmp_path, codec):
    """The residual, the reply and the old files beside the new ones, on a real training."""
    device = TextDevice(tmp_path / "theirs", tmp_path / "ours", {"codec": {"up": codec}})
    runtime, state = device.simulated(), tmp_path / "state"
    store, outbox = DirectoryStore(state / "runs" / RUN), Outbox(state / "outbox")
    for number in (1, 2, 3):
        task = device.train(runtime.context, round=number, accepted_round=number - 1)
        before = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
        needed = needed_bytes(task, state)
        (answer,) = execute([task], store, runtime)
        outbox.put("ab" * 32, answer.data)
        written = [p.stat().st_size for p in state.rglob("*") if p.is_file()]
        assert sum(written) <= needed
        assert sum(written) + before - SLACK_BYTES <= 3 * needed, "and not many times that"


@pytest.mark.parametrize(
    ("files", "left", "free"), [(0, 0, 4096 * 9), (100, 50, 4096 * 9), (100, 3, 0), (100, 0, 0)]
)
def test_a_disk_without_room_for_files_is_full(tmp_path, monkeypatch, files, left, free):
    @dataclass
    class Found:
        f_files: int = files
        f_favail: int = left
        f_bavail: int = 9
        f_frsize: int = 4096

    monkeypatch.setattr(room.os, "statvfs", lambda folder: Found())
    assert room.free_bytes(tmp_path / "not" / "there" / "yet") == free


def test_a_full_disk_is_shown_although_nothing_can_be_written_down(home, monkeypatch):
    disk(monkeypatch, [17])
    assert any("is full, 17 bytes are free" in text for text in home.needs())


def test_a_code_for_the_organiser_is_no_problem_of_the_owner(home):
    home.ask(PROFILE)
    home.worker.error = coded(ModelError("x"), FailureCode.NEEDS_FULL_STATE, 3)
    for number in (1, 2, 3, 4):
        assert home.code(replace(TRAIN, round=number)) is FailureCode.NEEDS_FULL_STATE
    assert home.code(evaluation_of(TRAIN)) is FailureCode.NEEDS_FULL_STATE
    assert home.needs() == []


def test_idle_says_what_it_waits_for_on_every_link(home, monkeypatch):
    monkeypatch.setattr("headwater.client.agent.agent.is_running", lambda state: True)
    assert "idle: waits for a task of the server; it has not asked" in dict(home.status())["doing"]
    home.start({"metered": True, "max_mb_per_day": 5})
    assert "asks every 30 s only" in dict(home.status())["doing"]


def test_a_full_disk_dates_what_the_agent_could_last_write(home, monkeypatch):
    monkeypatch.setattr("headwater.client.agent.agent.is_running", lambda state: True)
    disk(monkeypatch, [0])
    shown = dict(home.status())
    assert "(as of 20" in shown["doing"]
    assert "(as of 20" in shown["connection"]


def test_other_numbers_of_examples_are_told(home):
    home.ask(PROFILE)
    home.handler.runs.learn(home.handler.runs.get(RUN), 9)
    home.ask(PROFILE)
    assert f"run {RUN}: your data has 7 examples now, 9 before" in home.log[-1]
