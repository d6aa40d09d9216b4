"""The wandb kind: the laws, and what its offline files hold."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from headwater.server.trackers import tracking
from headwater.simulation.run import Run
from tests.laws.tracker_laws import TrackerLaws
from tests.support.runs import run, tiny_federation
from tests.support.wandb import history, records

pytest.importorskip("wandb", reason="the extra headwater[wandb]")
pytestmark = pytest.mark.slow  # each start begins a process


class TestWandB(TrackerLaws):
    settings: ClassVar[dict[str, str]] = {"kind": "wandb"}

    def read(self, folder):
        return [row["round/number"] for row in history(folder)]


def test_its_file_has_what_rounds_jsonl_says(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "DRAIN_S", 300.0)
    run(tiny_federation(tmp_path / "fed"), tmp_path / "out", "trackers=[{ kind = 'wandb' }]")
    folder, rounds = tmp_path / "out/trackers/wandb", Run.open(tmp_path / "out").rounds
    rows = history(folder)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]
    assert [row["round/bytes_up"] for row in rows] == [r["bytes"]["up"] for r in rounds]
    assert [row["test/accuracy"] for row in rows] == pytest.approx([r["test"]["accuracy"] for r in rounds])
    (begun,) = [record.run for record in records(folder) if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["federation"]["name"] == "tiny"
    (kept,) = folder.glob("*/wandb/offline-run-*/files/adapter/adapter_model.safetensors")
    assert kept.read_bytes() == (tmp_path / "out/adapter/adapter_model.safetensors").read_bytes()
