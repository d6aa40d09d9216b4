"""A simulation that goes on from another run's adapter."""

import json
import shutil
import tomllib

import pytest
import tomli_w

from headwater.config import load_federation
from headwater.errors import ConfigError
from headwater.server.storage.run_folder import RunFolder
from tests.support.runs import resume, run, tiny_federation

FILES = ("adapter_model.safetensors", "adapter_config.json", "head.safetensors")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A federation, and the run folder of its three rounds."""
    folder = tmp_path_factory.mktemp("start")
    file = tiny_federation(folder / "f", evaluation={"metric": "loss"})
    summary, _ = run(file, folder / "first")
    assert summary["adapter_round"] > 0  # so that its start is none of zeros
    return file, folder / "first", summary


def starting(first, name, **tables):
    """The federation again, from another seed and from what the first run came to."""
    file, before, _ = first
    content = tomllib.loads(file.read_text())
    content["adapter"] = {"start": str(before)}
    content["federation"]["seed"] = 77
    for table, change in tables.items():
        content[table] = change
    path = file.parent / f"{name}.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def states(folder):
    return [json.loads(line)["state_sha256"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_training_that_changes_nothing_returns_it_bit_for_bit(first, tmp_path):
    _, before, summary = first
    still = {"kind": "backprop", "optimizer": "sgd", "learning_rate": 1e-30}
    same, _ = run(starting(first, "still", training=still), tmp_path / "same")
    assert same["metric"]["start"] == same["metric"]["final"] == summary["metric"]["best"]
    assert len(set(states(tmp_path / "same"))) == 1
    for name in FILES:
        assert (tmp_path / "same/adapter" / name).read_bytes() == (before / "adapter" / name).read_bytes()


def test_training_goes_on_and_its_lineage_is_told(first, tmp_path):
    _, before, summary = first
    file = starting(first, "on")
    on, _ = run(file, tmp_path / "on")
    assert on["metric"]["start"] == summary["metric"]["best"]
    assert states(tmp_path / "on")[0] == summary["adapter_sha256"] != states(tmp_path / "on")[-1]
    told = {
        "path": str(before),
        "from": "run",
        "adapter_sha256": summary["adapter_sha256"],
        "start_sha256": summary["adapter_sha256"],
        "federation": "tiny",
        "federation_sha256": summary["federation_sha256"],
        "seed": 5,
        "round": summary["adapter_round"],
    }
    assert told.items() <= on["start"].items()
    origin = json.loads((tmp_path / "on/state/origin.json").read_text())
    assert origin["inputs"]["start"] == summary["adapter_sha256"]
    assert summary["federation_sha256"] in (tmp_path / "on/adapter/README.md").read_text()
    report = (tmp_path / "on/report.html").read_text()
    assert "started from" in report
    assert summary["federation_sha256"] in report
    # a third generation remembers the first
    third, _ = run(starting((file, tmp_path / "on", on), "third"), tmp_path / "third")
    assert told.items() <= third["start"]["before"].items()
    assert third["start"]["adapter_sha256"] == on["adapter_sha256"]


def test_a_run_goes_on_without_the_folder_that_it_started_from(first, tmp_path):
    file, before, _ = first
    shutil.copytree(before / "adapter", tmp_path / "mine")
    source = starting((file, tmp_path / "mine", None), "moved")
    whole, _ = run(source, tmp_path / "whole")
    loaded = load_federation(source)
    folder = RunFolder.create(tmp_path / "part", loaded, {"engine": "inprocess"})
    from headwater.simulation.simulate import simulate

    events = []
    simulate(loaded, folder, observer=events.append, should_stop=lambda: len(events) > 12)
    assert 0 < (folder.checkpoint_round() or 0) < 3
    shutil.rmtree(tmp_path / "mine")
    rest, _ = resume(tmp_path / "part")
    assert rest["adapter_sha256"] == whole["adapter_sha256"]
    assert rest["start"] == whole["start"]
    with pytest.raises(ConfigError, match=r"adapter.kind: expected this key"):
        load_federation(source)
