"""Hidden tokens: drawn from the row alone, in BERT's shares; a federation that learns to tell them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tomli_w

from headwater.config.load import load_data
from headwater.data.table_row import TableRow
from headwater.errors import HeadwaterError
from headwater.tasks.batches import IGNORED
from headwater.tasks.table import task_of
from tests.data.toys import Letters, table
from tests.support.command import headwater
from tests.support.federations import adapter
from tests.support.readme_code import readme_code
from tests.support.runs import run, write_jsonl
from tests.support.tiny_models import tiny_bert, tiny_masked

LONG = "".join(chr(97 + i % 26) for i in range(20_000))


def examples(text=LONG, **more):
    found = task_of(load_data({"kind": "masked-lm", "path": "x", "partition": {"kind": "files"}, **more}))
    return found.examples(TableRow(table([{"text": text}]), 0, found.settings), Letters())


def test_tokens_are_hidden_in_the_shares_of_bert():
    found = examples(max_tokens=1000)
    original = np.concatenate([[*map(ord, LONG)]])
    shown = np.concatenate([e.tokens[1:-1] for e in found])
    hidden = np.concatenate([e.targets[1:-1] for e in found]) != IGNORED
    assert len(shown) == len(original)
    assert hidden.mean() == pytest.approx(0.15, abs=0.001)
    assert (shown[~hidden] == original[~hidden]).all()
    assert np.concatenate([e.targets[1:-1] for e in found])[hidden].tolist() == original[hidden].tolist()
    assert (shown[hidden] == Letters.mask).mean() == pytest.approx(0.8, abs=0.03)
    assert (shown[hidden] == original[hidden]).mean() == pytest.approx(0.1, abs=0.03)
    assert all(e.targets[0] == e.targets[-1] == IGNORED for e in found)


def test_what_is_hidden_hangs_on_seed_text_and_copy_alone():
    def tokens(**more):
        return [e.tokens.tolist() for e in examples("a text of some length", **more)]

    assert tokens(copies=2) == tokens(copies=2)
    assert tokens(copies=2)[0] == tokens()[0]
    assert tokens(copies=2)[0] != tokens(copies=2)[1]
    assert tokens(mask_seed=1) != tokens()


def test_a_window_of_one_token_hides_it():
    (example,) = examples("a")
    assert (example.targets != IGNORED).sum() == 1


def federation(folder, **changes):
    folder.mkdir()
    tiny_masked(folder / "bert")
    rows = [{"text": f"the movie was not {m}", "who": f"c{i % 2}"} for i, m in enumerate(["good", "bad"] * 8)]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows[:2])
    content = {
        "federation": {"name": "t", "rounds": 3, "seed": 1},
        "model": {"kind": "masked-lm", "path": "bert"},
        "adapter": adapter("lora", "bert"),
        "data": {
            "kind": "masked-lm", "path": "train.jsonl", "test": "test.jsonl", "copies": 4, "hidden": 0.3,
            "partition": {"kind": "column", "column": "who"},
        },
        "training": {"kind": "backprop", "learning_rate": 0.05, "batch_size": 4},
        "codec": {"up": {"kind": "dense"}},
        "evaluation": {"min_client_examples": 1},
        **changes,
    }  # fmt: skip
    (folder / "federation.toml").write_text(tomli_w.dumps(content))
    return folder / "federation.toml"


def test_a_federation_learns_hidden_tokens_and_predict_says_the_same(tmp_path, monkeypatch, capsys):
    summary, _ = run(federation(tmp_path / "fed"), tmp_path / "run", "simulation.cohort=2")
    assert summary["metric"]["name"] == "perplexity"
    assert summary["metric"]["best"] < 0.5 * summary["metric"]["start"]
    folder, test = tmp_path / "run/adapter", tmp_path / "fed/test.jsonl"
    found = json.loads(headwater("predict", folder, "--file", test, "--metric", "--json").out)
    assert found["perplexity"] == pytest.approx(summary["metric"]["best"], rel=1e-5)
    answer = json.loads(headwater("predict", folder, "--json", "the ___ was not good").out)
    ((first, *_),) = answer["blanks"]
    assert 0 < first["score"] <= 1
    assert "'___'" in headwater("predict", folder, "the movie").err
    monkeypatch.chdir(folder)
    code = readme_code(folder).replace('"a text"', '"the [MASK] was not good"')
    exec(code.replace('"bert"', repr(str(tmp_path / "fed/bert"))), {})
    assert capsys.readouterr().out.splitlines()[-1] == first["token"]


def test_a_base_without_a_mask_or_a_head_for_it_is_refused(tmp_path):
    path = federation(tmp_path / "fed")
    tiny_bert(tmp_path / "fed/plain")
    with pytest.raises(HeadwaterError, match="all weights of its architecture"):
        run(path, tmp_path / "run", "model.path=plain")
