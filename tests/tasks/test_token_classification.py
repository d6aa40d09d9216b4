"""Entities against seqeval, words against their tokens, and a federation that learns labels of words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.config.load import load_data, load_federation
from headwater.data.table_row import TableRow
from headwater.errors import ConfigError, DataError
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.entities import Chunks
from headwater.tasks.table import task_of
from tests.data.toys import table
from tests.support.command import headwater
from tests.support.federations import adapter
from tests.support.readme_code import readme_code
from tests.support.runs import run, write_jsonl
from tests.support.tiny_models import byte_tokenizer, tiny_bert, word_tokenizer

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"]
sequences = st.lists(
    st.lists(st.integers(0, len(LABELS) - 1), min_size=1, max_size=8), min_size=1, max_size=5
)


def task():
    data = {"kind": "token-classification", "labels": LABELS, "path": "x", "partition": {"kind": "files"}}
    return task_of(load_data(data))


def folded(words):
    return [word.lower() for word in words]


def scored(truth, guess):
    """Metrics of sequences of labels, each word one token."""
    found = task()
    examples = [Example(np.ones(len(row), np.int32), np.array(row), by_token=True) for row in truth]
    width = max(map(len, truth))
    logits = torch.zeros(len(truth), width, len(LABELS))
    for i, row in enumerate(guess):
        logits[i, range(len(row)), row] = 1.0
    return found.score(0.0, None, found.judge(logits, examples))


@settings(max_examples=40, deadline=None)
@given(truth=sequences, data=st.data())
def test_entities_count_as_seqeval_counts_them(truth, data):
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is the oracle, and no dependency")
    guess = [data.draw(st.lists(st.integers(0, 6), min_size=len(r), max_size=len(r))) for r in truth]
    named = [[[LABELS[k] for k in row] for row in rows] for rows in (truth, guess)]
    found = scored(truth, guess)
    for name, oracle in (
        ("entity_f1", seqeval.f1_score),
        ("entity_precision", seqeval.precision_score),
        ("entity_recall", seqeval.recall_score),
        ("accuracy", seqeval.accuracy_score),
    ):
        assert found[name] == pytest.approx(
            oracle(*named, **({} if name == "accuracy" else {"zero_division": 0}))
        )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [  # as seqeval 1.2.2 gives them
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("I-PER I-PER B-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("B-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("O E-LOC E-LOC S-LOC I-LOC", [("LOC", 1, 1), ("LOC", 2, 2), ("LOC", 3, 3), ("LOC", 4, 4)]),
        ("B-LOC E-LOC O O", [("LOC", 0, 1)]),
        ("O O", []),
    ],
)
def test_entities_of_a_sequence(labels, expected):
    assert Chunks(LABELS).of([LABELS.index(label) for label in labels.split()]) == expected


def test_labels_without_marks_are_types_of_their_own():
    """Whatever letters they begin with: ORG is no O, and SBAR no S."""
    assert Chunks(["ORG", "SBAR", "O"]).of([0, 0, 1, 1, 2, 0]) == [
        ("ORG", 0, 1),
        ("SBAR", 2, 3),
        ("ORG", 5, 5),
    ]


@pytest.mark.parametrize(
    ("labels", "tags"), [(["1", "2", "3"], [0, 1]), (["O", "2"], [0, 1]), (["O", "A"], [True])]
)
def test_a_number_is_a_place_among_labels_only_where_no_label_is_a_number(labels, tags):
    """Labels 1 to 3 and tags 0 to 2: both 0 and 1 were read as the label "1"."""
    data = {"kind": "token-classification", "labels": labels, "path": "x", "partition": {"kind": "files"}}
    found = task_of(load_data(data))
    row = TableRow(table([{"tokens": ["good"] * len(tags), "tags": tags}]), 0, found.settings)
    with pytest.raises(DataError, match=r"rows.jsonl:1.*one of the labels"):
        found.check(row)


@pytest.mark.parametrize("fast", [word_tokenizer(), byte_tokenizer(None)], ids=["pieces", "bytes"])
def test_the_first_token_of_a_word_has_its_label(fast):
    """The token whose text begins the word, whether the tokenizer keeps spaces or not."""
    tokenizer, found = TextTokenizer(fast, "tiny"), task()
    words, tags = ["good", "xyz", "[SEP]", "a", "<|im_end|>"], [1, 2, 3, 0, 4]
    row = TableRow(table([{"tokens": words, "tags": tags}]), 0, found.settings)
    (example,) = found.examples(row, tokenizer)
    assert example.tokens.tolist() == tokenizer.encode(" ".join(words), 128)
    kept = np.flatnonzero(example.targets != IGNORED)
    assert example.targets[kept].tolist() == tags
    ends = [*kept[1:], len(example.tokens)]
    pieces = [tokenizer.decode(example.tokens[a:b].tolist()) for a, b in zip(kept, ends, strict=True)]
    assert folded(piece.replace(" ", "") for piece in pieces) == folded(words)


def federation(folder, **changes):
    folder.mkdir()
    tiny_bert(folder / "bert")
    rows = [
        {
            "tokens": ["the", name, "was", "not", mood],
            "tags": ["O", "B-X", "O", "O", "B-Y"],
            "who": f"c{i % 2}",
        }
        for i, (name, mood) in enumerate(
            [("movie", "good"), ("a", "bad"), ("movie", "bad"), ("b", "good")] * 6
        )
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows[:8])
    content = {
        "federation": {"name": "t", "rounds": 4, "seed": 1},
        "model": {"kind": "encoder", "path": "bert"},
        "adapter": adapter("lora", "bert"),
        "data": {
            "kind": "token-classification", "labels": ["O", "B-X", "B-Y"], "path": "train.jsonl",
            "test": "test.jsonl", "partition": {"kind": "column", "column": "who"},
        },
        "training": {"kind": "backprop", "learning_rate": 0.03, "batch_size": 4},
        "evaluation": {"min_client_examples": 1},
        "baselines": {"majority": True},
        **changes,
    }  # fmt: skip
    (folder / "federation.toml").write_text(tomli_w.dumps(content))
    return folder / "federation.toml"


def test_a_federation_learns_labels_of_words_and_predict_says_the_same(tmp_path, monkeypatch, capsys):
    path = federation(tmp_path / "fed")
    summary, _ = run(path, tmp_path / "run")
    assert summary["metric"]["name"] == "entity_f1"
    assert summary["metric"]["best"] > 0.9
    assert summary["baselines"]["majority"] == 0.0
    folder, test = tmp_path / "run/adapter", tmp_path / "fed/test.jsonl"
    found = json.loads(headwater("predict", folder, "--file", test, "--metric", "--json").out)
    assert found["entity_f1"] == pytest.approx(summary["metric"]["best"], rel=1e-6)
    answer = json.loads(headwater("predict", folder, "--json", "the movie was not bad").out)
    assert answer["labels"] == ["O", "B-X", "O", "O", "B-Y"]
    assert answer["entities"] == [{"type": "X", "words": [1, 1]}, {"type": "Y", "words": [4, 4]}]
    assert headwater("predict", folder, "--file", test).out.splitlines()[0].startswith("O B-X O O B-Y\t")
    monkeypatch.chdir(folder)
    code = readme_code(folder).replace('"a text"', '"the movie was not bad"')
    exec(code.replace('"bert"', repr(str(tmp_path / "fed/bert"))), {})
    assert capsys.readouterr().out.splitlines()[-1][1:-1].split(", ")[1:-1] == [
        repr(k) for k in answer["labels"]
    ]


def test_clients_can_be_trained_together_and_fisher_can_merge(tmp_path):
    alone, _ = run(federation(tmp_path / "one"), tmp_path / "alone")
    together, _ = run(tmp_path / "one/federation.toml", tmp_path / "both", "simulation.cohort=2")
    assert together["metric"]["final"] == pytest.approx(alone["metric"]["final"], abs=1e-3)
    assert together["adapter_sha256"] != ""
    changes = {"strategy": {"kind": "fisher", "space": "ffa"}}
    merged, _ = run(federation(tmp_path / "two", **changes), tmp_path / "fisher")
    assert merged["metric"]["best"] > 0.5


def test_another_model_kind_is_refused(tmp_path):
    path = federation(tmp_path / "fed")
    with pytest.raises(
        ConfigError, match=r"'causal-lm' does not fit data.kind 'token-classification'.*'encoder'"
    ):
        load_federation(path, ["model.kind=causal-lm"])
