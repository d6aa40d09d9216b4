"""Versions of a run as starts, and what PEFT saves in its own way: places, patterns."""

import json

import pytest
import torch
from peft import ShiraConfig
from pydantic import ValidationError
from safetensors.torch import load_file

from headwater.adapters.base import load_base
from headwater.adapters.export import export
from headwater.adapters.model import AdaptedModel
from headwater.config.adapter import LoraAdapter
from headwater.errors import ModelError
from headwater.protocol.control import AdapterRow
from headwater.seeds.keys import Key
from headwater.server.storage.adapter_version_files import save_values
from tests.adapters.start import test_start
from tests.adapters.start.test_start import LLAMA, peft_folder, plain_logits, started
from tests.laws.adapter_kind_laws import batch_of, elsewhere
from tests.support import federations

models = test_start.models


def version_of(models, model, loaded, out):
    """The file of a version of a run of ``loaded``, whose state is ``model``'s, away from its start."""
    state = elsewhere(model)
    model.load(state)
    for folder in ("versions", "state"):
        (out / folder).mkdir(parents=True)
    (out / "federation.toml").write_text(loaded.to_toml())
    (out / "state/origin.json").write_text(json.dumps({"inputs": {"base": model.base_sha256}}))
    row = AdapterRow("run", 1, 1, "", state.sha256(), "", (), "loss", 0.5, True, True, 0.0, "")
    save_values(out / "versions/1.safetensors", row, state)
    return out / "versions/1.safetensors"


VERSIONS = [
    ("lora", {}, ""),
    ("lora", {"kind": "pissa", "rank": 2, "alpha": 4.0}, "kind"),
    ("loha", {"alpha": 8.0}, "alpha"),
    ("lokr", {"alpha": 8.0}, "alpha"),
    ("gralora", {"alpha": 16.0}, "alpha"),
    ("randlora", {"alpha": 1.0}, "alpha"),
    ("fourierft", {"scale": 10.0}, "scale"),
    ("waveft", {"places_seed": 5}, "places_seed"),
    ("uni-lora", {"places_seed": 5}, "places_seed"),
    ("vblora", {"chosen": 1}, "chosen"),
    ("road", {"group": 8}, "group"),
    ("delora", {"strength": 5.0}, ""),
    ("shira", {}, ""),
]


@pytest.mark.parametrize(("kind", "change", "refused"), VERSIONS, ids=lambda v: str(v) or "taken")
def test_a_version_is_gone_on_with_exactly_or_refused(models, tmp_path, kind, change, refused):
    """A spec says nothing of what a kind multiplies its values by, or where they stand."""
    own = federations.adapter(kind, "bert")
    loaded = federations.federation(models, "encoder", "bert", own)
    base = load_base(loaded.settings.model, models, labels=federations.LABELS)
    model = AdaptedModel.build(loaded, base, key=Key.root(7).child("adapter"))  # as its run did
    file = version_of(models, model, loaded, tmp_path / "run")
    table = {"kind": kind, **change} if change else {}
    if refused:
        with pytest.raises(ModelError, match=rf"{refused} of its run: .* got .*adapter.{refused} out"):
            started(models, file, "encoder", "bert", table, seed=99)
        return
    again = started(models, file, "encoder", "bert", table, seed=99)
    assert again.initial_state().tobytes() == model.read().tobytes()
    assert again.frozen.tobytes() == model.frozen.tobytes()
    assert again.start.lineage["from"] == "version"
    batch = batch_of(model)
    with torch.no_grad():
        assert torch.equal(again.forward(batch).logits, model.forward(batch).logits)


def test_places_that_peft_saved_as_integers_are_read(models, tmp_path):
    folder = peft_folder(models, tmp_path / "peft", ShiraConfig(r=2, **LLAMA), seed=4)
    assert {v.dtype for v in load_file(folder / "adapter_model.safetensors").values()} > {torch.int32}
    table = {"kind": "shira", "rank": 2, "target_modules": ["q_proj", "v_proj"]}
    model = started(models, folder, table=table)
    batch = batch_of(model)
    with torch.no_grad():
        found = model.forward(batch).logits
    torch.testing.assert_close(found, plain_logits(models, folder, batch), rtol=1e-5, atol=1e-5)


def test_two_patterns_of_one_module_mean_the_same_once_saved(models, tmp_path):
    """PEFT takes the first that fits, and saves them sorted: another alpha, without a word."""
    table = {"kind": "lora", "rank": 2, "target_modules": ("k_proj",)}
    two = {"layers.0.self_attn.k_proj": 32.0, "k_proj": 8.0}
    with pytest.raises(ValidationError, match=r"fit the same modules.*name each module so that one fits"):
        LoraAdapter(**table, alpha_pattern=two)
    with pytest.raises(ValidationError, match="fit the same modules"):
        LoraAdapter(**table, rank_pattern={"layers.0.self_attn.k_proj": 3, "k_proj": 4})
    LoraAdapter(**table, alpha_pattern={**two, "layers.0.self_attn.k_proj": 8.0})
    for fine in (dict(sorted(two.items())), {"layers.0.self_attn.k_proj": 32.0, "1.self_attn.k_proj": 8.0}):
        loaded = federations.federation(models, "causal-lm", "llama", {**table, "alpha_pattern": fine})
        model = federations.adapted(loaded)
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        export(model, elsewhere(model), out, card={})
        model.load(elsewhere(model))
        batch = batch_of(model)
        with torch.no_grad():
            found = model.forward(batch).logits
        torch.testing.assert_close(found, plain_logits(models, out, batch), rtol=1e-4, atol=1e-5)


def test_a_version_of_another_base_order_or_start_is_refused(models, tmp_path):
    loaded = federations.federation(models, "encoder", "bert", federations.adapter("vera", "bert"))
    base = load_base(loaded.settings.model, models, labels=federations.LABELS)
    model = AdaptedModel.build(loaded, base, key=Key.root(7).child("adapter"))
    file = version_of(models, model, loaded, tmp_path / "run")
    data = {
        "kind": "classification", "path": "x", "labels": list(federations.LABELS[::-1]),
        "partition": {"kind": "iid", "clients": 2},
    }  # fmt: skip
    with pytest.raises(ModelError, match="labels in the version's order: negative, neutral, positive"):
        started(models, file, "encoder", "bert", data=data)
    toml = tmp_path / "run/federation.toml"
    text = toml.read_text()
    toml.write_text(text.replace("[adapter]\n", f'[adapter]\nstart = "{file}"\n'))
    with pytest.raises(ModelError, match="expected a version whose fixed tensors its run's seed made"):
        started(models, file, "encoder", "bert")
    toml.write_text(text)
    (tmp_path / "run/state/origin.json").write_text(json.dumps({"inputs": {"base": "0" * 64}}))
    with pytest.raises(ModelError, match=r"got one of a base model with sha256 000000000000"):
        started(models, file, "encoder", "bert")
