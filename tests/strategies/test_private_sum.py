"""NoisedSum: how far a client moves it, what noise it gets, that nothing else decides; adaptive clips."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError, DecodeError, UpdateRejected
from headwater.merging.plan import MergePlan, PrivateSum, Update
from headwater.privacy.adaptive import next_clip, sum_multiplier
from headwater.privacy.noise import ReproducibleRandomness
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.private_sum import NoisedSum, independent

SPEC = StateSpec([TensorSpec("a", (3, 4), "other"), TensorSpec("b", (5,), "other")])
PRIVATE = PrivateSum(clip=0.5, multiplier=2.0, expected=4.0)


def silent(what, multiplier, longest, size):
    return np.zeros(size, np.int64), math.ceil(multiplier * longest)


def discrete(key):
    """Noise from this key, as a strategy draws it."""

    def draw(what, multiplier, longest, size):
        return independent(ReproducibleRandomness(key(what)))(what, multiplier, longest, size)

    return draw


def plan(count=8, private=PRIVATE):
    return MergePlan(SPEC, {f"c{i}": 1 for i in range(count)}, 1e6, private=private)


def update(name, values):
    delta = AdapterState.from_vector(SPEC, torch.as_tensor(values, dtype=torch.float32))
    return Update(name, 1, delta, 1, 1, {}, {})


def summed(rows, private=PRIVATE, draw=silent, count=8):
    rule = NoisedSum(draw)
    acc = rule.init(plan(count, private))
    for number, row in enumerate(rows):
        acc = rule.add(acc, update(f"c{number}", row))
    return rule, acc


rows_of = st.lists(st.lists(st.floats(-1e5, 1e5, width=32), min_size=17, max_size=17), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows_of, st.sampled_from([1e-6, 0.5, 3.0, 4096.0]))
def test_one_client_moves_the_sum_by_no_more_than_the_noise_is_for(rows, clip):
    """The sensitivity that the noise counts with, in units, over what single clients can send."""
    private, asked = replace(PRIVATE, clip=clip), {}

    def draw(what, multiplier, longest, size):
        noise, asked[what] = silent(what, multiplier, longest, size)
        return noise, asked[what]

    rule, whole = summed(rows, private, draw)
    _, others = summed(rows[1:], private)
    rule.finalize(whole)
    moved = float((summed(rows, private)[1].total - _without_first(rows, private)).double().norm())
    assert moved <= asked["sum"] / private.multiplier
    rounding = math.sqrt(17) / 2  # the worst that rounding to units adds, whether these rows reach it or not
    assert asked["sum"] >= private.multiplier * (clip * 2.0**private.bits + rounding)
    assert asked["sum"] / private.multiplier <= clip * 2.0**private.bits * (1 + 1e-3) + math.sqrt(17)
    assert others.total.dtype == torch.int64


def _without_first(rows, private):
    rule = NoisedSum(silent)
    acc = rule.init(plan(8, private))
    for number, row in list(enumerate(rows))[1:]:
        acc = rule.add(acc, update(f"c{number}", row))
    return acc.total


def test_without_noise_it_is_the_clipped_sum_over_the_expected_number():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(5, 17))
    rule, acc = summed(rows)
    clipped = rows * np.minimum(1, 0.5 / np.linalg.norm(rows, axis=1, keepdims=True))
    merged = rule.finalize(acc)
    assert np.allclose(merged.delta.vector(), clipped.sum(0) / 4.0, atol=1e-6)
    assert merged.clients == ("c0", "c1", "c2", "c3", "c4")


def test_groups_and_order_change_no_bit():
    rows = np.random.default_rng(4).normal(size=(6, 17))
    rule, whole = summed(rows)
    _, left = summed(rows[:2])
    right = rule.init(left.participants.plan)
    for number in (5, 3, 2, 4):
        right = rule.add(right, update(f"c{number}", rows[number]))
    both = rule.combine(right, left)
    assert torch.equal(both.total, whole.total)
    assert both.short == whole.short


def test_units_and_divisor_are_those_of_the_plan_whoever_answers():
    few, many = plan(1), plan(1000)
    assert few.private.bits == many.private.bits
    rule = NoisedSum(silent)
    alone = rule.finalize(rule.add(rule.init(few), update("c0", np.full(17, 0.01)))).delta
    among = rule.finalize(rule.add(rule.init(many), update("c0", np.full(17, 0.01)))).delta
    assert alone == among


def test_a_round_of_nobody_is_noise_alone():
    key = Key.root(1)
    rule = NoisedSum(discrete(key.child))
    merged = rule.finalize(rule.init(MergePlan(SPEC, {}, 1.0, private=PRIVATE)))
    assert merged.clients == ()
    assert merged.delta.norm() > 0
    assert merged.report["noise_std"] == pytest.approx(2.0 * 0.5 / 4.0)


def test_noise_has_no_bias_and_its_variance():
    key, many = Key.root(2), 400
    rows = [np.full(17, 0.05)]
    found = []
    for n in range(many):
        rule, acc = summed(
            rows,
            draw=discrete(lambda _, n=n: key.child(n)),
        )
        found.append(rule.finalize(acc).delta.vector().numpy())
    values, std = np.array(found), 2.0 * 0.5 / 4.0
    assert abs(values.mean() - 0.05 / 4.0) < 5 * std / math.sqrt(values.size)
    assert values.var() == pytest.approx(std**2, rel=5 * math.sqrt(2 / values.size))


@pytest.mark.parametrize(
    ("clip", "multiplier"), [(1e-9, 1e-3), (1e-6, 1), (1.0, 2.0**14), (2.0**16, 2.0**14)]
)
def test_sums_and_noise_fit_int64(clip, multiplier):
    private = PrivateSum(clip, multiplier, 10.0)
    unit = 2.0**private.bits
    most = PrivateSum.MOST_CLIENTS * (clip * unit + 1) + 28 * 2 * multiplier * (clip * unit + 2**12)
    assert most < 2**62
    assert 2 * multiplier * (clip * unit + 2**12) < 2**50


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e7])
def test_values_that_are_none_change_nothing(bad):
    rule, acc = summed([np.full(17, 0.01)])
    before = acc.total.clone()
    row = np.full(17, 0.1)
    row[3] = bad
    with pytest.raises(UpdateRejected, match="client c1"):
        rule.add(acc, update("c1", row))
    assert torch.equal(acc.total, before)
    with pytest.raises(UpdateRejected):
        rule.add(acc, update("c0", np.zeros(17)))


def test_weights_other_than_one_and_sums_of_others_are_refused():
    with pytest.raises(ConfigError, match="weight 1"):
        NoisedSum(silent).init(replace(plan(2), weights={"c0": 1, "c1": 2}))
    with pytest.raises(ConfigError, match="private sum"):
        NoisedSum(silent).init(replace(plan(2), private=None))
    rule, acc = summed([np.zeros(17)])
    with pytest.raises(DecodeError, match="edge aggregator"):
        rule.require_sound(acc)


@pytest.mark.parametrize(("share", "clip"), [(0.9, 0.0923116346), (0.5, 0.1), (0.2, 0.1061836546)])
def test_f14_the_bound_follows_the_quantile(share, clip):
    assert next_clip(0.1, share, 0.5, 0.2) == pytest.approx(clip, rel=1e-9)


def test_the_counts_noise_is_in_the_price():
    """Andrew et al. 2021, theorem 1, at z = 1 and σ_b = 100/20; and what both cost together is z again."""
    assert sum_multiplier(1.0, 5.0) == pytest.approx(1.0050, abs=1e-4)
    both = sum_multiplier(1.0, 5.0) ** -2 + (2 * 5.0) ** -2
    assert both == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="count_noise"):
        sum_multiplier(1.0, 0.55)


def test_adaptive_clipping_counts_the_short_updates_over_the_expected_number():
    private = PrivateSum(0.5, 1.0, 4.0, count_sigma=5.0)
    short, long = np.full(17, 0.01), np.full(17, 1.0)
    rule, acc = summed([short, short, short, long], private)
    merged = rule.finalize(acc)
    assert merged.report["short"] == 0.75
    assert merged.clip == pytest.approx(next_clip(0.5, 0.75, 0.5, 0.2))
    assert merged.report["noise_std"] == pytest.approx(sum_multiplier(1.0, 5.0) * 0.5 / 4.0)
    nobody = rule.finalize(rule.init(MergePlan(SPEC, {}, 1.0, private=private)))
    assert nobody.report["short"] == 0.5
