"""A script's simulation: the same bits over workers and after a resume; refused where no script runs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest
import tomli_w
import torch

import headwater
from headwater.config import load_federation
from headwater.errors import ConfigError
from headwater.server.events import RoundEnded
from tests.hf.scripts import model, script_federation, trainer
from tests.support.command import headwater as command


@functools.cache
def shared(folder):
    return model(folder)


def make_trainer(folder, client, rows):
    """What stands at the top of an owner's script."""
    return trainer(folder, rows, shared(folder))


@headwater.local_training
def descend(model, rows, plan):
    """A function with draws of its own."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for row in [rows[i] for i in torch.randperm(len(rows))[:3]]:
        tokens = torch.tensor([[5 + byte % 100 for byte in row["text"].encode()]])
        loss = model(input_ids=tokens, labels=torch.tensor([int(row["label"] == "good")])).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {"loss": loss}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("workers")
    script_federation(found, federation={"rounds": 2})
    return found


def stopping(after):
    """An observer that interrupts a run when a round is done."""

    def observe(event):
        if isinstance(event, RoundEnded) and event.round == after:
            raise KeyboardInterrupt

    return observe


def lines(run):
    kept = ("round", "state_sha256", "losses", "bytes_up")
    text = (run.folder / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k in kept} for line in text]


def test_a_function_has_the_same_bits_in_workers_and_after_a_resume(folder, tmp_path):
    file = folder / "federation.toml"
    alone = descend.simulate(file, tmp_path / "alone")
    assert alone.summary["failures_total"] == 0
    assert len({line["state_sha256"] for line in lines(alone)}) == 3
    with pytest.raises(KeyboardInterrupt):
        descend.simulate(file, tmp_path / "half", observer=stopping(1))
    half = descend.resume(tmp_path / "half", workers=2)
    assert lines(half) == lines(alone)
    assert half.summary["adapter_sha256"] == alone.summary["adapter_sha256"]


def test_trainers_have_the_same_bits_in_workers(folder, tmp_path):
    make = functools.partial(make_trainer, folder)
    alone = headwater.hf.simulate(folder / "federation.toml", make, tmp_path / "alone")
    two = headwater.hf.simulate(folder / "federation.toml", make, tmp_path / "two", workers=2)
    assert lines(two) == lines(alone)
    assert two.summary["failures_total"] == 0
    ended = headwater.hf.resume(make, tmp_path / "two")
    assert ended.summary["adapter_sha256"] == alone.summary["adapter_sha256"]


def test_a_function_that_no_other_process_finds_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"workers 2: expected a script whose function .*top of a module"):
        headwater.hf.simulate(
            folder / "federation.toml", lambda client, rows: None, tmp_path / "run", workers=2
        )


SCRIPT = """
import headwater

@headwater.local_training
def learn(model, rows, plan):
    return {{"loss": 1.0}}

{guard}learn.simulate("federation.toml", "{out}", workers=2)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(folder):
    for guard, out, code in (('if __name__ == "__main__": ', "guarded", 0), ("", "bare", 1)):
        (folder / f"{out}.py").write_text(SCRIPT.format(guard=guard, out=out))
        done = subprocess.run(
            [sys.executable, f"{out}.py"], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stderr
        assert ("below if __name__" in done.stderr) == bool(code)


def test_sweeps_other_engines_and_the_command_refuse_scripts(folder, tmp_path, monkeypatch):
    loaded = load_federation(folder / "federation.toml")
    for engine in ("inprocess", "ray", "network"):
        with pytest.raises(ConfigError, match=r"training.kind: .*got 'script'.*headwater.hf.resume"):
            headwater.simulate(loaded, tmp_path / engine, engine=engine)
    sweep = {"federation": "federation.toml", "axes": {"federation.seed": [1, 2]}}
    (folder / "sweep.toml").write_text(tomli_w.dumps(sweep))
    done = command("sweep", folder / "sweep.toml", "--out", tmp_path / "sweep")
    assert done.code != 0
    assert "headwater.hf.simulate" in done.err + done.out
    stopped = descend.simulate(folder / "federation.toml", tmp_path / "ended")
    done = command("simulate", "--resume", stopped.folder)
    assert done.code != 0
    assert "headwater.hf.resume" in done.err
