"""``headwater audit`` as a user meets it: tables, JSON, exit codes, what it keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headwater.privacy.ledger import Ledger
from headwater.server.storage.run_folder import RunFolder
from headwater.strategies import private_sum
from tests.support.command import headwater
from tests.support.runs import bare_federation

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return bare_federation(
        tmp_path_factory.mktemp("f"),
        size=60,
        federation={"rounds": 2},
        data={"clients": 8},
        training={"scale": 1e-3},
        strategy={"kind": "mean", "weighting": "equal"},
        codec={"up": {"kind": "dense"}},
        cohort={"population": 8},
        privacy={"clip_l2": 0.5, "noise_multiplier": 3.0, "epsilon": 9.0, "delta": 1e-5},
    )


def test_it_tells_bounds_beside_the_promise_and_what_they_mean(file):
    done = headwater("audit", file, "--quiet", "--set", "privacy.noise=reproducible")
    assert (done.code, done.err) == (0, "")
    assert "an owner, by canaries" in done.out
    assert "owners, by the last adapter" in done.out
    assert "of a budget of 9, one owner added or removed" in done.out
    assert "drawn from the seed" in done.out
    assert "No bound is above a promise" in done.out
    assert "proves no privacy" in done.out


def test_json_has_the_numbers_and_out_keeps_the_run(file, tmp_path):
    done = headwater("audit", file, "--json", "--quiet", "--out", tmp_path / "run", "--canaries", 30)
    assert done.code == 0
    found = json.loads(done.out)
    assert (
        found["promised"] == json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]["epsilon"]
    )
    assert len(Ledger(RunFolder(tmp_path / "run").ledger).events) == found["rounds"] == 2
    assert found["canaries"]["canaries"] == 30
    assert found["updates"] is None
    assert (found["budget"], found["broken"]) == (9.0, False)


def test_a_broken_promise_is_exit_code_1(file, monkeypatch):
    monkeypatch.setattr(private_sum, "discrete_gaussian", lambda sigma, size, _: np.zeros(size, np.int64))
    done = headwater("audit", file, "--quiet")
    assert done.code == 1
    assert "BROKEN: a lower bound is above the promise" in done.out


def test_what_cannot_be_is_an_error_in_a_line(file, tmp_path):
    done = headwater("audit", file, "--quiet", "--canaries", 1)
    assert done.code == 2
    assert "--canaries 1: expected 2 to 60, or 0" in done.error
    assert headwater("audit", tmp_path / "none.toml").code == 2
