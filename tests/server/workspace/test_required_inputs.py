"""A model or a test file that is not there is found at submit, and by its key."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from headwater.config import load_federation
from headwater.errors import ConfigError, DataError, ModelError
from headwater.server.workspace.required_inputs import require_inputs
from tests.support.federation_text import federation_text

FEDERATION = federation_text(model="models/tiny", training="backprop")


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "f.toml").write_text(FEDERATION)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    return lambda *changes: load_federation(tmp_path / "f.toml", changes)


def test_what_is_there_is_right(load, tmp_path):
    assert require_inputs(load()) == ()
    (tmp_path / "t.jsonl").write_text("")
    assert require_inputs(load("data.test=t.jsonl")) == ()


@pytest.mark.parametrize(
    ("path", "got"),
    [
        ("models/none", "may not ask the hub"),
        ("./models/none", "nothing there"),
        ("f.toml", "a file"),
        ("models", "without config.json"),
    ],
)
def test_a_model_that_is_not_there_is_named_by_its_key_and_place(load, tmp_path, path, got):
    with pytest.raises(ModelError, match=r"^model\.path") as caught:
        require_inputs(load(f"model.path={path}"))
    assert str((tmp_path / path).resolve()) in str(caught.value)
    assert got in str(caught.value)


def test_a_test_file_that_is_not_there(load, tmp_path):
    with pytest.raises(DataError, match=r"^data\.test 'none\.jsonl'") as caught:
        require_inputs(load("data.test=none.jsonl"))
    assert str(tmp_path / "none.jsonl") in str(caught.value)


def test_a_run_that_had_begun_is_told_how_to_say_where_its_files_are_now(load, tmp_path):
    with pytest.raises(ModelError, match="headwater server resume DIR t-1 --folder PATH"):
        require_inputs(load("model.path=./gone"), "headwater server resume DIR t-1")
    (tmp_path / "f.toml").rename(tmp_path / "g.toml")
    moved = load_federation(tmp_path / "g.toml", folder=tmp_path / "no")
    with pytest.raises(ConfigError, match="relative paths start"):
        require_inputs(moved)


def test_clients_of_a_server_share_no_process(load):
    with pytest.raises(ConfigError, match="whose clients are on devices of their own"):
        require_inputs(load("simulation.cohort=8"))


def test_a_server_measures_links(load):
    assert require_inputs(load("cohort.upload_s=20")) == ()
