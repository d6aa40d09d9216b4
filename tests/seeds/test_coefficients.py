"""SeedCoefficients: F5 of FedKSeed, exact expansion, noise with a known answer, hostile input."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import UpdateRejected
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan, directions_of, to_float32
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key

PLAN = SeedPlan(8, 16, "rademacher", 10, 12)
STEPS = st.lists(st.tuples(st.integers(8, 23), st.integers(-32767, 32767)), max_size=12)


def ints(*values):
    return np.array(values, np.int64)


@given(STEPS)
def test_sums_count_every_step_of_a_seed(steps):
    scalars = SeedCoefficients.of(PLAN, steps)
    scalars.require(PLAN, "client a")
    assert sorted(zip(scalars.seeds.tolist(), scalars.coefficients.tolist(), strict=True)) == sorted(steps)
    expected = [sum(c for s, c in steps if s == seed) for seed in range(8, 24)]
    assert scalars.sums.tolist() == expected


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@settings(max_examples=30)
@given(STEPS)
def test_expansion_rounds_once(distribution, steps):
    plan = replace(PLAN, distribution=distribution)
    family = directions_of(plan, Key.root(0), 21)
    exact = [
        sum(Fraction(c, 2**10) * Fraction(float(family.values(s)[i])) for s, c in steps) for i in range(21)
    ]
    got = SeedCoefficients.of(plan, steps).expand(family)
    assert got.dtype == np.float32
    assert got.tolist() == [float(np.float32(float(value))) for value in exact]


def test_to_float32_is_exact_where_float32_is():
    assert to_float32(ints(3, -(2**24), 0, 2**24 + 1), 1).tolist() == [1.5, -(2.0**23), 0.0, 2.0**23]


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_noise_is_the_distance_from_the_mean(distribution):
    """40 steps −ηgz with slopes g = z·∇ of one gradient, 8 of them along one seed: the mean over the
    directions is −40η∇, and the squared distance from it what ``noise`` says. 1,000 draws, standard error
    below 4 %, bound 10 %; steps of a seed counted one by one would give 42 %."""
    size, bits = 50, 14
    plan = SeedPlan(0, 33, distribution, bits, 40)
    family = directions_of(plan, Key.root(1), size)
    rng = np.random.default_rng(0)
    gradient = rng.standard_normal(size) / 20
    told, found = [], []
    for draw in range(1000):
        seeds = np.concatenate([np.arange(33) + 33 * draw, np.full(7, 33 * draw)])
        z = np.stack([family.values(int(s)) for s in seeds[:33]]).astype(np.float64)
        own = replace(plan, first=33 * draw)
        slopes = z @ gradient
        q = np.rint(-0.5 * np.concatenate([slopes, np.full(7, slopes[0])]) * 2.0**bits).astype(np.int64)
        scalars = SeedCoefficients.of(own, list(zip(seeds.tolist(), q.tolist(), strict=True)))
        steps = np.concatenate([q[:1] + q[33:].sum(), q[1:33]]) * 2.0**-bits
        delta = steps @ z
        told.append(scalars.noise(size))
        found.append(float(np.sum((delta + 0.5 * 40 * gradient) ** 2)))
    assert np.std(found) / np.sqrt(1000) < 0.04 * np.mean(found)
    gaussian = {"rademacher": 1.0, "gaussian": (size + 1) / (size - 1)}[distribution]
    assert np.mean(found) == pytest.approx(np.mean(told) * gaussian, rel=0.1)


@pytest.mark.parametrize("size", [40, 100_000])
def test_energy_is_the_squared_norm(size):
    """Exact for few values; with many, all but what 12 directions have in common by chance (1.2 %)."""
    rng = np.random.default_rng(2)
    scalars = SeedCoefficients.of(
        PLAN, [(int(s), int(c)) for s, c in rng.integers((8, -32767), (24, 32768), (12, 2))]
    )
    family = directions_of(PLAN, Key.root(0), size)
    exact = float(np.sum(scalars.expand(family).astype(np.float64) ** 2))
    assert scalars.energy(family) == pytest.approx(exact, rel=1e-6 if size == 40 else 0.02)
    assert SeedCoefficients.of(PLAN, []).energy(family) == 0.0


# --- hostile ---

GOOD = SeedCoefficients(PLAN, ints(8, 8, 23), ints(5, -32767, 32767))


@pytest.mark.parametrize(
    ("scalars", "got"),
    [
        (replace(GOOD, plan=replace(PLAN, unit_bits=11)), "another plan"),
        (replace(GOOD, plan=replace(PLAN, first=7)), "another plan"),
        (replace(GOOD, seeds=ints(7, 8, 9)), "seeds 7 to 9"),
        (replace(GOOD, seeds=ints(8, 9, 24)), "seeds 8 to 24"),
        (replace(GOOD, seeds=ints(-(2**63), 8, 9)), "seeds -9223372036854775808 to 9"),
        (replace(GOOD, coefficients=ints(1, 2, 32768)), "coefficients 1 to 32768"),
        (replace(GOOD, coefficients=ints(1, 2, -32768)), "coefficients -32768 to 2"),
        (replace(GOOD, coefficients=ints(1, 2, -(2**63))), "coefficients -9223372036854775808 to 2"),
        (replace(GOOD, coefficients=ints(1, 2)), "arrays"),
        (replace(GOOD, coefficients=np.array([1.0, 2.0, np.nan])), "arrays"),
        (replace(GOOD, seeds=ints(8, 8, 23).reshape(3, 1)), "arrays"),
        (SeedCoefficients(PLAN, np.full(13, 8), np.zeros(13, np.int64)), "13 coefficients"),
    ],
)
def test_what_breaks_the_plan_is_refused_by_name(scalars, got):
    GOOD.require(PLAN, "client edge-7")
    with pytest.raises(UpdateRejected, match=f"client edge-7, scalars.*{got}"):
        scalars.require(PLAN, "client edge-7")


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 1), (1, 0, 2), (0, 1, 2, 2)])
def test_an_implied_plan_takes_one_coefficient_for_each_seed(seeds):
    plan = SeedPlan(0, 3, "rademacher", 4, 8, implied=True)
    SeedCoefficients(plan, ints(0, 1, 2), ints(1, 2, 3)).require(plan, "client a")
    with pytest.raises(UpdateRejected, match="not one for each seed"):
        SeedCoefficients(plan, ints(*seeds), np.ones(len(seeds), np.int64)).require(plan, "client a")


def test_the_directions_are_the_federations():
    family = directions_of(PLAN, Key.root(5), 9)
    assert family == Directions.of(Key.root(5).child("seeds", "rademacher"), "rademacher", 9)
    assert family == directions_of(replace(PLAN, first=99, unit_bits=3), Key.root(5), 9)  # of every round
