"""``adapter.start`` in sweeps, beside several methods, and on other engines: the bits of a run by itself."""

from __future__ import annotations

import json
import tomllib

import pytest
import tomli_w

from tests.support.command import headwater
from tests.support.runs import run, tiny_federation

MIXED = {
    "methods": {"low": {"training": {"kind": "mezo", "max_steps": 2}}},
    "assignment": {"kind": "shares", "shares": {"default": 0.5, "low": 0.5}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A federation's folder with two runs in it, ``first`` and ``second``."""
    found = tmp_path_factory.mktemp("elsewhere")
    file = tiny_federation(found, federation={"rounds": 1})
    run(file, found / "first")
    run(file, found / "second", "federation.seed=9")
    return found


def starting(folder, name, start="first", **tables):
    content = {**tomllib.loads((folder / "federation.toml").read_text()), **tables}
    content["adapter"] = {"start": start}
    content["federation"]["seed"] = 77
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_sweep_over_starts_has_the_bits_of_single_runs(folder, tmp_path):
    sweep = {"federation": "swept.toml", "axes": {"adapter.start": ["first", "second"]}}
    starting(folder, "swept")
    (folder / "sweep.toml").write_text(tomli_w.dumps(sweep))
    for _ in range(2):  # the second time nothing is left to do
        done = headwater("sweep", folder / "sweep.toml", "--out", tmp_path / "sweep")
        assert done.code == 0, done.err
    found = {
        s["start"]["seed"]: s["adapter_sha256"]
        for s in map(summary_of, (tmp_path / "sweep" / "points").iterdir())
    }
    alone, _ = run(starting(folder, "alone", "second"), tmp_path / "alone")
    assert found.keys() == {5, 9}
    assert found[9] == alone["adapter_sha256"] != found[5]


def test_several_methods_go_on_from_one_start(folder, tmp_path):
    one, _ = run(starting(folder, "mixed", **MIXED), tmp_path / "one")
    two, _ = run(starting(folder, "mixed", **MIXED), tmp_path / "two", workers=2)
    assert one["adapter_sha256"] == two["adapter_sha256"]
    assert one["start"]["start_sha256"] == summary_of(folder / "first")["adapter_sha256"]
    line = json.loads((tmp_path / "one/rounds.jsonl").read_text().splitlines()[0])
    assert line["state_sha256"] == one["start"]["start_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "network"])
def test_other_engines_go_on_with_the_same_bits(folder, tmp_path, engine):
    file = starting(folder, engine)
    here, _ = run(file, tmp_path / "here")
    done = headwater("simulate", file, "--engine", engine, "--quiet", "--out", tmp_path / engine)
    assert done.code == 0, done.err
    there = summary_of(tmp_path / engine)
    assert there["adapter_sha256"] == here["adapter_sha256"]
    assert there["start"]["start_sha256"] == here["start"]["start_sha256"]
