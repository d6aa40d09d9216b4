"""Whole runs of a tiny model in the spaces of pairs of factors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from headwater.adapters.predict import Predictor
from headwater.strategies import FederatedStrategy
from tests.support.runs import resume, run, tiny_federation

CODEC = {"up": {"kind": "dense"}}
RANKS = {
    "methods": {"small": {"training": {"kind": "backprop", "learning_rate": 0.01}, "rank": 1}},
    "assignment": {"kind": "clients", "clients": {"a*": "small"}},
}


def file_of(folder, space, **tables):
    strategy = {"kind": "mean", "space": space}
    return tiny_federation(folder / "fed", strategy=strategy, codec=CODEC, **tables)


def rounds(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_product_of_mixed_ranks_resumes_to_the_same_bits_and_is_what_plain_peft_loads(tmp_path):
    file = file_of(tmp_path, "product", **RANKS)
    whole, _ = run(file, tmp_path / "a")
    asked = []
    run(file, tmp_path / "b", should_stop=lambda: bool(asked) or asked.append(1))
    assert resume(tmp_path / "b")[0]["adapter_sha256"] == whole["adapter_sha256"]
    for record in rounds(tmp_path / "a")[1:]:
        assert record["clients"]["ann"]["method"] == "small"
        assert 0 < record["merge"]["truncation"] < 0.5
        assert record["merge"]["product_rank"] == 2
        # ann's second component stays as it was, so the gap to all clients' own products is a little more
        assert record["gap"]["relative"] < 0.5
    folder, base = tmp_path / "a" / "adapter", tmp_path / "fed" / "bert"
    for name, up in load_file(folder / "adapter_model.safetensors").items():
        if "lora_B" in name:
            columns = np.square(up.double().numpy()).sum(axis=0)
            assert columns[0] > columns[1] > 0, "the most important component is first"
    tokens = AutoTokenizer.from_pretrained(base)("the movie was good", return_tensors="pt")
    head = load_file(folder / "head.safetensors")
    peft = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()
    with torch.no_grad():
        hidden = peft(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    logits = hidden.mean(1) @ head["weight"].T + head["bias"]
    expected = dict(zip(["bad", "good"], logits[0].softmax(-1).tolist(), strict=True))
    [answer] = Predictor.open(folder, base=str(base)).classify(["the movie was good"])
    assert answer["scores"] == pytest.approx(expected, abs=1e-5)


def test_rolora_moves_one_factor_a_round_and_has_no_gap(tmp_path, monkeypatch):
    moved, update = [], FederatedStrategy.update

    def noting(self, server, merged):
        moved.append({t.role for t in merged.delta.spec if merged.delta[t.name].any()})
        return update(self, server, merged)

    monkeypatch.setattr(FederatedStrategy, "update", noting)
    run(file_of(tmp_path, "rolora"), tmp_path / "a")
    assert moved == [{"lora_b", "head"}, {"lora_a", "head"}, {"lora_b", "head"}]
    assert all(record["gap"]["relative"] < 1e-6 for record in rounds(tmp_path / "a")[1:])


def test_fair_leaves_less_gap_than_factors(tmp_path):
    gaps = {}
    for space in ("fair", "factors"):
        run(file_of(tmp_path / space, space), tmp_path / space / "a", "federation.rounds=1")
        gaps[space] = rounds(tmp_path / space / "a")[1]["gap"]["relative"]
    assert 0 < gaps["fair"] < gaps["factors"]
