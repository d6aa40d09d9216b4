"""``headwater simulate`` as a user meets it: what it prints, where it writes, how it stops and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from headwater.cli import simulate as verb
from headwater.server.events import RoundEnded
from tests.support.command import headwater
from tests.support.runs import run, tiny_federation


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("fed"))


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    """The folder of a run of one round."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert headwater("simulate", file, "--out", folder, "--quiet", "--set", "federation.rounds=1").code == 0
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def rounds(folder):
    return [json.loads(line)["state_sha256"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_run_prints_a_line_per_round_a_table_and_last_its_folder(file, tmp_path):
    done = headwater("simulate", file, "--out", tmp_path / "run")
    assert done.code == 0
    assert done.out.splitlines()[-1] == str(tmp_path / "run")
    assert "federated, best round" in done.out
    assert f"{summary(tmp_path / 'run')['metric']['best']:.4f}" in done.out
    lines = done.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["round 0", "round 1/3", "round 2/3", "round 3/3"]
    assert "\x1b" not in done.out + done.err  # not a terminal


def test_quiet_prints_the_folder_alone(file, tmp_path):
    done = headwater("simulate", file, "--out", tmp_path / "run", "--quiet")
    assert (done.code, done.out, done.err) == (0, f"{tmp_path / 'run'}\n", "")


def test_seed_and_set_replace_the_files(file, tmp_path):
    changes = ["--seed", 9, "--set", "federation.rounds=1", "--set", "codec.up.density=0.5"]
    done = headwater("simulate", file, "--out", tmp_path / "run", "--quiet", *changes)
    assert done.code == 0
    assert summary(tmp_path / "run")["seed"] == 9
    assert summary(tmp_path / "run")["rounds"] == 1
    resolved = (tmp_path / "run" / "federation.toml").read_text()
    assert "seed = 9" in resolved
    assert "density = 0.5" in resolved


def test_workers_give_the_same_adapter(file, tmp_path):
    alone = headwater("simulate", file, "--out", tmp_path / "a", "--quiet")
    spread = headwater("simulate", file, "--out", tmp_path / "b", "--quiet", "--workers", 2)
    assert alone.code == spread.code == 0
    assert rounds(tmp_path / "a") == rounds(tmp_path / "b")
    assert summary(tmp_path / "a")["adapter_sha256"] == summary(tmp_path / "b")["adapter_sha256"]


def test_an_occupied_folder_is_left_as_it_is(file, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    done = headwater("simulate", file, "--out", tmp_path / "run", "--seed", 1)
    assert done.code == 2
    assert f"--resume {tmp_path / 'run'}" in done.error
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["federation.toml", "notes.txt", "state/origin.jsonl", "rounds.jsonl"])
def test_somebodys_own_files_are_not_taken_for_a_run(file, tmp_path, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert headwater("simulate", file, "--out", tmp_path / "mine").code == 2
    assert mine.read_text() == "mine"
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [mine]


def test_out_that_is_a_file_is_refused(file, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = headwater("simulate", file, "--out", tmp_path / "file")
    assert done.code == 2
    assert "got a file" in done.error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["FILE", "--resume", "DIR"],
        ["--resume", "DIR", "--set", "federation.seed=9"],
        ["--resume", "DIR", "--engine", "network", "--set", "federation.rounds=9"],
        ["--resume", "DIR", "--seed", "0"],
        ["--resume", "DIR", "--out", "x"],
        ["--resume", "NOWHERE"],
        ["FILE", "--workers", "0"],
        ["FILE", "--set", "federation.rounds"],
        ["FILE", "--seed", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused_and_nothing_is_made(file, finished, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    names = {"FILE": file, "DIR": "run"}
    done = headwater("simulate", *[names.get(a, a) for a in arguments])
    assert done.code == 2
    assert done.error.startswith("headwater: error HW02: ")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_a_resume_with_more_rounds_goes_on(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = json.loads((finished / "summary.json").read_text())
    done = headwater(
        "simulate", "--resume", tmp_path / "run", "--set", f"federation.rounds={before['rounds'] + 1}"
    )
    assert done.code == 0, done.error
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] == before["rounds"] + 1
    assert [change["after_round"] for change in summary["changes"]] == [before["rounds"]]


def test_runs_that_begin_in_one_second_get_folders_of_their_own(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb.time, "strftime", lambda form: "20260101-120000")
    made = [headwater("simulate", file, "--quiet", "--set", "federation.rounds=1").out.strip() for _ in "123"]
    assert made == [
        "runs/tiny-20260101-120000",
        "runs/tiny-20260101-120000-2",
        "runs/tiny-20260101-120000-3",
    ]
    assert all(summary(tmp_path / folder)["rounds"] == 1 for folder in made)


def test_a_name_with_slashes_stays_inside_runs(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change = ["--set", "federation.name='../../a b'", "--set", "federation.rounds=1"]
    done = headwater("simulate", file, "--quiet", *change)
    assert done.code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert done.out.startswith("runs/a-b-")


def interrupting(monkeypatch, times, at=1):
    """Send SIGINT ``times`` times when round ``at`` has ended."""
    from headwater.cli import progress

    original = progress.make_observer

    def make(console, quiet=False):
        inner = original(console, quiet)

        class Wrapped:
            def __enter__(self):
                observe = inner.__enter__()

                def act(event):
                    observe(event)
                    if isinstance(event, RoundEnded) and event.round == at:
                        for _ in range(times):
                            os.kill(os.getpid(), signal.SIGINT)

                return act

            def __exit__(self, *exc):
                return inner.__exit__(*exc)

        return Wrapped()

    monkeypatch.setattr(progress, "make_observer", make)


def test_the_first_interrupt_ends_with_everything_written(file, tmp_path, monkeypatch):
    whole = headwater("simulate", file, "--out", tmp_path / "whole", "--quiet")
    assert whole.code == 0
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupting(patch, 1)
        done = headwater("simulate", file, "--out", tmp_path / "run")
    assert done.code == 0
    assert signal.getsignal(signal.SIGINT) is handler
    assert f"headwater simulate --resume {tmp_path / 'run'}" in done.err.splitlines()[-1]
    assert done.out.splitlines()[-1] == str(tmp_path / "run")
    assert summary(tmp_path / "run")["stopped"] == "stopped"
    assert summary(tmp_path / "run")["rounds"] == 1
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()
    assert (tmp_path / "run" / "report.html").exists()
    assert headwater("simulate", "--resume", tmp_path / "run", "--quiet").code == 0
    assert rounds(tmp_path / "run") == rounds(tmp_path / "whole")
    assert summary(tmp_path / "run")["adapter_sha256"] == summary(tmp_path / "whole")["adapter_sha256"]


def test_the_second_interrupt_ends_at_once(file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, 2)
        done = headwater("simulate", file, "--out", tmp_path / "run")
    assert done.code == 130
    assert "Traceback" not in done.err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert headwater("simulate", "--resume", tmp_path / "run", "--quiet").code == 0
    whole, _ = run(file, tmp_path / "whole")
    assert summary(tmp_path / "run")["adapter_sha256"] == whole["adapter_sha256"]


def test_a_folder_at_work_is_left_alone(finished, tmp_path):
    from headwater.server.storage.run_folder import RunFolder

    shutil.copytree(finished, tmp_path / "run")
    with RunFolder(tmp_path / "run").locked():
        done = headwater("simulate", "--resume", tmp_path / "run")
    assert done.code == 2
    assert "a process works on" in done.error
