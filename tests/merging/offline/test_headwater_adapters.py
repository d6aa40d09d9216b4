"""Adapters of Headwater's own runs, merged: ``headwater predict`` and PEFT read the result."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tests.support.command import headwater
from tests.support.runs import tiny_federation

TEXTS = ["the movie was good", "the movie was bad a7", "not good"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one federation with other seeds and ranks; the second reads more of a text."""
    folder = tmp_path_factory.mktemp("runs")
    file = tiny_federation(folder / "fed")
    own = [("a", ()), ("b", ("--seed", 6, "--set", "adapter.rank=4", "--set", "data.max_tokens=40"))]
    for name, options in own:
        done = headwater("simulate", file, "--out", folder / name, "--quiet", *options)
        assert done.code == 0, done.err
    return folder


def answers(adapter):
    done = headwater("predict", adapter, "--json", *TEXTS)
    assert done.code == 0, done.err
    return [json.loads(line)["scores"] for line in done.out.splitlines()]


def test_one_adapter_merged_answers_as_before(runs, tmp_path):
    assert headwater("merge", runs / "a" / "adapter", "-o", tmp_path / "out").code == 0
    for got, expected in zip(answers(tmp_path / "out"), answers(runs / "a" / "adapter"), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)


def test_two_adapters_merged_answer_as_their_mean_does_in_peft(runs, tmp_path):
    folders = [runs / name / "adapter" for name in "ab"]
    done = headwater("merge", *folders, "--weights", "3,1", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "read in another way (max_tokens)" in done.out
    base = runs / "fed" / "bert"
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base).eval()
    heads = [load_file(folder / "head.safetensors") for folder in folders]
    head = {key: 0.75 * heads[0][key] + 0.25 * heads[1][key] for key in heads[0]}
    for folder, share in zip(folders, (0.75, 0.25), strict=True):
        peft = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)
        for name, layer in peft.get_base_model().named_modules():
            if hasattr(layer, "get_delta_weight"):
                with torch.no_grad():
                    model.get_submodule(name).weight += share * layer.get_delta_weight("default")
    for text, got in zip(TEXTS, answers(tmp_path / "out"), strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
            logits = hidden.last_hidden_state.mean(1) @ head["weight"].T + head["bias"]
        expected = dict(zip(["bad", "good"], logits[0].softmax(-1).tolist(), strict=True))
        assert got == pytest.approx(expected, abs=1e-5)


def test_the_result_says_what_it_is_and_is_merged_again(runs, tmp_path):
    folders = [runs / name / "adapter" for name in "ab"]
    assert headwater("merge", *folders, "--rule", "ties", "-o", tmp_path / "out").code == 0
    notes = json.loads((tmp_path / "out" / "headwater.json").read_text())
    old = json.loads((folders[0] / "headwater.json").read_text())
    for key in ("format", "kind", "labels", "pooling", "rows"):
        assert notes[key] == old[key]
    assert notes["base"] == {**old["base"], "path": str(runs / "fed" / "bert")}
    assert "adapter_sha256" not in notes
    assert notes["card"]["merge"]["rule"] == "ties"
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "# 2 adapters merged by ties" in readme
    assert "headwater predict . TEXT" in readme
    assert str(tmp_path) not in readme
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["rule"] == {"name": "ties", "density": 0.2}
    again = headwater("merge", tmp_path / "out", folders[0], "-o", tmp_path / "again")
    assert again.code == 0, again.err
    assert len(answers(tmp_path / "again")) == len(TEXTS)


def test_other_labels_are_refused_by_name(runs, tmp_path):
    shutil.copytree(runs / "b" / "adapter", tmp_path / "other")
    path = tmp_path / "other" / "headwater.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["good", "bad"]}))
    done = headwater("merge", runs / "a" / "adapter", tmp_path / "other", "-o", tmp_path / "out")
    assert done.code == 4
    assert "labels of the head" in done.error
    assert not (tmp_path / "out").exists()


def test_in_what_the_base_was_is_said_where_it_differs(runs, tmp_path):
    a, b = runs / "a" / "adapter", tmp_path / "b"
    shutil.copytree(a, b)
    notes = json.loads((b / "headwater.json").read_text())
    notes["rows"]["dtype"] = "float32"  # as earlier versions had it
    for dtype, said in (("float32", False), ("bfloat16", True)):
        notes["base"]["dtype"] = dtype
        (b / "headwater.json").write_text(json.dumps(notes))
        done = headwater("merge", b, a, "-o", tmp_path / dtype)
        assert done.code == 0, done.err
        told = "trained on the base in bfloat16 and float32; the result reads it in bfloat16"
        assert (told in done.out) == said
        assert "read in another way" not in done.out
