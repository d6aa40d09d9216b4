"""What a run measures and says besides training: baselines, losses that are not finite, notices."""

from __future__ import annotations

import json

from headwater.config import load_federation
from headwater.errors import TrainingError
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


def test_a_test_loss_that_is_not_finite_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    original, calls = TrainingContext.evaluate, []

    def diverged_in_round_2(self, state, examples):
        calls.append(1)
        if len(calls) == 3:  # rounds 0, 1, 2
            raise TrainingError("evaluation", expected="a finite loss", got="nan")
        return original(self, state, examples)

    monkeypatch.setattr(TrainingContext, "evaluate", diverged_in_round_2)
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
