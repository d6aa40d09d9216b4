import hashlib
import json

import pytest
import torch

from headwater.config import Federation, LoadedFederation
from headwater.config.training import BackpropTraining, NoopTraining
from headwater.errors import ConfigError
from headwater.training.backprop import BackpropTrainer
from headwater.training.context import TrainingContext
from headwater.training.noop import NoopTrainer
from tests.support import federations
from tests.support.processes import in_another


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_real_model(tmp_path):
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter("lora", "bert"))
    torch.set_num_threads(loaded.settings.federation.threads + 1)
    context = TrainingContext.open(loaded)
    assert torch.get_num_threads() == loaded.settings.federation.threads
    assert context.spec == context.initial_state().spec
    assert context.model.task.outputs == federations.LABELS
    assert context.pad == context.tokenizer.pad == 0
    assert isinstance(context.trainer(BackpropTraining(kind="backprop")), BackpropTrainer)
    assert isinstance(context.trainer(NoopTraining(kind="noop")), NoopTrainer)
    count, metrics = context.evaluate(context.initial_state(), federations.examples(4, language_model=False))
    assert count == 4
    assert metrics.keys() == {"accuracy", "macro_f1", "loss"}
    context.export(context.initial_state(), tmp_path / "out", {"rounds": 3})
    assert "| rounds | 3 |" in (tmp_path / "out/README.md").read_text()


def fingerprints(folder):
    table = federations.adapter("lora", "bert")
    strategy = {"kind": "mean", "space": "ffa"}
    loaded = federations.federation(folder, "sequence-classification", "bert", table, strategy=strategy)
    context = TrainingContext.open(loaded)
    return f"{context.initial_state().sha256()} {context.model.frozen.sha256()} {context.base_sha256}"


def fingerprints_after_noise(folder):
    torch.manual_seed(99)
    return fingerprints(folder)


def test_every_process_starts_alike(tmp_path):
    here = fingerprints(tmp_path)
    assert in_another(fingerprints_after_noise, tmp_path) == here


def test_a_vector(tmp_path):
    settings = {
        "federation": {"name": "load", "rounds": 1},
        "model": {"kind": "vector", "size": 6},
        "data": {"kind": "none", "clients": 2},
        "training": {"kind": "noop"},
    }
    context = TrainingContext.open(LoadedFederation(Federation.model_validate(settings), tmp_path))
    assert [(t.name, t.role, t.shape) for t in context.spec] == [("vector", "vector", (6,))]
    assert context.base_sha256 == hashlib.sha256(b"vector").hexdigest()
    assert context.initial_state().max_abs() == 0
    assert context.tokenizer is None
    assert context.evaluate(context.initial_state() + context.initial_state(), []) == (1, {"loss": 0.0})
    context.export(context.initial_state(), tmp_path / "out", {})
    assert json.loads((tmp_path / "out/headwater.json").read_text())["kind"] == "vector"
    with pytest.raises(ConfigError, match="noop"):
        context.trainer(BackpropTraining(kind="backprop"))
