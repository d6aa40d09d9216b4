"""The law: on the test file, predict's metrics are those of the run's summary, whatever task and adapter."""

from __future__ import annotations

import json

import pytest
import tomli_w

from headwater.adapters.predict import Predictor
from headwater.data.opened import rows_of
from headwater.training.score import reading_of, score
from tests.adapters.reading.test_segments import paired
from tests.support.command import headwater
from tests.support.federations import adapter
from tests.support.runs import run, write_jsonl
from tests.support.tiny_models import tiny_bert, tiny_gpt2, tiny_llama

BASES = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tiny_gpt2, "paired": paired}
LABELS = ["bad", "good"]


def classification(count, shift):
    """Texts that differ beyond ``max_tokens``, where the label is the other one."""
    found = []
    for i in range(count):
        label, other = LABELS[(i + shift) % 2], LABELS[(i + shift + 1) % 2]
        tail = f" {other}" * (12 if i % 3 else 0)
        found.append({"text": f"{label} the movie {i}{tail}", "label": label})
    return found


def running(count, shift):
    return [{"text": f"well {i + shift} is {(i + shift) % 7} <|im_end|> and so on"} for i in range(count)]


def chats(count, shift):
    def turn(i):
        return [
            {"role": "user", "content": f"say {i}"},
            {"role": "assistant", "content": f"well {i}", "weight": i % 3 and 1},
        ]

    return [
        {"messages": [*turn(i + shift), *turn(i + 1), *turn(i + 1)][: 6 if i % 2 else 2]}
        for i in range(1, 3 * count, 3)
    ]


TASKS = {
    "encoder": ("encoder", {"kind": "classification", "labels": LABELS, "max_tokens": 14}, classification),
    "classifier": (
        "sequence-classification",
        {"kind": "classification", "labels": LABELS, "max_tokens": 14},
        classification,
    ),
    "running": ("causal-lm", {"kind": "causal-lm", "max_tokens": 12, "max_test_examples": 9}, running),
    "chat": (
        "causal-lm",
        {
            "kind": "instruction",
            "messages": "messages",
            "system": "Be brief.",
            "max_tokens": 70,
            "date": "2025-03-04",
        },
        chats,
    ),
}


def pairs(count, shift):
    return [
        {"first": f"the movie {i}", "second": LABELS[(i + shift) % 2], "label": LABELS[(i + shift) % 2]}
        for i in range(count)
    ]


TASKS["pairs"] = (
    "encoder",
    {
        "kind": "classification",
        "labels": LABELS,
        "text": "first",
        "text_pair": "second",
        "max_tokens": 12,
    },
    pairs,
)


def scored(count, shift):
    return [
        {"text": f"the movie {i % 7} {i + shift}", "stars": (i * 7 + shift) % 11 / 2} for i in range(count)
    ]


def tagged(count, shift):
    return [
        {
            "text": f"well the movie {i % 7}",
            "tags": "|".join(t for n, t in enumerate("abc") if (i + shift) % (n + 2)),
        }
        for i in range(count)
    ]


STARS = {"kind": "regression", "target": "stars", "target_mean": 2.5, "target_scale": 1.6, "max_tokens": 12}
TAGS = {"kind": "multi-label", "label": "tags", "labels": ["a", "b", "c"], "separator": "|", "max_tokens": 12}
TASKS |= {
    "stars": ("encoder", STARS, scored),
    "stars classifier": ("sequence-classification", STARS, scored),
    "tags": ("encoder", TAGS, tagged),
    "tags classifier": ("sequence-classification", TAGS, tagged),
}
CASES = [
    (task, base, kind)
    for task, base in [("encoder", "bert"), ("classifier", "bert"), ("running", "llama"), ("chat", "llama")]
    for kind in ("lora", "prompt", "prefix", "ia3")
] + [
    ("pairs", "paired", "lora"),
    ("stars", "bert", "lora"),
    ("stars", "bert", "prompt"),
    ("stars classifier", "llama", "lora"),
    ("tags", "bert", "ia3"),
    ("tags classifier", "bert", "lora"),
    ("classifier", "llama", "lora"),
    ("classifier", "llama", "prefix"),
    ("running", "gpt2", "lora"),
    ("chat", "llama", "vera"),
]
# whose values every rule merges one by one
BY_RULE = [(kind, rule) for kind in ("vera", "p-tuning") for rule in ("ties", "fisher")]


def federation(folder, task, base, kind, **tables):
    model, data, make = TASKS[task]
    folder.mkdir(parents=True, exist_ok=True)
    BASES[base](folder / base)
    write_jsonl(folder / "train.jsonl", make(24, 0))
    write_jsonl(folder / "test.jsonl", make(17, 100))
    content = {
        "federation": {"name": "law", "rounds": 1, "seed": 3},
        "model": {"kind": model, "path": base},
        "adapter": adapter(kind, "bert" if base == "paired" else base),
        "data": {
            **data,
            "path": "train.jsonl",
            "test": "test.jsonl",
            "partition": {"kind": "iid", "clients": 2},
        },
        "training": {"kind": "backprop", "learning_rate": 0.05, "batch_size": 4},
        "codec": {"up": {"kind": "dense"}},
        "evaluation": {"batch_size": 5},
        **tables,
    }
    (folder / "federation.toml").write_text(tomli_w.dumps(content))
    return folder / "federation.toml"


@pytest.mark.parametrize(
    ("task", "base", "kind", "rule"),
    [*((*case, "mean") for case in CASES), *(("encoder", "bert", kind, rule) for kind, rule in BY_RULE)],
)
def test_predict_measures_what_the_summary_says(tmp_path, task, base, kind, rule):
    file = federation(tmp_path / "fed", task, base, kind, strategy={"kind": rule})
    summary, _ = run(file, tmp_path / "run")
    predictor = Predictor.open(tmp_path / "run" / "adapter", base=str(tmp_path / "fed" / base))
    found = score(predictor, rows_of(tmp_path / "fed" / "test.jsonl", reading_of(predictor).data))
    name, best = summary["metric"]["name"], summary["metric"]["best"]
    assert found.metrics[name] == pytest.approx(best, rel=1e-6)
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    (measured,) = [r["test"] for r in rounds if r["round"] == summary["adapter_round"]]
    assert found.metrics == pytest.approx({k: measured[k] for k in found.metrics}, rel=1e-6)


def test_the_command_prints_it(tmp_path):
    summary, _ = run(federation(tmp_path / "fed", "running", "llama", "lora"), tmp_path / "run")
    adapter, test = tmp_path / "run" / "adapter", tmp_path / "fed" / "test.jsonl"
    done = headwater("predict", adapter, "--file", test, "--metric")
    assert done.code == 0, done.err
    lines = dict(line.split("\t") for line in done.out.splitlines())
    assert float(lines["perplexity"]) == pytest.approx(summary["metric"]["best"], rel=1e-5)
    assert lines["examples"].startswith("9 of ")
    assert "drawn as in the federation" in lines["examples"]
    found = json.loads(headwater("predict", adapter, "--file", test, "--metric", "--json").out)
    assert found["perplexity"] == pytest.approx(summary["metric"]["best"], rel=1e-6)
    assert found["examples"] == 9


def test_texts_alone_are_no_pairs(tmp_path):
    run(federation(tmp_path / "fed", "pairs", "paired", "lora"), tmp_path / "run")
    done = headwater("predict", tmp_path / "run" / "adapter", "a text alone")
    assert done.code == 3
    assert "pairs of texts" in done.error
    rows = headwater("predict", tmp_path / "run" / "adapter", "--file", tmp_path / "fed" / "test.jsonl")
    assert len(rows.out.splitlines()) == 17, rows.err
