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
from headwater.client.execution.own_part import own_spec
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import SharedStore
from headwater.config import load_federation
from headwater.errors import ConfigError
from headwater.merging.pairs import shared_tensors
from headwater.state import AdapterState
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


def own_file(folder, **tables):
    """Space ``fedsa``, without what only a server's adapter could be measured by."""
    file = file_of(folder, "fedsa", **tables)
    file.write_text(file.read_text().replace('test = "test.jsonl"\n', ""))
    return file


def test_fedsa_merges_a_alone_and_every_client_goes_on_with_its_own_b(tmp_path, monkeypatch):
    moved, states, update = [], [], FederatedStrategy.update

    def noting(self, server, merged):
        moved.append({t.role for t in merged.delta.spec if merged.delta[t.name].any()})
        states.append(update(self, server, merged))
        return states[-1]

    monkeypatch.setattr(FederatedStrategy, "update", noting)
    file = own_file(tmp_path)
    whole, _ = run(file, tmp_path / "a")
    assert moved == [{"lora_a"}] * 3
    saved = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    assert not any(value.any() for name, value in saved.items() if "lora_B" in name)
    loaded = load_federation(file)
    runtime = ClientRuntime.open(loaded)
    final = states[-1].state
    first = runtime.context.initial_state()
    assert {n for n in final if not torch.equal(final[n], first[n])} == set(
        shared_tensors(final.spec, "all but A")
    )
    store = SharedStore(tmp_path / "a" / "state" / "clients")
    mine = own_spec(final.spec, "all but A")
    own = {name: store.load_own(name, mine).settled(3) for name in ("ann", "ben", "cleo")}
    assert len({part.tobytes() for part in own.values()}) == 3
    told = rounds(tmp_path / "a")[-1]["clients_each"]
    assert told.keys() == {"ann", "ben"}  # cleo has too few rows to be told alone
    for name, answer in told.items():
        examples = runtime.data.client(name).validation
        _, expected = runtime.context.evaluate(AdapterState(final.spec, {**final, **own[name]}), examples)
        _, without = runtime.context.evaluate(final, examples)
        assert answer["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert abs(expected["loss"] - without["loss"]) > 1e-3
    asked = []
    run(file, tmp_path / "b", should_stop=lambda: bool(asked) or asked.append(1))
    assert resume(tmp_path / "b")[0]["adapter_sha256"] == whole["adapter_sha256"]
    again = SharedStore(tmp_path / "b" / "state" / "clients")
    for name, part in own.items():
        assert again.load_own(name, mine).settled(3).tobytes() == part.tobytes()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "data.test"),
        ({"training": {"kind": "kseed"}}, "sends coefficients"),
        (RANKS, "all of A"),
        ({"adapter": {"kind": "ia3", "target_modules": ["query"]}}, "merges pairs of factors"),
        ({"strategy": {"control_variates": True}}, "control_variates"),
    ],
)
def test_what_fedsa_does_not_go_with_is_refused(tmp_path, tables, message):
    tables = dict(tables)
    strategy = {"kind": "mean", "space": "fedsa", **tables.pop("strategy", {})}
    if "control_variates" in strategy:
        tables["training"] = {"kind": "backprop", "optimizer": "sgd"}
    if tables.get("adapter", {}).get("kind") == "ia3":
        tables["adapter"] |= {"rank": None, "alpha": None}
    file = tiny_federation(tmp_path / "fed", **{k: v for k, v in tables.items() if k != "adapter"})
    text = file.read_text().replace("[training]", "[training]")
    if message != "data.test":
        text = text.replace('test = "test.jsonl"\n', "")
    if "adapter" in tables:
        text = text.replace(
            'kind = "lora"\nrank = 2\nalpha = 4.0', 'kind = "ia3"\ntarget_modules = ["query"]'
        )
    lines = "".join(f"{k} = {json.dumps(v)}\n" for k, v in strategy.items())
    file.write_text(text + f"\n[strategy]\n{lines}")
    with pytest.raises(ConfigError, match=message):
        load_federation(file)


def test_only_cores_travel_of_lora_sb_and_there_is_no_gap(tmp_path, monkeypatch):
    states, update = [], FederatedStrategy.update

    def noting(self, server, merged):
        states.append(update(self, server, merged))
        return states[-1]

    monkeypatch.setattr(FederatedStrategy, "update", noting)
    file = tiny_federation(tmp_path / "fed", codec=CODEC)
    lora, cores = 'kind = "lora"\nrank = 2\nalpha = 4.0', 'kind = "lora-sb"\nrank = 4'
    file.write_text(file.read_text().replace(lora, cores))
    run(file, tmp_path / "a")
    moved = {t.name for t in states[-1].state.spec if states[-1].state[t.name].any()}
    assert {t.role for t in states[-1].state.spec} == {"lora_core", "head"}
    assert moved == {t.name for t in states[-1].state.spec}
    assert all(record["gap"]["relative"] == 0 for record in rounds(tmp_path / "a")[1:])
    saved = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    layers = [name for name in saved if name.endswith("lora_A.weight")]
    sent = rounds(tmp_path / "a")[-1]["clients"]["ann"]["bytes_up_dense"]
    assert 4 * 16 * len(layers) < sent < sum(4 * value.numel() for value in saved.values())
