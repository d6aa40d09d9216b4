"""A sweep's points have the bits that they have alone, are run once, and go on wherever they were cut off."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import suppress

import pytest

import headwater
from headwater.config import load_federation
from headwater.errors import ConfigError, DataError, ModelError, StorageError
from headwater.server.rounds.federation_server import FederationServer
from headwater.simulation.sweeps.events import PointEnded, PointFailed, PointStarted, PointTold, SweepStarted
from headwater.simulation.sweeps.files import write_tables
from headwater.simulation.sweeps.folder import SweepFolder
from headwater.simulation.sweeps.plan import load_sweep
from headwater.simulation.sweeps.shared import SharedInputs
from headwater.simulation.sweeps.tables import tables_of
from headwater.simulation.sweeps.words import combinations, remarks
from headwater.text import json_safe
from headwater.training.noop import NoopTrainer
from tests.support.faults import Disk
from tests.support.runs import bare_federation, run, tiny_federation
from tests.support.sweeps import sweep_file, swept

AXES = {"training.scale": [0.5, 1.0], "federation.seed": [1, 2]}


@pytest.fixture
def bare(tmp_path):
    return bare_federation(tmp_path / "fed", size=60, federation={"rounds": 2}, data={"clients": 2})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Of a real base model, with two short rounds."""
    tables = {
        "federation": {"rounds": 1},
        "data": {"max_tokens": 32},
        "training": {"max_steps": 2},
        "evaluation": {"clients": False},
    }
    return tiny_federation(tmp_path_factory.mktemp("tiny"), **tables)


def started(events):
    return [e.point.name for e in events if isinstance(e, PointStarted)]


def bits(result):
    return {i: o.summary["adapter_sha256"] for i, o in result.outcomes.items()}


def alone(file, sweep, folder):
    """What ``simulate`` alone makes of each point, by id: the file's settings, the seed, nothing shared."""
    found = {}
    for point in sweep.points:
        (folder / "alone").mkdir(parents=True, exist_ok=True)
        resolved = folder / "alone" / f"{point.id}.toml"
        resolved.write_text(point.loaded.to_toml())
        moved = load_federation(resolved, folder=file.parent)
        assert moved.sha256() == point.loaded.sha256()
        shutil.copy(resolved, copy := file.with_name(f"{point.id}.toml"))
        found[point.id] = run(copy, folder / "alone" / point.id)[0]["adapter_sha256"]
    return found


def described(adapter):
    """What an exported adapter says of itself and its base, but for time and memory."""
    notes = json.loads((adapter / "headwater.json").read_text())
    card = {k: v for k, v in notes.pop("card").items() if k not in ("seconds", "peak_rss_bytes")}
    return notes, card, json.loads((adapter / "adapter_config.json").read_text())


LORA = {"kind": "lora", "rank": 2}
IA3 = {"kind": "ia3", "target_modules": ["query", "output.dense"], "feedforward_modules": ["output.dense"]}
PREFIX, PROMPT = {"kind": "prefix", "tokens": 2}, {"kind": "prompt", "tokens": 2}
DORA = {"name": "dora", "kind": "lora", "rank": 2, "dora": True}
LAST = {"name": "lora again", "kind": "lora", "rank": 3}


@pytest.mark.parametrize(
    ("model", "adapters", "loads"),
    [
        ("encoder", [LORA, PREFIX, DORA, PROMPT, IA3, LAST], 1),
        # PEFT cannot give a base its own head back after a prompt: one is tried and then run
        ("sequence-classification", [LORA, PROMPT, LAST], 1 + 2),
    ],
)
def test_over_one_base_each_adapter_learns_the_bits_that_it_learns_alone(
    tiny, tmp_path, monkeypatch, model, adapters, loads
):
    inputs = []
    made = SharedInputs.__init__
    monkeypatch.setattr(SharedInputs, "__init__", lambda self: (made(self), inputs.append(self))[0])
    file = sweep_file(tiny, {"adapter": adapters}, f"{model}.toml")
    result, _ = swept(file, tmp_path / "out", f"model.kind={model}")
    assert not result.failed
    assert bits(result) == alone(tiny, load_sweep(file, [f"model.kind={model}"]), tmp_path)
    assert len(set(bits(result).values())) == len(adapters)
    for i, outcome in result.outcomes.items():
        ours, theirs = (
            tmp_path / "out" / "points" / outcome.folder / "adapter",
            tmp_path / "alone" / i / "adapter",
        )
        assert described(ours) == described(theirs)
    (shared,) = inputs
    assert (shared.base_loads, shared.data_reads) == (loads, 1)


def test_rows_are_tokenised_once_for_each_division_of_them(tiny, tmp_path, monkeypatch):
    from headwater.data.federated import FederatedData

    opened = []
    real = FederatedData.open
    monkeypatch.setattr(
        FederatedData, "open", lambda *a, **k: opened.append(k.get("check", True)) or real(*a, **k)
    )
    axes = {"codec.up.density": [0.1, 0.2], "federation.seed": [1, 2]}
    result, _ = swept(sweep_file(tiny, axes, "rows.toml"), tmp_path / "out")
    assert len(result.outcomes) == 4
    assert opened.count(True) == 2  # tokenised: a seed each
    assert opened.count(False) == 2  # looked at before: a seed each


def test_points_that_are_there_are_not_run_again_and_others_are(bare, tmp_path):
    first, events = swept(sweep_file(bare, AXES), tmp_path / "out")
    assert len(started(events)) == 4
    again, events = swept(sweep_file(bare, AXES), tmp_path / "out")
    assert started(events) == []
    assert [e for e in events if isinstance(e, SweepStarted)] == [SweepStarted(4, 4)]
    assert bits(again) == bits(first)
    # one level more, another order, a default said aloud: only what is new is run
    wider = {"federation.seed": [3, 2, 1], "training.scale": [1.0, 0.5], "federation.threads": [1]}
    wide, events = swept(sweep_file(bare, wider), tmp_path / "out")
    assert started(events) == ["seed = 3, scale = 1.0, threads = 1", "seed = 3, scale = 0.5, threads = 1"]
    assert bits(wide).items() >= bits(first).items()
    fewer, events = swept(sweep_file(bare, {"training.scale": [0.5]}), tmp_path / "out")
    assert started(events) == ["scale = 0.5"]  # the file's seed, 5
    assert fewer.strangers == 6


def test_points_of_a_version_that_knew_fewer_settings_are_not_run_again(bare, tmp_path):
    """Their resolved files lack a setting, which is at its default; so their hashes and names are others."""
    first, _ = swept(sweep_file(bare, AXES), tmp_path / "out")
    for number, folder in enumerate(sorted((tmp_path / "out" / "points").iterdir())):
        resolved = (folder / "federation.toml").read_text()
        assert "threads = 1\n" in resolved
        (folder / "federation.toml").write_text(resolved.replace("threads = 1\n", ""))
        folder.rename(folder.with_name(f"older-{number:016x}"))
    again, events = swept(sweep_file(bare, AXES), tmp_path / "out")
    assert started(events) == []
    assert bits(again) == bits(first)
    assert again.strangers == 0
    # what it had not ended is begun again: its checkpoint is of a run with another name
    begun = next((tmp_path / "out" / "points").iterdir())
    summary = json.loads((begun / "summary.json").read_text())
    (begun / "summary.json").write_text(json.dumps(summary | {"stopped": "stopped"}))
    mended, events = swept(sweep_file(bare, AXES), tmp_path / "out")
    assert len(started(events)) == mended.strangers == 1
    assert bits(mended) == bits(first)


def test_a_point_is_a_run_folder(bare, tmp_path):
    from tests.support.command import headwater

    result, _ = swept(sweep_file(bare, AXES), tmp_path / "out")
    folder = tmp_path / "out" / "points" / next(iter(result.outcomes.values())).folder
    (folder / "report.html").unlink()
    assert headwater("report", folder).code == 0
    assert (folder / "report.html").exists()


def test_it_stops_after_the_open_round_and_goes_on_with_the_same_bits(bare, tmp_path):
    whole, _ = swept(sweep_file(bare, AXES), tmp_path / "whole")
    seen = []

    def ask():
        return len(seen) > 3

    from headwater.simulation.sweeps.run import run_sweep

    sweep = load_sweep(sweep_file(bare, AXES))
    stopped = run_sweep(sweep, tmp_path / "out", observer=lambda e: seen.append(e), should_stop=ask)
    assert stopped.stopped
    assert len(stopped.outcomes) < 4
    result, _ = swept(sweep_file(bare, AXES), tmp_path / "out")
    assert not result.stopped
    assert bits(result) == bits(whole)


FIRST = range(1, 13)
"""Operations of before any point begins: the folder, its lock, the sweep file."""


@pytest.mark.parametrize(("how", "every"), [("before", 11), ("torn", 5), ("after", 13), ("full", 11)])
def test_a_death_or_a_full_disk_at_any_write_costs_no_bit(tmp_path, how, every):
    """At the first operations and every so many later ones; the folder is then used as after a restart."""
    federation = bare_federation(
        tmp_path / "fed", size=20, federation={"rounds": 1}, data={"clients": 1, "examples": 1}
    )
    file = sweep_file(federation, {"federation.seed": [1, 2]})
    (tmp_path / "home").mkdir()
    with Disk(tmp_path / "home") as undisturbed:
        whole, _ = swept(file, tmp_path / "home" / "whole")
    points = (tmp_path / "home" / "whole" / "points").iterdir()
    (names,) = {tuple(sorted(p.name for p in x.iterdir())) for x in points}
    tried = []
    report = next(at for at, done in enumerate(undisturbed.operations, 1) if "report.html" in done)
    for at in sorted({*FIRST, report, *range(FIRST[-1] + every, len(undisturbed.operations), every)}):
        home = tmp_path / f"{how}-{at}"
        home.mkdir()
        with Disk(home, at=at, how=how) as disk, suppress(StorageError):
            swept(file, home / "out")
        if disk.fault:  # else there was nothing more of the kind that can go wrong so
            tried.append(disk.fault)
        result, _ = swept(file, home / "out")
        assert bits(result) == bits(whole), (at, disk.fault)
        for folder in (home / "out" / "points").iterdir():
            assert tuple(sorted(p.name for p in folder.iterdir())) == names, (at, disk.fault)
        shutil.rmtree(home)
    assert len(tried) > len(FIRST)
    assert any("sweep.toml" in fault for fault in tried)
    assert any("report.html" in fault for fault in tried)


def test_a_point_that_fails_leaves_the_others_and_only_it_is_run_again(bare, tmp_path, monkeypatch):
    real = NoopTrainer.train
    broken = [True]

    def train(self, tasks, *, key):
        if broken[0] and tasks[0].plan.training.scale == 1.0:
            raise ValueError("a library says no")
        return real(self, tasks, key=key)

    monkeypatch.setattr(NoopTrainer, "train", train)
    result, events = swept(sweep_file(bare, AXES), tmp_path / "out")
    assert {p.labels["training.scale"] for p in result.sweep.points if p.id in result.failed} == {"1.0"}
    assert len(result.failed) == len(result.outcomes) == 2
    assert sum(isinstance(e, PointFailed) for e in events) == 2
    broken[0] = False
    mended, events = swept(sweep_file(bare, AXES), tmp_path / "out")
    assert started(events) == ["scale = 1.0, seed = 1", "scale = 1.0, seed = 2"]
    assert bits(mended) == alone(bare, load_sweep(sweep_file(bare, AXES)), tmp_path)


def test_a_defect_ends_the_sweep(bare, tmp_path, monkeypatch):
    from headwater.errors import InternalError

    def broken(self, *args, **kwargs):
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(FederationServer, "run", broken)
    with pytest.raises(InternalError, match="nobody foresaw this") as raised:
        swept(sweep_file(bare, AXES), tmp_path / "out")
    assert "RuntimeError" in raised.value.traceback


def test_adapters_that_the_base_does_not_take_are_told_before_anything_runs(tiny, tmp_path):
    adapters = [LORA, {"name": "lost", "kind": "lora", "target_modules": ["nowhere"]}]
    file = sweep_file(tiny, {"federation.seed": [1, 2], "adapter": adapters}, "lost.toml")
    with pytest.raises(ModelError, match=r"2 of 4 points with adapter = lost: .*nowhere"):
        swept(file, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("rounds.jsonl"))


def test_rows_that_cannot_be_dealt_so_are_told_before_anything_runs(tiny, tmp_path):
    dealt = [
        {"name": "by owner", "kind": "column", "column": "owner"},
        {"name": "many", "kind": "iid", "clients": 1000},
        {"name": "no column", "kind": "column", "column": "nobody"},
    ]
    file = sweep_file(tiny, {"data.partition": dealt, "federation.seed": [1, 2]}, "dealt.toml")
    with pytest.raises(DataError) as raised:
        swept(file, tmp_path / "out")
    assert "2 of 6 points with data.partition = many" in str(raised.value)
    assert "2 of 6 points with data.partition = no column" in str(raised.value)
    assert not list((tmp_path / "out").rglob("rounds.jsonl"))


def test_changed_rows_under_a_point_that_is_done_are_refused(tmp_path):
    tables = {"federation": {"rounds": 1}, "training": {"max_steps": 1}, "evaluation": {"every": 0}}
    federation = tiny_federation(tmp_path / "fed", **tables)
    file = sweep_file(federation, {"federation.seed": [1]})
    swept(file, tmp_path / "out")
    rows = federation.with_name("train.jsonl")
    before = rows.read_bytes()
    rows.write_bytes(before + before.splitlines(keepends=True)[0])
    with pytest.raises(ConfigError, match="expected the data that its points were run with"):
        swept(file, tmp_path / "out")
    rows.write_bytes(before)
    swept(file, tmp_path / "out")


def test_traces_are_read_before_anything_runs_and_refused_when_they_change(bare, tmp_path):
    traces = {"simulation.devices.trace": ["a.csv", "b.csv"], "federation.seed": [1, 2]}
    file = sweep_file(bare, traces)
    file.with_name("a.csv").write_text("tokens_per_s\n7\n")
    with pytest.raises(DataError, match=r"2 of 4 points with .*trace = b.csv: .* a readable"):
        swept(file, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("rounds.jsonl"))
    (other := file.with_name("b.csv")).write_text("tokens_per_s\n3.5\n")
    result, _ = swept(file, tmp_path / "out")
    write_tables(result)
    with (tmp_path / "out" / "points.csv").open() as rows:
        assert [row["simulated_s"] for row in csv.DictReader(rows)] == ["2.0", "2.0", "4.0", "4.0"]
    shown = combinations(result, tables := tables_of(result.sweep, result.in_order))
    assert [row[shown.heads.index("simulated")] for row, _ in shown.rows] == ["2.0 s", "4.0 s"]
    assert remarks(result, tables)[-1].startswith("No point has a loss")
    other.write_text("tokens_per_s\n3\n")
    with pytest.raises(ConfigError, match="expected the devices that its points were run with"):
        swept(file, tmp_path / "out")


def test_two_sweeps_in_one_folder_and_a_folder_of_something_else_are_refused(bare, tmp_path):
    file = sweep_file(bare, AXES)
    with SweepFolder(tmp_path / "out").locked(), pytest.raises(ConfigError, match="a process works on"):
        swept(file, tmp_path / "out")
    run(bare, tmp_path / "run")
    with pytest.raises(ConfigError, match="one with other files in it"):
        swept(file, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 2


def test_points_in_two_processes_have_the_same_bits_and_tell_their_failures(bare, tmp_path):
    """One point cannot be run: where its run folder is to be, there is somebody's own."""
    file = sweep_file(bare, {"training.scale": [0.5, 1.0, 1.5]})
    here, _ = swept(file, tmp_path / "here")
    out = tmp_path / "out"
    taken = SweepFolder(out).places(here.sweep.points)[0][here.sweep.points[1].id]
    taken.mkdir(parents=True)
    (out / "sweep.toml").write_text("")
    (taken / "notes.txt").write_text("")
    there, events = swept(file, out, workers=2)
    assert list(there.failed) == [here.sweep.points[1].id]
    assert sum(isinstance(e, PointEnded) for e in events) == 2
    assert not any(isinstance(e, PointTold) for e in events)
    (taken / "notes.txt").unlink()
    mended, _ = swept(file, out, workers=2)
    assert bits(mended) == bits(here)
    with pytest.raises(ConfigError, match="file"):
        swept(file, bare)


def test_from_python_it_gives_what_it_writes(bare, tmp_path):
    found = headwater.sweep(sweep_file(bare, AXES), tmp_path / "out", ["federation.rounds=1"])
    assert json.loads(json.dumps(json_safe(found))) == json.loads((tmp_path / "out/sweep.json").read_text())
    assert [point["federation.seed"] for point in found["done"]] == ["1", "2", "1", "2"]
    assert {point["rounds"] for point in found["done"]} == {1}
    assert found["failed"] == []
