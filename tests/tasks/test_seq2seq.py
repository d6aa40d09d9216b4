"""Encoder-decoders: the loss is transformers' own, and a federation learns answers and writes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tomli_w
import torch

from headwater.adapters.base import load_base
from headwater.adapters.model import AdaptedModel
from headwater.config.load import load_federation
from headwater.seeds.keys import Key
from headwater.tasks.batches import IGNORED, Example, collate
from tests.support.command import headwater
from tests.support.readme_code import readme_code
from tests.support.runs import run, write_jsonl
from tests.support.tiny_models import tiny_bart, tiny_t5

TARGETS = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"]}


def federation(folder, base, **changes):
    folder.mkdir()
    {"t5": tiny_t5, "bart": tiny_bart}[base](folder / "base")
    rows = [
        {"text": f"say {m} {i % 3}", "target": "yes" if m == "a" else "no way", "who": f"c{i % 2}"}
        for i, m in enumerate(["a", "b", "b", "a"] * 6)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows[:6])
    content = {
        "federation": {"name": "t", "rounds": 3, "seed": 1},
        "model": {"kind": "seq2seq", "path": "base"},
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16.0, "target_modules": TARGETS[base]},
        "data": {
            "kind": "seq2seq", "path": "train.jsonl", "test": "test.jsonl", "prefix": "q: ",
            "max_tokens": 32, "max_target_tokens": 16, "partition": {"kind": "column", "column": "who"},
        },
        "training": {"kind": "backprop", "learning_rate": 0.05, "batch_size": 4},
        "evaluation": {"min_client_examples": 1},
        **changes,
    }  # fmt: skip
    (folder / "federation.toml").write_text(tomli_w.dumps(content))
    return folder / "federation.toml"


@pytest.mark.parametrize("base", ["t5", "bart"])
def test_the_loss_is_that_of_transformers(tmp_path, base):
    """Whose own shift of the labels, and whose own ignored ones, are the oracle."""
    loaded = load_federation(federation(tmp_path / "fed", base))
    model = AdaptedModel.build(
        loaded, load_base(loaded.settings.model, loaded.folder, labels=None), key=Key.root(0)
    )
    rows = [(5, 9), (8, 2), (3, 4)]
    draw = np.random.default_rng(0)
    examples = [
        Example(
            draw.integers(4, 200, n).astype(np.int32),
            draw.integers(4, 200, s).astype(np.int64),
            by_token=True,
        )
        for n, s in rows
    ]
    batch = collate(examples, model.base.tokenizer.pad)
    assert batch.targets.shape == (3, 9)
    with torch.no_grad():
        output = model.forward(batch)
        found = model.network.peft(input_ids=batch.tokens, attention_mask=batch.mask, labels=batch.targets)
        alone = model.forward(collate(examples[:1], 0))
    torch.testing.assert_close(output.loss, found.loss)
    torch.testing.assert_close(output.logits, found.logits)
    torch.testing.assert_close(alone.losses[0], output.losses[0])
    assert output.counts.tolist() == [9, 2, 4]
    assert int((batch.targets == IGNORED).sum()) == 12


@pytest.mark.parametrize("base", ["t5", "bart"])
def test_a_federation_learns_answers_and_predict_writes_them(tmp_path, base, monkeypatch, capsys):
    summary, _ = run(federation(tmp_path / "fed", base), tmp_path / "run", "simulation.cohort=2")
    assert summary["metric"]["name"] == "perplexity"
    assert summary["metric"]["best"] < 0.5 * summary["metric"]["start"]
    folder, test = tmp_path / "run/adapter", tmp_path / "fed/test.jsonl"
    found = json.loads(headwater("predict", folder, "--file", test, "--metric", "--json").out)
    assert found["perplexity"] == pytest.approx(summary["metric"]["best"], rel=1e-5)
    answer = json.loads(headwater("predict", folder, "--json", "--max-new-tokens", "8", "say a 1").out)[
        "answer"
    ]
    rows = headwater("predict", folder, "--file", test, "--max-new-tokens", "8").out.splitlines()
    assert len(rows) == 6
    monkeypatch.chdir(folder)
    code = readme_code(folder).replace('"a text"', '"say a 1"')
    exec(code.replace('"base"', repr(str(tmp_path / "fed/base"))), {})
    assert capsys.readouterr().out.splitlines()[-1].strip() == answer
