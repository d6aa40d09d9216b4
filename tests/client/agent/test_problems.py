"""What an owner is told to mend: once, by its rows, until it is mended."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime

from headwater.cli.client import status as client_status
from headwater.client.agent.backoff import LONGEST_S
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.owner_log import StatusFile
from headwater.client.agent.problems import MOST_PROBLEMS, Problem, Problems, read_problems
from headwater.client.agent.task_handler import TaskHandler
from headwater.errors import DataError
from headwater.protocol.failures import FailureCode
from headwater.protocol.messages import ClientProfile
from tests.client.agent.devices import RUN, TextDevice, agent_file, ask, sign
from tests.client.agent.fakes import FakeWorker
from tests.client.agent.homes import BAD, PROFILE, Home


def test_all_bad_rows_stand_in_the_status_until_mended(home):
    home.worker.error = BAD
    assert home.code(PROFILE) is FailureCode.DATA_REFUSED
    (shown,) = home.needs()
    for row in ("ann.jsonl:3", "ann.jsonl:7", "ann.jsonl:9", "Mend it.", "-> Mend the data"):
        assert row in shown
    assert f"since {home.clock.now():%Y-%m-%d}" in shown
    home.start()  # after a restart too
    assert home.needs() == [shown]
    home.worker.error = None
    home.recheck()
    assert home.needs() == [shown], "nothing has changed: nothing is tried"
    home.edit()
    home.recheck()
    assert home.needs() == []
    assert home.log[-1].startswith(f"run {RUN}: profile: mended: 3 rows")


def test_a_change_that_mends_nothing_shows_what_is_wrong_now(home):
    home.worker.error = BAD
    home.code(PROFILE)
    home.edit()
    home.worker.error = DataError("ann.jsonl:8", got="'bda'")
    home.recheck()
    (shown,) = home.needs()
    assert "ann.jsonl:8" in shown
    assert "ann.jsonl:3" not in shown
    asked = len(home.worker.asked)
    home.recheck()
    assert len(home.worker.asked) == asked, "once for each change"


def test_the_server_may_be_the_one_to_find_it_mended(home):
    home.worker.error = BAD
    home.code(PROFILE)
    home.worker.error = None
    assert isinstance(home.ask(PROFILE), ClientProfile)
    assert home.needs() == []


def test_the_log_names_the_rows_once_and_then_how_often(home):
    home.worker.error = BAD
    for _ in range(3):
        home.wait(3 * LONGEST_S)
        home.code(PROFILE)
    refused = [line for line in home.log if "refused" in line]
    assert "ann.jsonl:9" in refused[0]
    assert "refused as before, 2 times since" in refused[1]
    assert "refused as before, 3 times since" in refused[2]
    assert all(": 3 rows" in line for line in refused)
    assert re.search(r"cannot be used; tried again in [\d,]+ s, or when your files change$", refused[1])


def test_a_rule_of_the_owner_is_a_problem_until_the_rule_changes(tmp_path):
    home = Home(tmp_path, {"training": ["backprop"]})
    assert home.code(PROFILE) is FailureCode.POLICY_TRAINING
    (shown,) = home.needs()
    assert "policy training ['backprop']: the task wants 'noop'" in shown
    assert "Change the rule in [policy]" in shown
    home.start({"training": ["backprop"]})
    assert len(home.needs()) == 1
    home.start({"training": ["backprop", "noop"]})
    assert home.needs() == []


def test_hours_and_caps_are_waits_with_their_end_and_no_problems(tmp_path):
    home = Home(tmp_path)
    now = home.clock.now()
    soon = (now.hour + 2) % 24
    rules = {"hours": f"{soon:02}:00-{(soon + 1) % 24:02}:00", "max_mb_per_day": 0.001}
    home.start(rules)
    assert home.code(PROFILE) is FailureCode.POLICY_HOURS
    waits = [text for key, text in home.status() if key == "waits"]
    assert waits[0].endswith(f"it works again at {soon:02}:00")
    assert waits[1].endswith("nothing more is done before midnight")
    assert home.needs() == []


def test_an_agent_file_that_changed_since_the_start_is_said(home, monkeypatch):
    monkeypatch.setattr("headwater.client.agent.agent.is_running", lambda state: True)
    StatusFile(home.settings.state / "status.json", "server:1", home.settings.sha256)
    changed = agent_file(home.folder, {"nice": 3})
    needs = [text for key, text in client_status.lines(changed, home.clock.now()) if key == "needs you"]
    assert needs == ["the agent file has changed since the agent started: end the agent and start it again"]
    # with a full disk the agent could not write which file it has read: what is there may be older than it
    monkeypatch.setattr("headwater.client.agent.disk_room.free_bytes", lambda state: 0)
    (full,) = [text for key, text in client_status.lines(changed, home.clock.now()) if key == "needs you"]
    assert "is full, 0 bytes are free" in full


def test_data_that_changed_since_a_run_read_them_are_said_until_they_are_put_back(home, monkeypatch):
    monkeypatch.setattr("headwater.client.agent.agent.is_running", lambda state: True)
    data = home.settings.data
    home.worker.rows = RowsRead.of("r1", data, skip=home.settings.state)
    assert home.needs() == []
    whole = data.read_text()
    home.edit()
    (line,) = home.needs()
    assert "changed since run r1 read them" in line
    assert home.needs() == [line], "until it is mended"
    data.write_text(whole)
    assert home.needs() == []
    home.edit()
    home.worker.rows = None  # the child has ended: the next one reads the new rows
    assert home.needs() == []


def test_weights_that_changed_are_told_from_a_model_that_was_never_there(tmp_path):
    device = TextDevice(tmp_path / "theirs", tmp_path / "ours")
    handler = TaskHandler(device.settings, FakeWorker(), sign, lambda line: None)
    assert isinstance(ask(handler, device.profile()), ClientProfile)
    path = device.theirs / "bert" / "config.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"hidden_act": "relu"}))
    log: list[str] = []
    again = TaskHandler(device.settings, FakeWorker(), sign, log.append)
    for _ in range(2):
        reply = ask(again, device.profile())
        assert reply.failure.code is FailureCode.WEIGHTS_CHANGED
    assert str(device.theirs / "bert") in next(iter(again.setbacks.problems)).text
    StatusFile(device.settings.state / "status.json", "server:1", device.settings.sha256)
    shown = client_status.lines(device.settings, datetime.now())
    (needs,) = [text for key, text in shown if key == "needs you"]
    assert needs.count("Put the organiser's files") == 1, "the advice stands once"
    assert sum("Put the organiser's files" in line for line in log) == 1, "and in the log, which has no other"
    missing = ask(again, replace(device.profile(), model_sha256="ab" * 32))
    assert missing.failure.code is FailureCode.MODEL_MISSING
    path.write_text(whole)
    assert isinstance(ask(again, device.profile()), ClientProfile)
    assert list(again.setbacks.problems) == []


def test_problems_are_bounded_and_a_damaged_file_is_none(tmp_path):
    problems = Problems(tmp_path / "p.json")
    for number in range(3 * MOST_PROBLEMS):
        problems.met(
            Problem(f"r{number}", "train", FailureCode.DATA_REFUSED, "x" * 10**5, number, number, inputs="i")
        )
    found = read_problems(tmp_path / "p.json")
    assert [p.run for p in found] == [f"r{n}" for n in range(2 * MOST_PROBLEMS, 3 * MOST_PROBLEMS)]
    assert (tmp_path / "p.json").stat().st_size < 200_000
    for text in ("", "[", "{}", "[1]", '[{"code": 99}]', json.dumps([{"run": 1}])):
        (tmp_path / "p.json").write_text(text)
        assert list(Problems(tmp_path / "p.json")) == []
