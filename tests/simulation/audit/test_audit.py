"""Audits of whole runs: below the promise where it holds, above it where noise is taken away."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.config import load_federation
from headwater.data.federated import FederatedData
from headwater.errors import ConfigError, DataError
from headwater.seeds.keys import Key
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.audit.audit import audit_federation, audited
from headwater.simulation.audit.stand_ins import StandIns
from headwater.state import StateSpec, TensorSpec
from headwater.strategies import private_sum
from tests.support.runs import bare_federation, tiny_federation

POISSON = {"sampling": "poisson", "clients_per_round": 4, "population": 8}
PRIVATE = {"clip_l2": 0.5, "noise_multiplier": 3.0, "delta": 1e-5, "noise": "reproducible"}


def written(folder, **tables):
    return bare_federation(
        folder,
        size=60,
        **{
            "federation": {"rounds": 2},
            "data": {"clients": 8},
            "strategy": {"kind": "mean", "weighting": "equal"},
            "codec": {"up": {"kind": "dense"}},
            "cohort": POISSON,
            "privacy": PRIVATE,
            **tables,
        },
    )


def audit(file, out, *overrides, canaries=None):
    loaded = audited(load_federation(file, overrides))
    return audit_federation(loaded, RunFolder.create(out, loaded, {"engine": "inprocess"}), canaries=canaries)


NOISED = {
    "poisson": {},
    "everyone": {"cohort": {"population": 8}},
    "fixed": {"cohort": {"clients_per_round": 4, "population": 8, "min_clients": 8}},
    "adaptive": {"privacy": {**PRIVATE, "adaptive": {"quantile": 0.5, "count_noise": 2.0}}},
    "tree": {"cohort": {"population": 8}, "privacy": {**PRIVATE, "mechanism": "tree"}},
    "sparse": {"codec": {"up": {"kind": "compeft", "density": 0.5, "error_feedback": False}}},
}


@pytest.mark.parametrize("case", NOISED)
def test_no_bound_is_above_the_promise(case, tmp_path):
    pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
    found = audit(written(tmp_path, **NOISED[case]), tmp_path / "run")
    assert found.promised is not None
    assert 0 <= found.at_least < found.promised
    assert found.owners.epsilon < found.promised
    assert not found.broken
    assert found.rounds == 2
    assert (found.canaries is None) == (case == "fixed")
    if found.canaries is not None:
        assert found.canaries.canaries == 60
    if case in ("everyone", "tree"):  # Gaussians without sampling, of which this bound is
        assert found.canaries.gaussian < found.promised


def test_a_sum_without_noise_is_caught(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
    file = written(tmp_path, cohort={"population": 8}, training={"scale": 1e-3})
    monkeypatch.setattr(
        private_sum, "discrete_gaussian", lambda sigma, size, source: np.zeros(size, np.int64)
    )
    found = audit(file, tmp_path / "run")
    assert found.canaries.right == found.canaries.guesses
    assert found.at_least > found.promised
    assert found.broken


def test_the_same_seed_finds_the_same(tmp_path):
    pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
    file = written(tmp_path)
    first, again = (audit(file, tmp_path / name, canaries=20) for name in "ab")
    assert first == again
    assert first.canaries.canaries == 20


def test_without_noise_owners_and_rows_are_told_and_nothing_is_promised(tmp_path):
    owners = {f"o{number}": 24 for number in range(6)}
    file = tiny_federation(
        tmp_path, owners=owners, federation={"rounds": 1}, cohort={"min_clients": 6},
        training={"max_steps": 2},
    )  # fmt: skip
    found = audit(file, tmp_path / "run")
    assert (found.promised, found.canaries, found.broken) == (None, None, False)
    assert found.membership.members + found.membership.strangers == 6
    assert found.updates.owners == 6
    assert found.updates.promised is None
    assert 80 < found.updates.membership.members + found.updates.membership.strangers <= 6 * 24


def test_rows_of_private_updates_stay_below_their_own_promise(tmp_path):
    pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
    private = {"noise_multiplier": 1.0, "delta": 1e-3, "noise": "reproducible"}
    file = tiny_federation(
        tmp_path,
        owners={f"o{number}": 12 for number in range(4)},
        federation={"rounds": 1},
        data={"validation_fraction": 0.0},
        training={"max_steps": 2, "max_grad_norm": 1.0, "privacy": private},
    )
    found = audit(file, tmp_path / "run").updates
    assert found.bound.delta == 1e-3
    assert 0 <= found.bound.epsilon < found.promised


SPEC = StateSpec((TensorSpec("a", (10,), "other"),))


@pytest.mark.parametrize("case", ["poisson", "tree"])
def test_who_is_out_is_away_or_sends_zeros_and_a_canary_its_own_value(case, tmp_path):
    settings = load_federation(written(tmp_path, **NOISED[case])).settings
    names = [f"o{number}" for number in range(8)]
    who = StandIns.of(settings, names, SPEC, 10)
    assert sorted(who.places.tolist()) == list(range(10))
    inside = [*np.array(names)[who.inside], *np.array(who.canaries)[who.canaries_inside]]
    assert set(who.rows_of) == {*(inside if case == "poisson" else [*names, *who.canaries])}
    for name, mark in zip(who.owners, who.inside, strict=True):
        assert who.trains(name) == mark
        if not mark:
            assert who.sent(name, SPEC).norm() == 0
    for name, place, mark in zip(who.canaries, who.places, who.canaries_inside, strict=True):
        values = np.zeros(10)
        values[place] = 0.5 * mark
        assert not who.trains(name)
        assert who.sent(name, SPEC).vector().tolist() == values.tolist()


@pytest.mark.parametrize("canaries", [-1, 1, 11])
def test_canaries_that_cannot_be_are_refused(tmp_path, canaries):
    settings = load_federation(written(tmp_path)).settings
    with pytest.raises(ConfigError, match=rf"--canaries {canaries}: expected 2 to 10, or 0"):
        StandIns.of(settings, list("abcd"), SPEC, canaries)


def test_canaries_without_a_bound_or_in_owners_places_are_refused(tmp_path):
    fixed = load_federation(written(tmp_path, **NOISED["fixed"])).settings
    with pytest.raises(ConfigError, match="take owners' places"):
        StandIns.of(fixed, list("abcd"), SPEC, 4)
    plain = load_federation(bare_federation(tmp_path)).settings
    with pytest.raises(ConfigError, match="how loud"):
        StandIns.of(plain, list("abcd"), SPEC, 4)
    with pytest.raises(ConfigError, match="four owners"):
        StandIns.of(plain, list("abc"), SPEC, None)
    with pytest.raises(ConfigError, match="none of a canary"):
        StandIns.of(load_federation(written(tmp_path)).settings, ["canary-000001", *"abc"], SPEC, None)


def test_attackers_and_coefficients_are_refused(tmp_path):
    attackers = {"attackers": [{"kind": "flip", "fraction": 0.5}]}
    with pytest.raises(ConfigError, match="honest clients"):
        audited(load_federation(bare_federation(tmp_path, simulation=attackers)))
    seeds = tiny_federation(tmp_path, training={"kind": "kseed", "batch_size": None}, codec={"up": None})
    with pytest.raises(ConfigError, match="whose updates are values"):
        audited(load_federation(seeds))


def test_rows_are_dealt_to_other_names(tmp_path):
    loaded = load_federation(bare_federation(tmp_path))
    data = FederatedData.open(loaded, None, Key.root(0))
    owner = data.clients[0]
    dealt = data.dealt({"x": owner, "a": owner})
    assert dealt.clients == ("a", "x")
    assert dealt.rows("x") == data.rows(owner)
    assert not dealt.has(owner)
    assert data.has(owner)
    with pytest.raises(DataError):
        data.dealt({"x": "nobody"})


def test_a_budget_of_no_round_is_said(tmp_path):
    pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
    with pytest.raises(ConfigError, match="a budget that holds a round"):
        audit(written(tmp_path), tmp_path / "run", "privacy.epsilon=0.01")
