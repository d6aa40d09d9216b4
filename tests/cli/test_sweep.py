"""``headwater sweep`` as a user meets it: tables, last line, progress, exit codes, its page in a browser."""

from __future__ import annotations

import io
import json
import os
import re
import signal

import pytest
from rich.console import Console

from headwater.cli.sweep_progress import sweep_observer
from headwater.simulation.sweeps import run as sweeps
from headwater.simulation.sweeps.events import PointFailed, PointStarted, PointTold, SweepStarted
from tests.support.chromium import chromium
from tests.support.command import headwater
from tests.support.runs import bare_federation, tiny_federation
from tests.support.sweeps import sweep_file

HOSTILE = "<script>alert(1)</script>&\u202e"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Three adapters, two seeds, on a real base."""
    tables = {"federation": {"rounds": 1}, "training": {"max_steps": 4}, "evaluation": {"clients": False}}
    federation = tiny_federation(tmp_path_factory.mktemp("fed"), **tables)
    adapters = [{"name": "r1", "kind": "lora", "rank": 1}, {"name": HOSTILE, "kind": "lora", "rank": 2}]
    axes = {"adapter": adapters, "codec.up.density": [0.1, 0.5], "federation.seed": [1, 2]}
    return sweep_file(federation, axes, metric={"target": 0.3})


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    return headwater("sweep", file, "--out", out), out


def test_it_prints_tables_and_last_its_folder_and_a_line_a_point(done):
    ended, out = done
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[-1] == str(out)
    assert lines[0] == "tiny: accuracy on the held-out test, last round"
    assert re.search(r"^r1 +0\.1 +0\.\d+ ± 0\.\d+ +2 ", ended.out, re.MULTILINE)
    assert re.search(r"^density +0\.5 +0\.\d+ ± 0\.\d+ +2 +[+−]?0", ended.out, re.MULTILINE)
    assert re.search(r"^Best: adapter = .*, density = 0\.\d, accuracy 0\.\d+ ± 0\.\d+ over 2 seeds\.$",
                     ended.out, re.MULTILINE)  # fmt: skip
    told = [line for line in ended.err.splitlines() if line.startswith("point ")]
    assert [line.split("  ")[0] for line in told] == [f"point {n}/8" for n in range(1, 9)]
    assert "\x1b" not in ended.out + ended.err


def test_the_same_command_again_prints_the_same_and_runs_nothing(file, done):
    ended, out = done
    again = headwater("sweep", file, "--out", out)
    assert (again.code, again.err) == (0, "8 of 8 points are done already\n")
    assert again.out == ended.out
    quiet = headwater("sweep", file, "--out", out, "--quiet")
    assert (quiet.out, quiet.err) == (f"{out}\n", "")


def test_json_is_what_the_file_says(file, done):
    _, out = done
    printed = headwater("sweep", file, "--out", out, "--json").out.splitlines()
    assert json.loads(printed[0]) == json.loads((out / "sweep.json").read_text())
    assert len(printed) == 2


def test_a_dry_run_lists_points_and_writes_nothing(file, done, tmp_path):
    _, out = done
    listed = headwater("sweep", file, "--out", out, "--dry-run").out.splitlines()
    assert sum(" done " in line for line in listed) == 8
    fresh = headwater("sweep", file, "--out", tmp_path / "new", "--dry-run")
    assert fresh.out.count(" to run ") == 8
    assert not (tmp_path / "new").exists()


def test_the_page_shows_it_all_in_chromium_and_loads_nothing(done, tmp_path):
    _, out = done
    with chromium(tmp_path) as page:
        page.look()
        page.open((out / "report.html").as_uri())
        page.until("document.readyState === 'complete'")
        assert page.problems() == []
        assert len(page.requested()) == 1
        text = page.text("body")
        assert "alert(1)</script>" in text
        assert "8 points: 2 of adapter × 2 of density × 2 of seed." in text
        assert page.run("document.querySelectorAll('svg circle').length") == 4
        assert page.run("document.querySelectorAll('tbody a').length") == 8
        page.run("document.querySelector('tbody a').click()")
        page.until("document.title.endsWith('Headwater report')")
        page.open((out / "sweep.svg").as_uri())
        page.until("document.documentElement.tagName === 'svg'")
        assert page.run("document.querySelectorAll('circle').length") == 4
        assert page.problems() == []


def test_points_that_fail_are_told_at_the_end_with_their_exit_code(tmp_path, monkeypatch):
    federation = bare_federation(tmp_path, federation={"rounds": 1})
    file = sweep_file(federation, {"training.scale": [0.5, 1.0]})
    monkeypatch.setattr("headwater.training.noop.NoopTrainer.train", lambda self, tasks, *, key: 1 // 0)
    ended = headwater("sweep", file, "--out", tmp_path / "out", "--quiet")
    assert ended.code in (9, 10)
    assert "expected all of its 2 points to run to their end, got 2 that failed: scale = 0.5 (" in ended.err
    assert ended.out == f"{tmp_path / 'out'}\n"
    assert "Points that failed" in (tmp_path / "out" / "report.html").read_text()


def test_ctrl_c_ends_after_the_round_and_says_how_to_go_on(tmp_path, monkeypatch):
    federation = bare_federation(tmp_path, federation={"rounds": 1})
    file = sweep_file(federation, {"training.scale": [0.5, 1.0, 1.5]})
    real = sweeps.outcome_of
    monkeypatch.setattr(sweeps, "outcome_of", lambda *a: os.kill(os.getpid(), signal.SIGINT) or real(*a))
    ended = headwater("sweep", file, "--out", tmp_path / "out", "--set", "federation.seed=3")
    assert ended.code == 0
    (told,) = [line for line in ended.err.splitlines() if line.startswith("Stopped")]
    assert told == (
        f"Stopped, 2 points are left. Go on with: headwater sweep {file} --out {tmp_path / 'out'} "
        "--set federation.seed=3"
    )
    monkeypatch.setattr(sweeps, "outcome_of", real)
    again = headwater(*told.partition("headwater ")[2].split())
    assert again.code == 0
    assert "1 of 3 points are done already" in again.err


def test_a_bar_on_a_terminal(done, file):
    from headwater.errors import TrainingError
    from headwater.server.events import ClientFailed
    from headwater.simulation.sweeps.plan import load_sweep

    sweep = load_sweep(file)
    shown = Console(file=io.StringIO(), force_terminal=True, width=120)
    with sweep_observer(shown) as observer:
        observer(SweepStarted(8, 2))
        observer(PointStarted(sweep.points[0]))
        observer(PointTold(sweep.points[0], ClientFailed(1, "ann", "no\x1b[31m memory")))
        observer(PointFailed(sweep.points[0], TrainingError("client ann", got="nothing")))
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.file.getvalue())
    assert "points 3/8" in text
    assert "round 1: ann: no" in text
    assert "failed: client ann" in text
