"""The mlflow kind: the laws, and what MLflow's own client reads back."""

from __future__ import annotations

from typing import ClassVar

import pytest

from headwater.server.trackers import tracking
from headwater.simulation.run import Run
from tests.laws.tracker_laws import TrackerLaws
from tests.support.mlflow import Found
from tests.support.runs import run, tiny_federation

pytest.importorskip("mlflow", reason="the extra headwater[mlflow]")
pytestmark = pytest.mark.slow  # a new store takes MLflow seconds


class TestMLflow(TrackerLaws):
    settings: ClassVar[dict[str, str]] = {"kind": "mlflow"}

    def read(self, folder):
        return [step for step, _ in Found(folder).history("round/number")]


def test_its_client_reads_what_rounds_jsonl_says(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "DRAIN_S", 300.0)
    run(tiny_federation(tmp_path / "fed"), tmp_path / "out", "trackers=[{ kind = 'mlflow' }]")
    found, rounds = Found(tmp_path / "out/trackers/mlflow"), Run.open(tmp_path / "out").rounds
    assert found.run.info.status == "FINISHED"
    assert found.run.data.params["federation.name"] == "tiny"
    assert found.run.data.tags["headwater.metric"] == "accuracy"
    assert found.history("round/bytes_up") == [(r["round"], r["bytes"]["up"]) for r in rounds]
    assert found.history("test/accuracy") == [
        (r["round"], pytest.approx(r["test"]["accuracy"])) for r in rounds
    ]
    assert not any(name.startswith("each/") for name in found.run.data.metrics)  # three clients are too few
    adapter = tmp_path / "out/adapter/adapter_model.safetensors"
    assert found.artefact("adapter/adapter_model.safetensors") == adapter.read_bytes()
