"""AUC, its interval and the rates at low false positives; LiRA where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.privacy.audit.lira import likelihood_ratios, log_odds
from headwater.privacy.audit.membership import Membership

few = st.lists(st.integers(-3, 3), min_size=2, max_size=30)


@settings(max_examples=50, deadline=None)
@given(few, few)
def test_auc_is_the_share_of_pairs_in_order(members, strangers):
    pairs = [(a > b) + (a == b) / 2 for a in members for b in strangers]
    found = Membership.of(members, strangers, rates=())
    assert found.auc.value == pytest.approx(np.mean(pairs))
    assert 0 <= found.auc.low <= found.auc.value <= found.auc.high <= 1


def test_delongs_interval_covers_the_truth():
    """Two Gaussians one standard deviation apart: AUC Φ(1/√2) = 0.7602."""
    rng, truth = np.random.default_rng(1), 0.76025
    hits = 0
    for _ in range(300):
        auc = Membership.of(rng.normal(1, 1, 60), rng.normal(0, 1, 90), rates=()).auc
        hits += auc.low <= truth <= auc.high
    assert 0.92 <= hits / 300 <= 0.99


def test_no_more_strangers_pass_than_the_rate_allows():
    strangers = np.arange(1000.0)
    members = np.concatenate([np.full(30, 2000.0), np.full(20, 989.5), np.full(50, -1.0)])
    tpr = Membership.of(members, strangers).tpr
    assert tpr[0.001].value == 0.3  # one stranger may pass: the threshold is 998
    assert tpr[0.01].value == 0.5  # ten may
    tied = Membership.of([1.0] * 50, [1.0] * 50 + [0.0] * 50, rates=(0.01,))
    assert tied.tpr[0.01].value == 0  # a threshold cannot part what is alike


def test_members_that_are_all_apart_have_an_interval_too():
    auc = Membership.of([5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0]).auc
    assert auc == (1.0, pytest.approx(0.2924, abs=1e-4), 1.0)  # three of three


@pytest.mark.parametrize("members", [[], [1.0], [1.0, math.nan]])
def test_scores_that_say_nothing_are_refused(members):
    with pytest.raises(ConfigError, match="scores of members"):
        Membership.of(members, [1.0, 2.0])


def test_log_odds_of_losses():
    p = np.array([1e-6, 0.2, 0.5, 0.999])
    assert np.allclose(log_odds(-np.log(p)), np.log(p / (1 - p)))
    assert np.isfinite(log_odds([0.0, 800.0])).all()


def played(runs, candidates, effect, seed):
    """Runs with known Gaussians: a level of each candidate's own, and an effect of having been seen."""
    rng = np.random.default_rng(seed)
    inside = np.argsort(rng.random((runs, candidates)), axis=0) < runs // 2  # each in half of the runs
    level = rng.normal(0, 5, candidates)
    return level + effect * inside + rng.normal(0, 1, (runs, candidates)), inside


def auc_of(scores, inside):
    return Membership.of(scores[inside], scores[~inside]).auc.value


def test_lira_finds_what_levels_hide():
    """What a threshold over all candidates sees little of; the best possible test has AUC Φ(2/√2) = 0.921."""
    scores, inside = played(16, 400, 2.0, seed=2)
    assert auc_of(scores, inside) < 0.65
    online = auc_of(likelihood_ratios(scores, inside), inside)
    offline = auc_of(likelihood_ratios(scores, inside, offline=True), inside)
    assert 0.86 < offline <= online + 0.02
    assert 0.88 < online < 0.94


@pytest.mark.parametrize("runs", [6, 12])
def test_lira_of_nothing_is_chance(runs):
    """Also with few shadows, where each run's own side has one less."""
    scores, inside = played(runs, 3000, 0.0, seed=3)
    assert auc_of(likelihood_ratios(scores, inside), inside) == pytest.approx(0.5, abs=0.012)


def test_a_run_is_not_its_own_shadow():
    scores, inside = played(8, 5, 1.0, seed=4)
    before = likelihood_ratios(scores, inside)
    scores[3] += 100
    moved = likelihood_ratios(scores, inside)
    assert np.array_equal(np.sign(moved[3]), np.ones(5))
    means = (scores[:3].sum(0) + scores[4:].sum(0)) / 7
    assert np.isfinite(means).all()
    assert not np.allclose(moved[0], before[0])


def test_candidates_without_shadows_are_refused():
    scores, inside = played(4, 3, 1.0, seed=5)
    inside[:, 1] = True
    with pytest.raises(ConfigError, match="shadow runs"):
        likelihood_ratios(scores, inside)
    with pytest.raises(ConfigError, match="shadow runs"):
        likelihood_ratios(scores[:, :2], inside)
