"""Merge transforms: what each notes of a round and gives on, and that the strategy puts them in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headwater.errors import HeadwaterError, SpecMismatch
from headwater.merging import Merged
from headwater.merging.plan import NoisePlan
from headwater.seeds.slopes import SeedUse
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies import FederatedStrategy, ServerState
from headwater.strategies.merge_transforms import (
    RememberNoise,
    RememberSlopes,
    ScaleCoefficients,
    merge_transforms,
)
from tests.strategies.test_federated import SPEC, federation, vector

SEEDS = {"kind": "kseed", "max_steps": 3, "seeds": 8}


def seeded(rate: float = 1.0, **training: Any) -> tuple[FederatedStrategy, ServerState]:
    strategy = FederatedStrategy(
        federation(training={**SEEDS, **training}, strategy={"kind": "mean", "server_learning_rate": rate})
    )
    return strategy, strategy.init(vector(0.0, 1.0))


def coefficients(*values: int) -> Merged:
    return Merged(vector(0, 0), ("a",), 1, coefficients=np.array(values, np.int64))


def test_the_noise_plan_of_the_last_round_that_had_one_is_kept() -> None:
    server = ServerState(3, vector(0, 0))
    told = NoisePlan(0.5, {"a": 1.0})
    merged = Merged(vector(1, 1), ("a",), 1, noise=told)
    noted, given = RememberNoise().apply(server, merged)
    assert (noted, given) == (replace(server, noise=told), merged)
    silent = Merged(vector(1, 1), ("a",), 1)
    assert RememberNoise().apply(noted, silent)[0].noise is told


def test_slopes_are_noted_at_the_rate_of_their_round() -> None:
    strategy, server = seeded(pro=True, final_learning_rate_fraction=0.0)
    use = SeedUse(np.arange(8), np.ones(8, np.int64))
    _, slopes, _ = merge_transforms(strategy.federation)
    assert isinstance(slopes, RememberSlopes)
    merged = replace(coefficients(*range(8)), use=use)
    late = replace(server, round=2)
    assert server.seed_slopes is not None
    noted = slopes.apply(late, merged)[0].seed_slopes
    assert noted is not None
    assert noted.sums.tolist() == [2.0 * length for length in range(8)]  # at half the rate: round 3 of 5
    assert slopes.apply(late, coefficients(*range(8)))[0] is late  # a round that tells nothing


@pytest.mark.parametrize(("rate", "given"), [(1.0, [3, -4, 5]), (0.5, [2, -2, 2]), (2.0, [6, -8, 10])])
def test_coefficients_are_scaled_to_whole_ones_ties_to_even(rate: float, given: list[int]) -> None:
    _, server = seeded()
    after = ScaleCoefficients(rate).apply(server, coefficients(3, -4, 5))[1].coefficients
    assert after is not None
    assert after.dtype == np.int64
    assert after.tolist() == given


def test_values_in_a_federation_of_coefficients_are_refused_and_let_through_after_a_rollback() -> None:
    _, server = seeded()
    values = Merged(vector(1, 1), ("a",), 1)
    with pytest.raises(HeadwaterError, match="round 1"):
        ScaleCoefficients(1.0).apply(server, values)
    other = AdapterState.zeros(StateSpec.of([TensorSpec("w", (3,), "vector")]))
    with pytest.raises(SpecMismatch, match="round 1"):
        ScaleCoefficients(1.0).apply(server, Merged(other, ("a",), 1))
    dense = replace(server, seeded_state=None)
    assert ScaleCoefficients(1.0).apply(dense, values) == (dense, values)


def test_a_federation_has_the_transforms_that_it_needs_and_the_strategy_applies_them() -> None:
    plain = [type(t) for t in merge_transforms(federation())]
    assert plain == [RememberNoise, ScaleCoefficients]
    strategy, server = seeded(rate=0.5, pro=True)
    assert [type(t) for t in merge_transforms(strategy.federation)] == [
        RememberNoise, RememberSlopes, ScaleCoefficients,
    ]  # fmt: skip
    told = NoisePlan(0.5, {"a": 1.0})
    after = strategy.update(server, replace(coefficients(3, 1, *[0] * 6), noise=told))
    assert after.round == 1
    assert after.noise is told
    assert after.seeded_state is not None
    assert after.seeded_state.sums.tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
    assert after.state.spec == SPEC
