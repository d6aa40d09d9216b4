"""``evaluation.answers``: what the model writes to test rows is what ``headwater predict`` shows, scored."""

from __future__ import annotations

import json
import math
import re

import pytest

from headwater.config.data import is_rate, lower_is_better
from headwater.config.load import load_federation
from headwater.errors import ConfigError
from headwater.server.storage.run_folder import RunFolder
from headwater.tasks.rouge import rouge
from tests.support.command import headwater
from tests.support.runs import run, tiny_federation, write_jsonl
from tests.support.tiny_models import tiny_llama
from tests.tasks.test_seq2seq import federation as seq2seq

NAMES = ("rouge1", "rouge2", "rougeL")


def answers_to(folder, file, tokens):
    """What ``headwater predict`` answers to the rows of ``file``."""
    done = headwater("predict", folder / "adapter", "--json", "--file", file, "--max-new-tokens", tokens)
    assert done.code == 0, done.err
    return [json.loads(line)["answer"] for line in done.out.splitlines()]


def predicted(folder, file, tokens):
    """The rows of ``file``, and ROUGE of the answers to them."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    said = answers_to(folder, file, tokens)
    return rows, [rouge(r.get("target", r.get("answer")), s) for r, s in zip(rows, said, strict=True)]


def mean(scores):
    return {name: math.fsum(score[name] for score in scores) / len(scores) for name in NAMES}


def record_of_the_adapter(folder, summary):
    records = {r.round: r for r in RunFolder(folder).read_rounds()}
    return records[summary["adapter_round"]]


def test_answers_of_an_encoder_decoder(tmp_path):
    wanted = {"answers": 100, "max_answer_tokens": 8, "metric": "rouge1", "min_client_examples": 1}
    training = {"kind": "backprop", "learning_rate": 0.05, "batch_size": 4, "epochs": 5}
    file = seq2seq(tmp_path / "fed", "t5", evaluation=wanted, training=training)
    summary, _ = run(file, tmp_path / "run")
    record = record_of_the_adapter(tmp_path / "run", summary)
    _, scores = predicted(tmp_path / "run", tmp_path / "fed/test.jsonl", 8)
    assert {name: record.test[name] for name in NAMES} == pytest.approx(mean(scores))
    assert summary["metric"]["name"] == "rouge1"
    assert summary["metric"]["best"] == pytest.approx(mean(scores)["rouge1"])
    assert summary["metric"]["best"] > summary["metric"]["start"]
    assert set(record.pooled) == {"perplexity", "loss"}


def instructions(folder):
    folder.mkdir()
    tiny_llama(folder / "base")
    rows = [
        {"prompt": f"say {i}", "answer": "well done" if i % 3 else "no", "kind": "ab"[i % 2]}
        for i in range(12)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows)
    (folder / "federation.toml").write_text(
        '[federation]\nname = "lm"\nrounds = 1\n'
        '[model]\nkind = "causal-lm"\npath = "base"\n'
        '[adapter]\nkind = "lora"\nrank = 8\ntarget_modules = ["all-linear"]\n'
        '[data]\nkind = "instruction"\npath = "train.jsonl"\ntest = "test.jsonl"\nmax_tokens = 64\n'
        'partition = { kind = "iid", clients = 2 }\n'
        '[training]\nkind = "backprop"\nlearning_rate = 1e-3\nbatch_size = 4\n'
        '[evaluation]\nby = "kind"\nanswers = 12\nmax_answer_tokens = 12\nclients = false\n'
    )
    return folder / "federation.toml"


def test_answers_of_a_causal_model_by_group(tmp_path):
    file = instructions(tmp_path / "fed")
    test = tmp_path / "fed/test.jsonl"
    first, _ = run(file, tmp_path / "first", "evaluation.answers=0")
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    said = answers_to(tmp_path / "first", test, 12)
    for row, text in list(zip(rows, said, strict=True))[::3]:  # a random base says nothing that is true
        row["answer"] = re.sub("[^A-Za-z0-9]+", " ", text).strip() or "none"
    write_jsonl(test, rows)
    summary, _ = run(file, tmp_path / "run")
    assert summary["adapter_sha256"] == first["adapter_sha256"]
    record = record_of_the_adapter(tmp_path / "run", summary)
    rows, scores = predicted(tmp_path / "run", test, 12)
    assert {name: record.test[name] for name in NAMES} == pytest.approx(mean(scores))
    assert record.test["rouge1"] > 0.1
    for kind in "ab":
        own = [score for row, score in zip(rows, scores, strict=True) if row["kind"] == kind]
        assert {name: record.test_by[kind][name] for name in NAMES} == pytest.approx(mean(own))
    # fewer are the same rows each time, and nothing else changes
    fewer, _ = run(file, tmp_path / "fewer", "evaluation.answers=3", "evaluation.by=prompt")
    assert fewer["adapter_sha256"] == summary["adapter_sha256"]
    some = record_of_the_adapter(tmp_path / "fewer", fewer)
    written = [g for g, row in some.test_by.items() if "rouge1" in row]
    assert len(written) == 3
    own = [score for row, score in zip(rows, scores, strict=True) if row["prompt"] in written]
    assert {name: some.test[name] for name in NAMES} == pytest.approx(mean(own))


def test_answers_decide_wherever_the_metric_does(tmp_path):
    """Worth of owners and baselines too; a group of which no answer was drawn has no number."""
    summary, _ = run(
        instructions(tmp_path / "fed"),
        tmp_path / "run",
        "evaluation.answers=1",
        "evaluation.metric=rougeL",
        'contribution.kind="leave-one-out"',
        "baselines.alone=true",
    )
    assert summary["metric"]["name"] == "rougeL"
    record = record_of_the_adapter(tmp_path / "run", summary)
    assert len([row for row in record.test_by.values() if "rougeL" in row]) == 1
    (drawn,) = {group for group, row in record.test_by.items() if "rougeL" in row}
    alone = summary["baselines"]["alone_groups"]
    assert [set(groups) for groups in alone.values()] == [{drawn}] * 2
    (told,) = [r.contribution for r in RunFolder(tmp_path / "run").read_rounds() if r.contribution]
    assert told["metric"] == "rougeL"
    assert (tmp_path / "run/report.html").is_file()


def test_what_cannot_be_written_is_refused(tmp_path):
    file = instructions(tmp_path / "fed")
    with pytest.raises(ConfigError, match=r"'rougeL' is none of .*set evaluation.answers for it"):
        load_federation(file, ["evaluation.answers=0", "evaluation.metric=rougeL"])
    with pytest.raises(ConfigError, match=r"evaluation.answers needs data.test, and a data.kind"):
        load_federation(tiny_federation(tmp_path / "labels", evaluation={"answers": 3}))


def test_a_larger_rouge_is_the_better():
    assert not lower_is_better("rougeL")
    assert is_rate("rougeL")
