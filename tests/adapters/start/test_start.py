"""``adapter.start``: what PEFT and Headwater wrote is gone on with exactly, or refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from headwater.adapters.export import export
from headwater.client.agent.known_runs import KnownRuns
from headwater.config.adapter import LoraAdapter
from headwater.config.load import federation_of
from headwater.errors import ConfigError, DecodeError, ModelError
from headwater.experts.compress import Exact, compress
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.proto.wire import decode_request, encode_request
from headwater.protocol.messages import ProfileRequest
from tests.laws.adapter_kind_laws import batch_of, elsewhere
from tests.support import federations

LLAMA = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Where the tiny bases lie, and one Headwater adapter of each task."""
    folder = tmp_path_factory.mktemp("models")
    for task, base in (("encoder", "bert"), ("causal-lm", "llama"), ("sequence-classification", "bert")):
        model = federations.adapted(
            federations.federation(folder, task, base, federations.adapter("lora", base))
        )
        export(model, elsewhere(model), folder / f"lora-{task}", card={})
    return folder


def starting(models, start, task="causal-lm", base="llama", table=None, **changes):
    """The federation that starts from a folder, by ``start`` alone or with a table beside it."""
    tables = federations.federation(models, task, base, federations.adapter("lora", base), **changes)
    raw = tables.settings.model_dump(mode="json", exclude_none=True)
    raw["adapter"] = {"start": str(start), **(table or {})}
    return federation_of(raw, folder=models, name="federation.toml")


def started(models, start, *args, seed=3, **changes):
    return federations.adapted(starting(models, start, *args, **changes), seed=seed)


def peft_folder(models, out, config, *, seed=0):
    """What a user of PEFT has: an adapter with values everywhere, and its logits on some rows."""
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(models / "llama", dtype=torch.float32), config
    )
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(out)
    return out


def plain_logits(models, folder, batch):
    """PEFT alone, in a model of its own."""
    base = AutoModelForCausalLM.from_pretrained(models / "llama", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        return model(input_ids=batch.tokens, attention_mask=batch.mask).logits[:, -batch.tokens.shape[1] :]


CONFIGS = {
    "lora": LoraConfig(r=3, lora_alpha=5, **LLAMA),
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, **LLAMA),
    "dora": LoraConfig(r=2, lora_alpha=8, use_dora=True, **LLAMA),
    "all-linear": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "one layer": LoraConfig(r=2, layers_to_transform=[1], **LLAMA),
    "projected prefix": PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8, task_type="CAUSAL_LM"
    ),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_0_is_what_plain_peft_computes(models, tmp_path, name):
    folder = peft_folder(models, tmp_path / "peft", CONFIGS[name])
    model = started(models, folder)
    batch = batch_of(model)
    with torch.no_grad():
        found = model.forward(batch).logits
    torch.testing.assert_close(found, plain_logits(models, folder, batch), rtol=1e-5, atol=1e-5)
    export(model, model.initial_state(), tmp_path / "out", card={})
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(before[n].numpy().tobytes() == after[n].numpy().tobytes() for n in before)
    told, kept = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, tmp_path / "out"))
    same = {
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "num_virtual_tokens",
    }
    assert {k: v for k, v in told.items() if k in same} == {k: v for k, v in kept.items() if k in same}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rank=st.integers(1, 6),
    alpha=st.sampled_from([0.5, 1.0, 7.0, 16.0]),
    rslora=st.booleans(),
    targets=st.sets(st.sampled_from(["q_proj", "k_proj", "o_proj", "down_proj"]), min_size=1),
    seed=st.integers(0, 99),
    half=st.booleans(),
)
def test_any_lora_of_peft_comes_back_bit_for_bit(models, tmp_path, rank, alpha, rslora, targets, seed, half):
    config = LoraConfig(
        r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=sorted(targets), task_type="CAUSAL_LM"
    )
    folder = peft_folder(models, tmp_path / "peft", config, seed=seed)
    file = folder / "adapter_model.safetensors"
    if half:  # as people store them
        save_file({n: v.bfloat16() for n, v in load_file(file).items()}, file, metadata={"format": "pt"})
    model = started(models, folder, seed=seed)
    values = load_file(file)
    assert set(model.initial_state()) == set(values)
    assert all(torch.equal(v, values[n].float()) for n, v in model.initial_state().items())
    scale = alpha / (rank**0.5 if rslora else rank)
    assert {t.scaling for t in model.spec if t.role == "lora_b"} == {scale}


def test_a_classifier_of_peft_brings_its_head(models, tmp_path):
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(models / "bert", num_labels=3)
    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    plain = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in (p for p in plain.parameters() if p.requires_grad):
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    plain.save_pretrained(tmp_path / "peft")
    model = started(models, tmp_path / "peft", "sequence-classification", "bert")
    batch = batch_of(model)
    fresh = AutoModelForSequenceClassification.from_pretrained(models / "bert", num_labels=3)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(fresh, tmp_path / "peft").eval()(batch.tokens, batch.mask).logits
        torch.testing.assert_close(model.forward(batch).logits, theirs, rtol=1e-5, atol=1e-5)
    assert not any("brings no head" in notice for notice in model.notices)
    assert any(
        "names no labels" in notice and ", ".join(model.base.labels) in notice for notice in model.notices
    )


def test_a_compressed_file_is_gone_on_with(models, tmp_path):
    folder = models / "lora-encoder"
    (tmp_path / "a.hw").write_bytes(compress(PeftFolder.open(folder), Exact()))
    table = federations.adapter("lora", "bert")
    model = started(models, tmp_path / "a.hw", "encoder", "bert", table)
    assert model.start.lineage["from"] == "compressed"
    values = load_file(folder / "adapter_model.safetensors")
    values |= {f"head.{n}": v for n, v in load_file(folder / "head.safetensors").items()}
    assert model.initial_state().keys() == values.keys()
    assert all(torch.equal(v, values[n]) for n, v in model.initial_state().items())
    with pytest.raises(ConfigError, match=r"adapter.kind.*expected this key"):
        started(models, tmp_path / "a.hw", "encoder", "bert")


def test_labels_in_another_order_are_put_in_ours(models):
    order = ["positive", "negative", "neutral"]
    data = {
        "kind": "classification", "path": "x", "labels": order,
        "partition": {"kind": "iid", "clients": 2},
    }  # fmt: skip
    for task in ("encoder", "sequence-classification"):
        before = started(models, models / f"lora-{task}", task, "bert")
        after = started(models, models / f"lora-{task}", task, "bert", data=data)
        batch = batch_of(before)
        with torch.no_grad():
            ours, theirs = after.forward(batch).logits, before.forward(batch).logits
        assert torch.equal(ours, theirs[:, [federations.LABELS.index(label) for label in order]])


def test_labels_that_are_named_need_no_word(models):
    model = started(models, models / "lora-sequence-classification", "sequence-classification", "bert")
    assert not any("names no labels" in notice for notice in model.notices)


def test_a_new_head_for_other_labels(models):
    data = {
        "kind": "classification", "path": "x", "labels": ["yes", "no"],
        "partition": {"kind": "iid", "clients": 2},
    }  # fmt: skip
    for task in ("encoder", "sequence-classification"):
        with pytest.raises(
            ModelError, match=r"labels: expected .*yes, no.* got negative, neutral.*start_head"
        ):
            started(models, models / f"lora-{task}", task, "bert", data=data)
        fresh = {"start_head": "fresh"}
        model = started(models, models / f"lora-{task}", task, "bert", fresh, data=data)
        values = load_file(models / f"lora-{task}" / "adapter_model.safetensors")
        lora = [t.name for t in model.spec if t.role != "head"]
        assert lora
        assert all(torch.equal(model.initial_state()[n], values[n]) for n in lora)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": "lora", "rank": 4}, r"r in its adapter_config.json: expected 4.* got 2.*adapter.rank"),
        ({"kind": "lora", "alpha": 8.0}, r"lora_alpha .*expected 8.* got 4.*adapter.alpha"),
        ({"kind": "lora", "rslora": True}, r"use_rslora .*expected True.* got None"),
        ({"kind": "lora", "target_modules": ["q_proj"]}, r"expected the 4 tensors.* has .*v_proj"),
        ({"kind": "lora", "layers": [0]}, r"expected the 4 tensors.* has .*layers.1"),
        ({"kind": "ia3", "target_modules": ["q_proj"]}, r"peft_type .*expected 'IA3'.* got 'LORA'"),
        ({"start_sha256": "0" * 64}, r"expected sha256 0000.*correct adapter.start_sha256"),
    ],
)
def test_what_contradicts_the_file_is_refused(models, change, error):
    with pytest.raises(ModelError, match=error):
        started(models, models / "lora-causal-lm", table=change)


def test_a_kind_whose_settings_peft_does_not_tell_is_told_what_to_set(models, tmp_path):
    """Of LoHa nothing is read from PEFT's file: to leave a key out would take the default."""
    folder = peft_folder(
        models, tmp_path / "loha", LoHaConfig(r=3, alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    loha = {"kind": "loha", "rank": 3, "alpha": 6.0, "target_modules": ["q_proj"]}
    model, batch = started(models, folder, table=loha), batch_of(started(models, folder, table=loha))
    with torch.no_grad():
        found = model.forward(batch).logits
    torch.testing.assert_close(found, plain_logits(models, folder, batch), rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match=r"r in its .*got 3.*Set what \[adapter\] has for PEFT's r to that"):
        started(models, folder, table={**loha, "rank": 2})
    with pytest.raises(ModelError, match=r"peft_type .*got 'LOHA'.*Give adapter.kind and its settings"):
        started(models, folder, table={"kind": "lokr", "target_modules": ["q_proj"]})


def test_other_bases_tasks_and_places_are_refused(models, tmp_path):
    from tests.support.tiny_models import tiny_llama

    shutil.copytree(models / "lora-causal-lm", tmp_path / "other")
    tiny_llama(models / "llama2", seed=9)
    model = {"kind": "causal-lm", "path": "llama2"}
    with pytest.raises(ModelError, match=r"sha256 .* got one of a base model with sha256 .*model.path"):
        started(models, tmp_path / "other", model=model)
    with pytest.raises(ModelError, match=r"model.kind 'sequence-classification'.* got one of 'encoder'"):
        started(models, models / "lora-encoder", "sequence-classification", "bert")
    with pytest.raises(ConfigError, match=r"adapter.kind: expected this key"):
        started(models, tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"expected an adapter at .*nowhere.* got nothing there"):
        started(models, tmp_path / "nowhere", table=federations.adapter("lora", "llama"))
    (tmp_path / "other" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"expected adapter_model.safetensors"):
        started(models, tmp_path / "other")


def test_values_that_float32_does_not_hold_are_refused(models, tmp_path):
    shutil.copytree(models / "lora-causal-lm", tmp_path / "wide")
    file = tmp_path / "wide" / "adapter_model.safetensors"
    values = {n: v.double() for n, v in load_file(file).items()}
    save_file(values, file, metadata={"format": "pt"})
    started(models, tmp_path / "wide")  # float32 values in wider clothes
    first = sorted(values)[0]
    values[first] += 1e-12
    save_file(values, file, metadata={"format": "pt"})
    with pytest.raises(DecodeError, match=r"tensor .* expected values that float32 holds, got float64"):
        started(models, tmp_path / "wide")


def test_start_head_without_a_start_is_an_error(models):
    with pytest.raises(ValidationError, match="go with start"):
        LoraAdapter(kind="lora", start_head="fresh")


@pytest.mark.parametrize("table", [{"kind": "vera"}, {"kind": "lora"}], ids=["vera", "ffa"])
def test_a_device_makes_the_same_state_of_what_it_is_sent(models, tmp_path, table):
    """Also where fixed tensors stay at home, which the seed of the new federation would make otherwise."""
    space = {"strategy": {"kind": "mean", "space": "ffa"}} if table["kind"] == "lora" else {}
    own = federations.adapter(table["kind"], "bert")
    first = federations.adapted(federations.federation(models, "encoder", "bert", own, **space))
    export(first, elsewhere(first), tmp_path / "out", card={"name": "first"})
    loaded = starting(models, tmp_path / "out", "encoder", "bert", **space)
    server = federations.adapted(loaded, seed=9)
    assert server.frozen.tobytes() == first.frozen.tobytes()
    assert len(server.frozen)
    told = loaded.settings.told_to_devices(server.start.sha256)
    assert str(tmp_path) not in told  # the server's path is none of a device's business
    request = ProfileRequest("run-1", told, server.base_sha256, "1", server.start.to_bytes())
    assert str(tmp_path).encode() not in request.start
    assert decode_request(*encode_request(request)) == request
    runs = KnownRuns(tmp_path / "runs")
    joined = runs.join(request)
    device = federations.adapted(joined.loaded(models / "bert"), seed=9)
    assert device.initial_state().tobytes() == server.initial_state().tobytes()
    assert device.frozen.tobytes() == server.frozen.tobytes()
    # asked again by the agent itself, without the file: it is still there
    again = runs.join(ProfileRequest("run-1", told, server.base_sha256, "1"))
    assert federations.adapted(again.loaded(models / "bert")).start.sha256 == server.start.sha256
    # another file in its place is noticed
    values = {n: np.asarray(v) + 1 for n, v in {**server.initial_state(), **server.frozen}.items()}
    with_other = federations.adapted(starting(models, tmp_path / "out", "encoder", "bert", **space)).start
    assert with_other.sha256 == server.start.sha256
    file = joined.folder / "start.safetensors"
    said = {"headwater.start": json.dumps({"spec": server.spec.fingerprint()})}
    save_file({n: torch.from_numpy(v) for n, v in values.items()}, file, metadata=said)
    with pytest.raises(ModelError, match=r"expected sha256"):
        federations.adapted(joined.loaded(models / "bert"))
