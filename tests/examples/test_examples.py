"""Every example: its file is right, and it does what it says. The real models run under -m slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.cli.main import main
from headwater.config import load_federation
from tests.support.runs import write_jsonl
from tests.support.tiny_models import tiny_bert, tiny_llama

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(p.parent.name for p in (ROOT / "examples").glob("*/federation.toml"))
CORPORA = ROOT / ".cache" / "headwater"


def file(name):
    return ROOT / "examples" / name / "federation.toml"


def simulate(name, out, *arguments):
    """The summary of a run in a fresh process."""
    command = [sys.executable, "-m", "headwater", "simulate", str(file(name)), "--out", str(out), "--quiet"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "summary.json").read_text())


def test_all_that_the_documentation_names_are_there():
    assert EXAMPLES == [
        "devices",
        "glosses",
        "instructions",
        "low-memory",
        "own-data",
        "peft-kinds-non-iid",
        "presidents",
        "private",
        "prompt-tuning",
        "seeds-only",
        "sentiment",
        "trainer",
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_file_is_right(name):
    assert load_federation(file(name)).settings.federation.name == name


def test_the_language_model_of_low_memory_is_right_too():
    path = ROOT / "examples" / "low-memory" / "smollm2.toml"
    assert load_federation(path).settings.federation.name == "low-memory-smollm2"


def test_private_without_chance_is_right_too():
    path = ROOT / "examples" / "private" / "without-chance.toml"
    settings = load_federation(path).settings
    assert settings.federation.name == "private-without-chance"
    assert settings.privacy.correlated


def test_own_data_on_a_tiny_model(tmp_path, capsys):
    """The real folder of clients in two formats; only the base model is a small random one."""
    tiny_bert(tmp_path / "bert")
    out = tmp_path / "run"
    arguments = ["--out", str(out), "--quiet", "--set", f"model.path={tmp_path / 'bert'}"]
    arguments += ["--set", "adapter.layers=[0, 1]", "--set", "federation.rounds=2"]
    assert main(["simulate", str(file("own-data")), *arguments]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["baselines"]["alone"]) == {"clinic", "library", "workshop"}
    assert capsys.readouterr().out.splitlines()[-1] == str(out)


needs = pytest.mark.skipif(
    not CORPORA.is_dir(), reason="no corpora: run `make test-slow`, which fetches them"
)


@pytest.mark.slow
@needs
@pytest.mark.parametrize("name", ["sentiment", "glosses"])
def test_federated_beats_the_probe_and_every_client_alone(name, tmp_path):
    summary = simulate(name, tmp_path / "run", "--set", "baselines.alone=true", "--workers", "2")
    final, baselines = summary["metric"]["final"], summary["baselines"]
    assert final > baselines["probe"] > baselines["majority"]
    assert final > max(baselines["alone"].values())
    assert summary["bytes"]["up_dense"] > 20 * summary["bytes"]["up"]


@pytest.mark.slow
@needs
def test_prompt_tuning_learns(tmp_path):
    summary = simulate("prompt-tuning", tmp_path / "run", "--workers", "2")
    assert summary["metric"]["final"] > summary["metric"]["start"] + 0.15
    assert summary["metric"]["final"] > summary["baselines"]["majority"] + 0.1


@pytest.mark.slow
@needs
def test_seeds_only_learns_from_a_few_kilobytes(tmp_path):
    summary = simulate("seeds-only", tmp_path / "run", "--workers", "2")
    assert summary["metric"]["final"] > summary["baselines"]["majority"] + 0.2
    for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines():
        for client in json.loads(line)["clients"].values():
            assert client["bytes_up"] + client["bytes_down"] < 17_984


@pytest.mark.slow
@needs
def test_low_memory_learns_from_three_methods(tmp_path):
    summary = simulate("low-memory", tmp_path / "run", "--workers", "2")
    assert summary["metric"]["final"] > summary["baselines"]["majority"] + 0.2
    last = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1]
    methods = sorted(c["method"] for c in json.loads(last)["clients"].values())
    assert methods == ["default", "default", "phone", "sensor"]


@pytest.mark.slow
@needs
def test_own_data_learns(tmp_path):
    summary = simulate("own-data", tmp_path / "run")
    assert summary["metric"]["final"] > max(summary["baselines"]["alone"].values()) - 0.05
    assert summary["metric"]["final"] > summary["baselines"]["majority"] + 0.3


@pytest.mark.slow
@needs
def test_presidents_lower_the_perplexity_of_held_out_speeches(tmp_path):
    summary = simulate("presidents", tmp_path / "run", "--workers", "2")
    assert summary["metric"]["name"] == "perplexity"
    assert summary["metric"]["final"] < 0.95 * summary["metric"]["start"]
    assert summary["clients"] == 45


def test_instructions_on_a_tiny_model(tmp_path):
    """The file as it is, with rows like the corpus's and a small random model, gives a table by kind."""
    kinds = ("category", "definition", "opposite", "question", "sentiment", "usage")
    rows = [{"prompt": f"{k} {i}?", "answer": f"{k[0]}{i}", "kind": k} for i in range(4) for k in kinds]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    tiny_llama(tmp_path / "llama")
    changes = [
        f"model.path={tmp_path / 'llama'}", "adapter.layers=[0, 1]", "federation.rounds=1",
        f"data.path={tmp_path / 'rows.jsonl'}", f"data.test={tmp_path / 'rows.jsonl'}", "data.max_tokens=128",
    ]  # fmt: skip
    arguments = [word for change in changes for word in ("--set", change)]
    out = tmp_path / "run"
    assert main(["simulate", str(file("instructions")), "--out", str(out), "--quiet", *arguments]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clients"] == 6
    assert set(summary["groups"]) == set(kinds)
    assert set(summary["baselines"]["alone_groups"]) == set(kinds)
    assert set(summary["baselines"]["centralised_groups"]) == set(kinds)


@pytest.mark.slow
@needs
def test_instructions_lower_the_perplexity_of_every_kind(tmp_path):
    summary = simulate("instructions", tmp_path / "run")
    groups, baselines = summary["groups"], summary["baselines"]
    assert summary["metric"]["final"] < summary["metric"]["start"] / 3
    assert all(row["final"] < row["start"] for row in groups.values())
    assert summary["metric"]["final"] < min(baselines["alone"].values())
    assert summary["metric"]["final"] < 1.01 * baselines["centralised"]


@pytest.mark.slow
@needs
def test_no_speech_is_in_both_files():
    folder = CORPORA / "presidents"
    train = {json.loads(x)["text"] for p in (folder / "train").iterdir() for x in p.read_text().splitlines()}
    test = {json.loads(x)["text"] for x in (folder / "test.jsonl").read_text().splitlines()}
    assert test
    assert train
    assert not train & test
