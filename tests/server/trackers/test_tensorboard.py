"""The tensorboard kind: the laws, and what TensorBoard itself reads."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest

from headwater.simulation.run import Run
from tests.laws.tracker_laws import TrackerLaws
from tests.support.runs import run, tiny_federation
from tests.support.tensorboard import shown, steps

pytest.importorskip("tensorboard", reason="the extra headwater[tensorboard]")


class TestTensorBoard(TrackerLaws):
    settings: ClassVar[dict[str, str]] = {"kind": "tensorboard"}

    def read(self, folder):
        return steps(folder)

    def test_rounds_that_come_again_are_shown_once(self, tmp_path, monkeypatch):
        self.told(tmp_path, 2, stop="killed")
        (tmp_path / "state" / "trackers" / "tensorboard.json").unlink()
        monkeypatch.setattr("os.getpid", lambda: 1)  # another process, by its number before the first
        self.told(tmp_path, 4, first=3)
        assert len(list((tmp_path / "tensorboard").iterdir())) == 2
        assert steps(tmp_path / "tensorboard") == [0, 1, 2, 3, 4]


def test_it_shows_what_rounds_jsonl_says(tmp_path):
    run(tiny_federation(tmp_path / "fed"), tmp_path / "out", "trackers=[{ kind = 'tensorboard' }]")
    found, rounds = shown(tmp_path / "out/tensorboard"), Run.open(tmp_path / "out").rounds
    assert set(found) == {
        "test/accuracy", "test/loss", "test/macro_f1", "clients/accuracy", "clients/loss", "clients/macro_f1",
        "merge/delta_norm", "merge/resolution", "gap/relative", "gap/absolute", "gap/saturated",
        "round/bytes_up", "round/bytes_down", "round/seconds", "round/updates", "round/failures",
    }  # fmt: skip
    for tag, value in {
        "test/accuracy": lambda r: r["test"]["accuracy"],
        "clients/loss": lambda r: r["clients_pooled"]["loss"],
        "round/bytes_up": lambda r: r["bytes"]["up"],
    }.items():
        assert [step for step, _ in found[tag]] == [0, 1, 2, 3]
        assert [v for _, v in found[tag]] == pytest.approx([value(r) for r in rounds])
    assert found["round/updates"] == [(1, 3.0), (2, 3.0), (3, 3.0)]
    assert {value for _, value in found["round/failures"]} == {0.0}


def test_no_client_is_named(tmp_path):
    run(tiny_federation(tmp_path / "fed"), tmp_path / "out", "trackers=[{ kind = 'tensorboard' }]")
    (file,) = (tmp_path / "out/tensorboard").iterdir()
    assert b"cleo" not in file.read_bytes()


def test_a_file_without_trackers_loads_no_tensorboard():
    code = "import sys, headwater.server.trackers.tracking as t; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
