"""Rows in the formats that people have, from files to an adapter that predicts as the summary says."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import tomllib

import pytest
import tomli_w
from tokenizers import processors
from transformers import AutoTokenizer

from tests.support.command import headwater
from tests.support.readme_code import readme_code
from tests.support.runs import tiny_federation
from tests.support.tiny_models import tiny_llama

NAMES = ("anna", "ben")


def federate(folder, **data):
    """A federation on what is in ``folder``; its model, where there is chat, is a Llama."""
    chat = data["kind"] == "instruction"
    table = {"path": "clients", "test": "held-out.jsonl", "partition": {"kind": "files"}, **data}
    if chat:
        tiny_llama(folder / "model")
        model = {"kind": "causal-lm", "path": "model"}
        adapter = {"kind": "lora", "rank": 2, "target_modules": ["q_proj"]}
    else:
        model = {"kind": "sequence-classification", "path": "bert"}
        adapter = {"kind": "lora", "rank": 2}
    path = tiny_federation(folder, model=model, adapter=adapter, federation={"rounds": 1})
    content = tomllib.loads(path.read_text()) | {"data": table}
    content["training"] |= {"learning_rate": 0.05}
    path.write_text(tomli_w.dumps(content))
    return path


def pair_tokenizer(folder):
    """BERT's way with pairs."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save_pretrained(folder)
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    config = json.loads((folder / "tokenizer_config.json").read_text()) | names
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def alpaca(i):
    return {"instruction": f"add {i}", "input": "" if i % 2 else f"and {i}", "output": f"sum {i}"}


def sharegpt(i):
    return {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]}


def openai(i):
    said = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "no", "weight": 0}]
    return {
        "messages": [*said, {"role": "user", "content": "again"}, {"role": "assistant", "content": f"a{i}"}]
    }


@pytest.mark.parametrize("make", [alpaca, sharegpt, openai])
def test_chats(tmp_path, make):
    for shift, name in enumerate(NAMES):
        write(tmp_path / "clients" / f"{name}.jsonl.gz", [make(10 * shift + i) for i in range(8)])
    write(tmp_path / "held-out.jsonl", [make(100 + i) for i in range(5)])
    file = federate(tmp_path, kind="instruction")
    done = headwater("simulate", file, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "recognised as" in done.err
    measured(tmp_path, "held-out.jsonl")


def test_pairs_of_texts(tmp_path):
    said = [f"the movie was {'good' if i % 2 else 'bad'} {i}" for i in range(24)]
    rows = [{"premise": said[i], "hypothesis": "good", "label": i % 2} for i in range(24)]
    write(tmp_path / "clients" / "anna.jsonl", rows[:10])
    with (tmp_path / "clients" / "ben.csv").open("w", newline="") as stream:  # as pandas writes it
        writer = csv.writer(stream)
        writer.writerows([["premise", "hypothesis", "label"]])
        writer.writerows([[r["premise"], r["hypothesis"], float(r["label"])] for r in rows[10:18]])
    write(tmp_path / "held-out.jsonl", [{**r, "label": bool(r["label"])} for r in rows[18:]])
    file = federate(tmp_path, kind="classification", labels=[0, 1], validation_fraction=0.0)
    pair_tokenizer(tmp_path / "bert")
    done = headwater("simulate", file, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "recognised as pairs of texts (premise, hypothesis)" in done.err
    measured(tmp_path, "held-out.jsonl")
    code = readme_code(tmp_path / "run" / "adapter")
    assert 'types = torch.tensor([row["token_type_ids"]])' in code
    code = code.replace('tokenizer("a text"', f'tokenizer({rows[18]["premise"]!r}, "good"')
    code = code.replace('"bert"', repr(str(tmp_path / "bert"))) + "\nprint(logits.softmax(-1)[0].tolist())"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "run" / "adapter", capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    write(tmp_path / "one.jsonl", rows[18:19])
    answer = headwater("predict", tmp_path / "run" / "adapter", "--file", tmp_path / "one.jsonl", "--json")
    assert answer.code == 0, answer.err
    scores = json.loads(answer.out.splitlines()[0])["scores"]
    assert json.loads(out.stdout.splitlines()[-1]) == pytest.approx([scores["0"], scores["1"]], abs=1e-5)


def measured(folder, test):
    """What predict measures on the test file is what the summary says."""
    summary = json.loads((folder / "run" / "summary.json").read_text())
    done = headwater("predict", folder / "run" / "adapter", "--file", folder / test, "--metric", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found[summary["metric"]["name"]] == pytest.approx(summary["metric"]["best"], rel=1e-6)
