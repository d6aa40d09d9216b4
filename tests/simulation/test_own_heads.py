"""``adapter.head = "own"``: one adapter that all share, under a head of each client's own."""

from __future__ import annotations

import json

import pytest
import torch

from headwater.client.execution.own_part import own_spec
from headwater.client.execution.store import SharedStore
from headwater.config import load_federation
from headwater.errors import ConfigError
from headwater.strategies.federated import FederatedStrategy
from tests.support.runs import resume, rows, run, tiny_federation, write_jsonl

OWN = {"adapter": {"head": "own"}, "data": {"test": None, "validation_fraction": 0.3}}
TRAINING = {"kind": "backprop", "learning_rate": 0.02, "batch_size": 8, "epochs": 8}


def contrary(folder, head, **tables):
    """Ann says good and bad, ben the opposite, cleo says yes and no: no one head is right for all."""
    file = tiny_federation(
        folder,
        adapter={"head": head},
        data={**OWN["data"], "labels": ["bad", "good", "no", "yes"]},
        training=TRAINING,
        **tables,
    )
    turned, other = {"bad": "good", "good": "bad"}, {"bad": "no", "good": "yes"}
    ann, ben, cleo = (rows(name, 24) for name in ("ann", "ben", "cleo"))
    ben = [{**row, "label": turned[row["label"]]} for row in ben]
    cleo = [{**row, "label": other[row["label"]]} for row in cleo]
    write_jsonl(folder / "train.jsonl", ann + ben + cleo)
    return file


def accuracies(folder):
    told = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])["clients_each"]
    return {name: answer["accuracy"] for name, answer in told.items()}


def test_clients_with_labels_of_their_own_share_one_adapter(tmp_path, monkeypatch):
    moved, update = [], FederatedStrategy.update

    def noting(self, server, merged):
        moved.append({t.role for t in merged.delta.spec if merged.delta[t.name].any()})
        return update(self, server, merged)

    monkeypatch.setattr(FederatedStrategy, "update", noting)
    own, _ = run(contrary(tmp_path / "own", "own"), tmp_path / "a")
    assert moved == [{"lora_a", "lora_b"}] * 3
    assert min(accuracies(tmp_path / "a").values()) == 1
    run(contrary(tmp_path / "shared", "shared"), tmp_path / "b")
    assert min(accuracies(tmp_path / "b").values()) < 0.7
    loaded = load_federation(tmp_path / "own/federation.toml")
    asked = []
    stopped = tmp_path / "c"
    run(tmp_path / "own/federation.toml", stopped, should_stop=lambda: bool(asked) or asked.append(1))
    assert resume(stopped, workers=2)[0]["adapter_sha256"] == own["adapter_sha256"]
    from headwater.client.execution.runtime import ClientRuntime

    spec = own_spec(ClientRuntime.open(loaded).context.spec, "head")
    assert set(spec.by_name) == {"head.weight", "head.bias"}
    kept = [SharedStore(tmp_path / name / "state/clients").load_own("cleo", spec).settled(3) for name in "ac"]
    assert torch.equal(kept[0].vector(), kept[1].vector())


def test_a_head_of_its_own_is_no_word_on_the_wire_of_others(tmp_path):
    """Files without it keep the hash that their runs were named by."""
    plain = load_federation(tiny_federation(tmp_path / "a"))
    assert "head =" not in plain.to_toml()
    assert "head" not in json.loads(plain.settings.told_to_devices())["adapter"]
    own = load_federation(tiny_federation(tmp_path / "b", **OWN))
    assert json.loads(own.settings.told_to_devices())["adapter"]["head"] == "own"
    assert own.sha256() != plain.sha256()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"data": {}}, "no adapter to measure"),
        ({"training": {"kind": "kseed"}}, "move all heads alike"),
        ({"schedule": {"kind": "buffered", "buffer": 2}}, "needs rounds"),
        ({"strategy": {"kind": "fisher"}}, "merges whole adapters"),
        (
            {
                "strategy": {"kind": "mean", "control_variates": True},
                "training": {"kind": "backprop", "optimizer": "sgd"},
            },
            "heads that all share",
        ),
        ({"strategy": {"kind": "mean", "space": "product"}}, "not 'product'"),
        ({"training": {"kind": "spry"}}, "train all of the adapter"),
        ({"model": {"kind": "causal-lm"}, "data": {**OWN["data"], "kind": "causal-lm", "labels": None}},
         "model with a head"),
    ],
)  # fmt: skip
def test_what_has_no_own_heads_is_refused(tmp_path, tables, message):
    file = tiny_federation(tmp_path, **{**OWN, **tables})
    with pytest.raises(ConfigError, match=message):
        load_federation(file)
