"""The numbers that trackers are given: names, quartiles, and a clear error where a package is missing."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.load import federation_of
from headwater.errors import MissingDependency
from headwater.server.round_record import RoundRecord
from headwater.server.trackers.mlflow import _flat
from headwater.server.trackers.numbers import allowed, by_name, quantiles
from headwater.server.trackers.table import TRACKERS

KINDS = ("tensorboard", "mlflow", "wandb")


def record(losses, **more):
    clients = {f"c{number}": {"loss": loss, **more} for number, loss in enumerate(losses)}
    each = {name: {"accuracy": row["loss"], "examples": 3} for name, row in clients.items()}
    return RoundRecord({"round": 1, "clients": clients, "clients_each": each})


@given(losses=st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=30))
def test_quartiles_are_numpys(losses):
    found = quantiles(record(losses))
    assert set(found) == {
        f"each/{m}/{q}" for m in ("training_loss", "accuracy") for q in ("lower", "median", "upper")
    }
    for name, part in (("lower", 25), ("median", 50), ("upper", 75)):
        assert found[f"each/accuracy/{name}"] == pytest.approx(np.percentile(losses, part), abs=1e-6)


def test_of_few_clients_and_of_those_that_failed_nothing_is_told():
    assert quantiles(record([1.0, 2.0, 3.0])) == {}
    assert {tag.split("/")[1] for tag in quantiles(record([1.0, 2.0, 3.0, 4.0], failed="gone"))} == {
        "accuracy"
    }
    assert quantiles(record([1.0, 2.0, 3.0, math.nan])) == {}


@given(st.text(max_size=300))
def test_names_have_only_what_services_take(tag):
    name = allowed(tag)
    assert 0 < len(name) <= 200
    assert all(part and part.replace("_", "a").replace("-", "a").isalnum() for part in name.split("/"))
    assert name.isascii()
    assert allowed(name) == name


def test_numbers_of_the_federation_and_quartiles_come_together():
    found = by_name(record([1.0, 2.0, 3.0, 5.0], bytes_up=7))
    assert found["round/updates"] == 4.0
    assert found["each/training_bytes_up/median"] == 7.0
    assert found["each/training_loss/upper"] == 3.5


def test_settings_are_parameters_by_their_path():
    assert list(_flat({"a": {"b": 1, "c": None}, "d e": [2]})) == [("a.b", "1"), ("d_e", "[2]")]


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_package_a_kind_says_what_to_install(kind, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    raw = {
        "federation": {"name": "f", "rounds": 1},
        "model": {"kind": "vector", "size": 2},
        "data": {"kind": "none", "clients": 2},
        "training": {"kind": "noop"},
        "trackers": [{"kind": kind}],
    }
    with pytest.raises(MissingDependency, match=f"kind '{kind}'.*headwater\\[{kind}\\]"):
        federation_of(raw, folder=Path(), name="f")


def test_every_kind_has_its_tracker():
    assert len(TRACKERS) == len(KINDS)
