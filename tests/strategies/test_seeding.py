"""Which seeds a round has, and in which unit their coefficients are."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.training import (
    BackpropTraining,
    BlackboxTraining,
    DecomflTraining,
    KseedTraining,
    MezoTraining,
)
from headwater.seeds.coefficients import SeedPlan
from headwater.strategies.seeding import round_seeds, seed_plan, seeds_only, unit_bits
from tests.strategies.test_federated import federation


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_the_unit_is_the_finest_in_which_the_largest_step_fits(step: float) -> None:
    u = unit_bits(step)
    assert Fraction(step) * Fraction(2) ** u <= 32767 < Fraction(step) * Fraction(2) ** (u + 1)


@pytest.mark.parametrize(
    ("step", "bits"), [(32767.0, 0), (32767.001, -1), (1.0, 14), (0.5, 15), (2.0**-8, 22)]
)
def test_units_by_hand(step: float, bits: int) -> None:
    assert unit_bits(step) == bits


def test_kseed_has_the_same_seeds_in_every_round() -> None:
    training = KseedTraining(kind="kseed", learning_rate=2.0**-10, gradient_bound=4.0)
    assert seed_plan(training, 1) == seed_plan(training, 9) == SeedPlan(0, 4096, "rademacher", 22, 200)


def test_decomfl_has_new_ones_for_each_direction_of_each_step() -> None:
    training = DecomflTraining(
        kind="decomfl", max_steps=3, directions=4, learning_rate=2.0**-10, gradient_bound=16.0
    )
    # a step along one of 4 directions is at most 2^-10·16/4 = 2^-8
    assert [seed_plan(training, r) for r in (1, 3)] == [
        SeedPlan(first, 12, "rademacher", 22, 12, implied=True) for first in (0, 24)
    ]


def test_the_black_box_has_one_for_each_coordinate() -> None:
    training = BlackboxTraining(kind="blackbox", dimensions=10, scale=2.0**-3)
    assert seed_plan(training, 5) == SeedPlan(0, 10, "gaussian", 14, 10, implied=True)


def test_methods_that_send_deltas_have_none() -> None:
    assert seed_plan(BackpropTraining(kind="backprop"), 1) is None
    assert seed_plan(MezoTraining(kind="mezo"), 1) is None
    assert round_seeds(federation(), 1) is None


def test_one_plan_serves_kseed_clients_of_different_steps() -> None:
    slow = {"training": {"kind": "kseed", "max_steps": 20}}
    mixed = federation(
        training={"kind": "kseed", "max_steps": 50},
        methods={"slow": slow},
        assignment={"kind": "clients", "clients": {"s*": "slow"}},
    )
    plan = round_seeds(mixed, 2)
    assert plan is not None
    assert plan.entries == 50
    assert seeds_only(mixed)


def test_seeds_only_means_every_method_and_a_plain_mean() -> None:
    kseed = {"kind": "kseed"}
    assert seeds_only(federation(training=kseed))
    assert not seeds_only(federation())
    assert not seeds_only(federation(training=kseed, strategy={"kind": "mean", "server_momentum": 0.5}))
    mixed = federation(
        training=kseed,
        methods={"big": {"training": {"kind": "backprop"}}},
        assignment={"kind": "shares", "shares": {"default": 1.0}},
    )
    assert not seeds_only(mixed)
