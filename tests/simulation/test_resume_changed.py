"""A run that goes on under other settings: more rounds are a longer run's; the rest is told or refused."""

import hashlib
import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config import Federation, load_federation
from headwater.errors import ConfigError
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.resume import MAY_CHANGE, MAY_NOT_CHANGE, change_run
from headwater.simulation.simulate import simulate
from tests.support.runs import bare_federation, run, tiny_federation


def go_on(out, *overrides):
    """What ``headwater simulate --resume --set`` does: the summary, and what was told."""
    folder, loaded, _ = RunFolder.open(out)
    changed, told = change_run(folder, loaded, overrides)
    return simulate(changed, folder), told


def states(folder):
    return [json.loads(line)["state_sha256"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, 5), min_size=2, max_size=3).map(sorted))
def test_more_rounds_are_those_of_a_longer_run(tmp_path_factory, stops):
    tmp_path = tmp_path_factory.mktemp("resume")
    codec = {"up": {"kind": "compeft", "density": 0.2, "error_feedback": True}}
    file = bare_federation(tmp_path / "f", size=300, codec=codec)
    run(file, tmp_path / "on", f"federation.rounds={stops[0]}")
    for rounds in stops[1:]:
        summary, told = go_on(tmp_path / "on", f"federation.rounds={rounds}")
        assert told == ()
    whole, _ = run(file, tmp_path / "whole", f"federation.rounds={stops[-1]}")
    assert states(tmp_path / "on") == states(tmp_path / "whole")
    assert summary["adapter_sha256"] == whole["adapter_sha256"]
    assert summary["federation_sha256"] == whole["federation_sha256"]
    changes = [(c["after_round"], c["to"]["federation.rounds"]) for c in summary.get("changes", [])]
    assert changes == [(a, b) for a, b in pairwise(stops) if a != b]


def test_a_trained_adapter_goes_on_as_if_it_had_never_stopped(tmp_path):
    file = tiny_federation(tmp_path / "f", owners={"ann": 12, "ben": 8})
    run(file, tmp_path / "on", "federation.rounds=1")
    summary, _ = go_on(tmp_path / "on", "federation.rounds=2")
    whole, _ = run(file, tmp_path / "whole", "federation.rounds=2")
    assert states(tmp_path / "on") == states(tmp_path / "whole")
    assert summary["adapter_sha256"] == whole["adapter_sha256"]
    assert "| changes |" in (tmp_path / "on/adapter/README.md").read_text()
    assert "after round 1: federation.rounds = 2" in (tmp_path / "on/report.html").read_text()
    # the last adapter, which nobody is sent, has all that was kept back on the way down
    codec = {"up": {"kind": "dense"}, "down": {"kind": "compeft", "density": 0.1}}
    sparse = tiny_federation(tmp_path / "s", owners={"ann": 12, "ben": 8}, codec=codec)
    run(sparse, tmp_path / "sparse", "federation.rounds=2", "evaluation.clients=false")
    _, told = go_on(tmp_path / "sparse", "federation.rounds=3")
    assert told == ("round 2 took in what codec.down had kept back, as the last of 2",)
    # and its settings stay, whoever opens it
    _, loaded, _ = RunFolder.open(tmp_path / "on")
    assert loaded.settings.federation.rounds == 2
    # rates that fall over all rounds have fallen already
    tables = {"training": {"final_learning_rate_fraction": 0.1}}
    falling = tiny_federation(tmp_path / "g", owners={"ann": 12, "ben": 8}, **tables)
    run(falling, tmp_path / "falling", "federation.rounds=2")
    folder, loaded, _ = RunFolder.open(tmp_path / "falling")
    _, told = change_run(folder, loaded, ["federation.rounds=4", "training.learning_rate=0.001"])
    assert told == (
        "rounds 1 to 2 were run with the old training.learning_rate",
        "default lets rates fall over all rounds: rounds 1 to 2 had the rates of a run of 2",
    )
    changed = RunFolder.open(tmp_path / "falling")[1]
    assert folder.changes(changed.sha256())[-1]["told"] == list(told)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("federation.seed=6", r"federation.seed: expected 5, with which it began: every draw"),
        ("federation.threads=2", "the bits of every training hang on it"),
        ("model.size=8", "the adapter is a change of this base"),
        ("codec.up.density=0.5", "has not sent yet"),
        ("strategy.server_momentum=0.5", "in the middle of"),
        ("privacy.clip_l2=1.0", "what was promised"),
        ("federation.rounds=1", "expected at least 3, which are done, got 1"),
    ],
)
def test_what_may_not_change_says_why_and_changes_nothing(tmp_path, key, error):
    run(bare_federation(tmp_path / "f", size=50), tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=error):
        go_on(tmp_path / "out", key)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_every_key_of_a_file_is_in_the_table():
    for name in Federation.model_fields:
        assert name in MAY_CHANGE or name in MAY_NOT_CHANGE, name
    tables = {key.partition(".")[0] for key in MAY_CHANGE} | MAY_NOT_CHANGE.keys()
    assert {t.partition(".")[0] for t in tables} <= Federation.model_fields.keys()


def test_a_kill_between_the_two_files_leaves_the_run_itself(tmp_path, monkeypatch):
    """The origin has the id before the settings change: without them it is the run that it was."""
    run(bare_federation(tmp_path / "f", size=50), tmp_path / "out")
    folder, loaded, _ = RunFolder.open(tmp_path / "out")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("headwater.simulation.resume.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        change_run(folder, loaded, ["federation.rounds=5"])
    monkeypatch.undo()
    _, again, _ = RunFolder.open(tmp_path / "out")
    assert folder.changes(again.sha256()) == []
    assert again.run_id() == loaded.run_id() == load_federation(tmp_path / "f/federation.toml").run_id()
    summary, _ = go_on(tmp_path / "out", "federation.rounds=4")
    assert summary["rounds"] == 4
    assert [change["to"] for change in summary["changes"]] == [{"federation.rounds": 4}]


def test_a_run_whose_file_says_no_density_over_goes_on_as_the_run_that_it_was(tmp_path):
    """Resolved files said nothing of it while each tensor had its density; the run keeps its id."""
    up = {"kind": "compeft", "density": 0.2, "density_over": "tensor", "scale_bits": 24}
    codec = {"up": up, "down": {"kind": "by-module", "otherwise": up}}
    run(bare_federation(tmp_path / "f", size=300, codec=codec), tmp_path / "out")
    file = tmp_path / "out/federation.toml"
    text = file.read_text()
    sha256 = hashlib.sha256(b"as it was named then").hexdigest()
    text = text.replace(load_federation(file).sha256(), sha256).replace('density_over = "tensor"\n', "")
    file.write_text(text)
    _, loaded, _ = RunFolder.open(tmp_path / "out")
    assert loaded.settings.codec.up.density_over == "tensor"
    assert loaded.settings.codec.down.otherwise.density_over == "tensor"
    assert loaded.run_id() == hashlib.sha256(f"{sha256}:5".encode()).hexdigest()[:32]
    assert load_federation(file, ["federation.rounds=9"]).run_id() != loaded.run_id()
    # neither a file of somebody's own nor one that says it is such a one
    file.write_text(text.partition("\n")[2])
    assert RunFolder.open(tmp_path / "out")[1].settings.codec.up.density_over == "all"
