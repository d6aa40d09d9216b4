"""``headwater client profile`` on a tiny model: predicted, measured in a process of its own, picked."""

from __future__ import annotations

import json
import subprocess
import sys

import tomli_w

from headwater.config.load import LoadedFederation
from tests.support.command import headwater
from tests.support.federations import adapter, federation


def written(folder, **changes) -> LoadedFederation:
    methods = {
        "part": {"training": {"kind": "backprop", "batch_size": 4}, "last_layers": 1, "rank": 1},
        "seeds": {"training": {"kind": "kseed", "batch_size": 2, "seeds": 64, "max_steps": 8}},
    }
    loaded = federation(
        folder,
        "encoder",
        "bert",
        adapter("lora", "bert"),
        training={"kind": "backprop", "batch_size": 4},
        methods=methods,
        assignment={"kind": "planner"},
        **changes,
    )
    (folder / "f.toml").write_text(
        tomli_w.dumps(loaded.settings.model_dump(mode="json", exclude_none=True)), encoding="utf-8"
    )
    return loaded


def test_the_measured_peak_is_what_was_predicted(tmp_path):
    written(tmp_path)
    # in a process of its own: this one holds what all tests before have left
    command = [sys.executable, "-m", "headwater", "client", "profile", str(tmp_path / "f.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["method"]: row for row in found["methods"]}
    assert list(rows) == ["default", "part", "seeds"]
    for row in rows.values():
        assert row["note"] == ""
        assert row["measured_bytes"] > 2**26
        assert abs(row["predicted_bytes"] / row["measured_bytes"] - 1) < 0.15, row
        assert row["step_s"] > 0
    assert (rows["seeds"]["kind"], rows["seeds"]["passes"], rows["default"]["passes"]) == (
        "kseed",
        "2",
        "1 + backward",
    )
    assert 8 < rows["seeds"]["bytes_up"] < 100
    assert rows["default"]["bytes_up"] > 8
    assert found["picked"] == "default"


def test_too_little_memory_is_said_in_a_sentence(tmp_path):
    written(tmp_path)
    done = headwater("client", "profile", tmp_path / "f.toml", "--no-measure", "--memory-mb", "64")
    assert done.code == 0, done.error
    assert "expected a method that fits 64 MiB" in done.out
    assert "The least memory that a method needs" in done.out


def test_a_file_is_wanted(tmp_path):
    done = headwater("client", "profile")
    assert done.code == 2
    assert "CONFIG, the agent's or a federation's file" in done.error
