"""``headwater client profile`` on a tiny model: predicted, measured in a process of its own, picked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tomli_w

from headwater.client.device import costs as device
from headwater.config.load import LoadedFederation
from tests.support.command import headwater
from tests.support.federations import adapter, federation

BACKPROP = {"kind": "backprop", "batch_size": 4}
SEEDS = {"kind": "kseed", "batch_size": 2, "seeds": 64, "max_steps": 8}


def written(folder, **changes) -> LoadedFederation:
    methods = {
        "part": {"training": BACKPROP, "last_layers": 1, "rank": 1},
        "seeds": {"training": SEEDS},
    }
    loaded = federation(
        folder,
        "encoder",
        "bert",
        adapter("lora", "bert"),
        **{
            "training": BACKPROP,
            "methods": methods,
            "assignment": {"kind": "planner"},
            **changes,
        },
    )
    (folder / "f.toml").write_text(
        tomli_w.dumps(loaded.settings.model_dump(mode="json", exclude_none=True)), encoding="utf-8"
    )
    return loaded


@pytest.mark.slow
def test_the_measured_peaks_are_what_was_predicted(tmp_path):
    """In a process of its own: this one holds what all tests before have left. Each method has one, too."""
    written(tmp_path, methods={"seeds": {"training": SEEDS}})
    command = [sys.executable, "-m", "headwater", "client", "profile", str(tmp_path / "f.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    kinds = [(row["method"], row["kind"]) for row in found["methods"]]
    assert kinds == [("default", "backprop"), ("seeds", "kseed")]
    for row in found["methods"]:
        assert row["note"] == ""
        assert row["measured_bytes"] > 2**26
        assert abs(row["predicted_bytes"] / row["measured_bytes"] - 1) < 0.15, row
        assert row["step_s"] > 0
    assert found["picked"] == "default"


def test_every_method_is_shown_with_its_passes_and_bytes(tmp_path):
    found = agents_view(tmp_path)
    rows = {row["method"]: row for row in found["methods"]}
    assert list(rows) == ["default", "part", "seeds"]
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


def agents_view(tmp_path, policy="", top="", **changes):
    """The picked method and the reason, as JSON, by the agent's own file."""
    written(tmp_path, **changes)
    (tmp_path / "agent.toml").write_text(
        f'name = "ann"\nserver = "127.0.0.1:1"\n{top}\n[data]\npath = "x"\n[policy]\n{policy}\n'
    )
    done = headwater(
        "client", "profile", tmp_path / "agent.toml", "--federation", tmp_path / "f.toml",
        "--no-measure", "--json",
    )  # fmt: skip
    assert done.code == 0, done.error
    return json.loads(done.out)


def test_the_owners_policy_counts(tmp_path):
    found = agents_view(tmp_path, policy='training = ["kseed"]')
    assert found["picked"] == "seeds"
    notes = {row["method"]: row["note"] for row in found["methods"]}
    assert notes["default"] == notes["part"] == "the owner's policy does not allow it"
    assert notes["seeds"] == ""


def test_a_method_without_its_library_is_not_picked(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    training = {"kind": "backprop", "batch_size": 4, "optimizer": "adamw8bit"}
    methods = {"plain": {"training": {"kind": "backprop", "batch_size": 4}}}
    assert agents_view(tmp_path, training=training, methods=methods)["picked"] == "plain"
    # whoever plays a device plays that it has it
    played = agents_view(tmp_path, training=training, methods=methods, top="simulated_memory_mb = 9000")
    assert played["picked"] == "default"


def test_memory_is_what_the_agent_would_say(tmp_path):
    cap = agents_view(tmp_path, policy="memory_mb = 900000000")
    assert cap["memory_bytes"] < 900000000 << 20  # no more than the machine has
    played = agents_view(tmp_path, top="simulated_memory_mb = 450")
    assert played["memory_bytes"] == 450 << 20
    real, simulated = ({r["method"]: r["predicted_bytes"] for r in f["methods"]} for f in (cap, played))
    assert simulated["default"] != real["default"]


def test_a_byte_budget_bounds_what_is_shown(tmp_path):
    def up(**more):
        methods = {"m": {"training": {"kind": "backprop", "batch_size": 4}, **more}}
        codec = {"up": {"kind": "compeft", "density": 1.0}}
        return agents_view(tmp_path, methods=methods, codec=codec)["methods"][1]["bytes_up"]

    assert up(max_bytes_up=606) <= 606 - 512 < up()


def test_without_measuring_nothing_is_said_of_time(tmp_path):
    found = agents_view(tmp_path, assignment={"kind": "planner", "round_s": 1e-6})
    assert found["picked"] == "default"
    assert "nothing was measured" in found["reason"]


def test_numbers_are_positive(tmp_path):
    written(tmp_path)
    for option in ("--memory-mb", "--examples"):
        for text in ("0", "-5", "x"):
            done = headwater("client", "profile", tmp_path / "f.toml", f"{option}={text}")
            assert done.code == 2
            assert f"invalid positive_number value: '{text}'" in done.err


def test_a_file_is_wanted(tmp_path):
    done = headwater("client", "profile")
    assert done.code == 2
    assert "CONFIG, the agent's or a federation's file" in done.error
