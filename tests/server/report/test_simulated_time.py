"""What the report, the summary and ``--time-to`` say of simulated time."""

from __future__ import annotations

import json

import pytest

from headwater.cli.main import main
from headwater.config import load_federation
from headwater.server.report.data import read_run
from headwater.server.report.page import render
from headwater.server.report.simulated import reached, round_chart, time_to
from headwater.server.storage.run_folder import RunFolder
from tests.support.runs import bare_federation

HOSTILE = "client-<script>"


def record(number, accuracy, ends, joules=1000.0, **clients):
    return {
        "round": number,
        "clients": clients,
        "bytes": {},
        "test": {"accuracy": accuracy, "examples": 9},
        "simulated": {"start_s": ends - 60.0, "trained_s": ends - 5.0, "end_s": ends, "joules": joules},
        "seconds": 1.0,
    }


def row(start, compute, **more):
    times = {"asked_s": start, "download_s": 5.0, "compute_s": compute, "upload_s": 1.0, "joules": 3.0}
    return {"simulated": {**times, "end_s": start + compute + 6.0}, **more}


ROUNDS = [
    record(0, 0.5, 0.0, joules=0.0),
    record(1, 0.7, 3600.0),
    record(2, 0.66, 7200.0),
    record(3, 0.9, 10800.0, **{"edge-1": row(10740.0, 20.0), HOSTILE: row(10740.0, 49.0, failed="late")}),
]


@pytest.fixture
def folder(tmp_path):
    loaded = load_federation(bare_federation(tmp_path / "file"))
    made = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    (made.path / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROUNDS))
    (made.path / "summary.json").write_text(json.dumps({"metric": {"name": "accuracy", "on": "test"}}))
    return made


@pytest.mark.parametrize(
    ("value", "number", "seconds", "joules"),
    [(0.5, 0, 0.0, 0.0), (0.6, 1, 3600.0, 1000.0), (0.9, 3, 10800.0, 3000.0)],
)
def test_the_time_to_a_value_is_the_end_of_the_first_round_that_has_it(
    folder, value, number, seconds, joules
):
    found = time_to(read_run(folder), value)
    assert (found.round, found.seconds, found.joules) == (number, seconds, joules)


def test_a_value_that_was_not_reached_has_no_time(folder):
    assert time_to(read_run(folder), 0.95) is None


def test_round_values_up_to_the_best_are_listed(folder):
    rows = reached(read_run(folder))
    assert rows[0] == ("0.500", "0", "0.0 s", "0.00 J")
    assert rows[-1] == ("0.900", "3", "3 h 00 min", "3.00 kJ")
    assert [value for value, *_ in rows] == sorted(value for value, *_ in rows)


def test_the_picture_of_a_round_shows_who_waited_and_who_was_late(folder):
    number, svg = round_chart(read_run(folder))
    assert number == 3
    drawn = str(svg)
    assert drawn.count('class="bar"') == drawn.count('class="bad"') == 1
    assert drawn.count('class="sent"') == drawn.count('class="ghost"') == 2
    assert "simulated seconds since the round began" in drawn
    assert "edge-1: download 5.0 s, compute 20 s, upload 1.0 s" in drawn
    assert "<script" not in drawn


def test_the_page_has_a_section_of_simulated_time_only_with_devices(folder):
    page = render(read_run(folder))
    assert 'id="simulated"' in page
    assert "3 h 00 min" in page
    plain = [{key: value for key, value in line.items() if key != "simulated"} for line in ROUNDS]
    (folder.path / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in plain))
    assert 'id="simulated"' not in render(read_run(folder))


def test_a_run_in_real_time_has_no_simulated_time(tmp_path, capsys):
    loaded = load_federation(bare_federation(tmp_path / "file"))
    made = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    assert main(["report", str(made.path), "--time-to", "0.8"]) == 2
    assert "expected a run with [simulation.devices], got one in real time" in capsys.readouterr().err


def test_the_command_prints_when_a_value_was_reached(folder, capsys):
    assert main(["report", str(folder.path), "--time-to", "0.8"]) == 0
    assert "time to accuracy 0.8: 3 h 00 min (round 3, 3.00 kJ)" in capsys.readouterr().out
    assert main(["report", str(folder.path), "--time-to", "0.95"]) == 0
    assert "time to accuracy 0.95: not reached" in capsys.readouterr().out
