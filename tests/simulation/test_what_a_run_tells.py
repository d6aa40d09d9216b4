"""What a run measures and says besides training: baselines, losses that are not finite, notices."""

from __future__ import annotations

import json

import pytest

from headwater.config import load_federation
from headwater.errors import ConfigError, DataError, TrainingError
from headwater.server.events import Notice
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from headwater.training.context import TrainingContext
from tests.support.runs import OWNERS, run, tiny_federation


def records(folder):
    return [record.content for record in RunFolder(folder).read_rounds()]


def test_baselines_are_measured(tmp_path):
    wanted = {"majority": True, "probe": True, "alone": True, "centralised": True}
    file = tiny_federation(tmp_path / "fed", baselines=wanted)
    summary, _ = run(file, tmp_path / "run")
    assert summary["baselines"]["majority"] == 0.5
    assert set(summary["baselines"]["alone"]) == set(OWNERS)
    assert all(0 <= summary["baselines"][name] <= 1 for name in ("probe", "centralised"))


def grouped(folder, **tables):
    """The tiny federation with test rows of three kinds; and its test rows."""
    file = tiny_federation(folder, **tables)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    rows = [{**row, "kind": "abc"[i % 3 if i < 12 else 0]} for i, row in enumerate(rows)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file, rows


def test_metrics_are_told_of_each_group_of_test_rows(tmp_path):
    wanted = {"alone": True, "centralised": True}
    file, rows = grouped(tmp_path / "fed", evaluation={"by": "kind", "every": 3}, baselines=wanted)
    summary, _ = run(file, tmp_path / "run")
    file.write_text(file.read_text().replace('by = "kind"\n', ""))
    plain, _ = run(file, tmp_path / "plain", "baselines.alone=false")
    assert summary["adapter_sha256"] == plain["adapter_sha256"]
    assert summary["metric"] == plain["metric"]
    assert "groups" not in plain
    tested = [r for r in records(tmp_path / "run") if "test" in r]
    sizes = {kind: sum(row["kind"] == kind for row in rows) for kind in "abc"}
    for record in tested:  # accuracies and losses are means over rows: those of the groups make up the whole
        by = record["test_by"]
        assert {kind: own["examples"] for kind, own in by.items()} == sizes
        for metric in ("accuracy", "loss"):
            whole = sum(own[metric] * sizes[kind] for kind, own in by.items()) / len(rows)
            assert record["test"][metric] == pytest.approx(whole, abs=1e-12)
    last = {kind: own["accuracy"] for kind, own in tested[-1]["test_by"].items()}
    assert {kind: row["final"] for kind, row in summary["groups"].items()} == last
    assert {kind: row["start"] for kind, row in summary["groups"].items()} == {
        kind: own["accuracy"] for kind, own in tested[0]["test_by"].items()
    }
    baselines = summary["baselines"]
    for value, groups in [
        (baselines["centralised"], baselines["centralised_groups"]),
        *[(baselines["alone"][owner], baselines["alone_groups"][owner]) for owner in OWNERS],
    ]:
        mean = sum(groups[kind] * sizes[kind] for kind in "abc") / len(rows)
        assert value == pytest.approx(mean)
    assert "By group of test rows" in (tmp_path / "run" / "report.html").read_text()
    assert "By group of test rows" not in (tmp_path / "plain" / "report.html").read_text()


def test_a_column_that_tells_no_groups_apart_is_refused_before_the_run(tmp_path):
    file, _ = grouped(tmp_path / "fed", evaluation={"by": "sort"})
    with pytest.raises(DataError, match=r"expected a column 'sort', got the columns 'text', 'label'"):
        run(file, tmp_path / "run")
    many = [{"text": f"good {i}", "label": "good", "sort": i} for i in range(101)]
    (file.parent / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    with pytest.raises(DataError, match=r"'sort': expected a column of at most 100 values.*101"):
        run(file, tmp_path / "many")
    with pytest.raises(ConfigError, match=r"evaluation.by needs data.test"):
        load_federation(tiny_federation(tmp_path / "none", evaluation={"by": "owner"}, data={"test": None}))


def test_a_test_loss_that_is_not_finite_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    original, calls = TrainingContext.evaluate_groups, []

    def diverged_in_round_2(self, state, examples):
        calls.append(1)
        if len(calls) == 3:  # rounds 0, 1, 2
            raise TrainingError("evaluation", expected="a finite loss", got="nan")
        return original(self, state, examples)

    monkeypatch.setattr(TrainingContext, "evaluate_groups", diverged_in_round_2)
    summary, events = run(tiny_federation(tmp_path / "fed"), tmp_path / "run", "evaluation.clients=false")
    assert summary["rounds"] == 3
    assert ["test" in r for r in records(tmp_path / "run")] == [True, True, False, True]
    assert any(isinstance(e, Notice) and "round 2" in e.text for e in events)


def test_what_is_worth_a_look_is_in_summary_and_report_and_not_in_the_adapter(tmp_path):
    path = tiny_federation(tmp_path / "fed")
    rows = (path.parent / "train.jsonl").read_text().splitlines()
    (path.parent / "train.jsonl").write_text("\n".join([*rows, rows[0]]))
    loaded = load_federation(path, ["federation.rounds=1"])
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    said = []
    summary = simulate(loaded, folder, observer=said.append)
    (notice,) = [n for n in summary["notices"] if "exact duplicate" in n]
    assert f"(first train.jsonl:{len(rows) + 1}, of train.jsonl:1)" in notice
    assert Notice(notice) in said
    assert json.loads((folder.path / "summary.json").read_text())["notices"] == summary["notices"]
    assert "exact duplicate" in (folder.path / "report.html").read_text()
    assert not any(b"train.jsonl:" in p.read_bytes() for p in folder.adapter.iterdir())
