from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from headwater.errors import ConfigError, UpdateRejected
from headwater.merging import FisherAggregator, MeanAggregator
from headwater.merging.fixed_point import (
    BLOCK,
    add_fixed,
    float32_at_most,
    from_fixed,
    require_bounded,
    to_fixed,
)
from headwater.merging.plan import MergePlan
from headwater.state import StateSpec, TensorSpec
from tests.laws.aggregator_laws import update_of

SPEC = StateSpec.of([TensorSpec("a", (2,), "vector"), TensorSpec("b", (1, 3), "vector")])


@given(
    st.lists(st.integers(1, 2**42), min_size=1, max_size=4),
    st.floats(2.0**-30, 2.0**8, exclude_min=True),
)
def test_no_sum_can_overflow(weights: list[int], bound: float) -> None:
    plan = MergePlan(SPEC, {str(i): w for i, w in enumerate(weights)}, bound)
    bits = plan.scale_bits()
    largest = plan.total_weight * (Fraction(bound) * 2**bits + Fraction(1, 2))
    assert largest <= 2**62
    assert plan.total_weight * round(Fraction(bound) * 2**bits) <= 2**62
    if bits < 52:  # and no bits are wasted: three more would overflow in the worst case
        assert plan.total_weight * Fraction(bound) * 2 ** (bits + 3) > 2**61


def test_the_bound_is_not_slack_by_more_than_three_bits() -> None:
    plan = MergePlan(SPEC, {"a": 2**20 - 1}, 16.0)
    assert (2**20 - 1) * 16 * 2 ** (plan.scale_bits() + 3) > 2**63 - 1


def test_too_much_weight_is_a_config_error() -> None:
    plan = MergePlan(SPEC, {"a": 2**49 - 1}, 16.0)
    assert plan.scale_bits() == 8
    with pytest.raises(ConfigError, match="total weight"):
        MergePlan(SPEC, {"a": 2**49}, 16.0).scale_bits()


@pytest.mark.parametrize("weights", [[2**48 - 1, 2**48], [1], [2**30 - 1] * 5, [2**49 - 2, 1]])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_at_the_limit_match_python_integers(weights: list[int], sign: int) -> None:
    plan = MergePlan(SPEC, {str(i): w for i, w in enumerate(weights)}, 16.0)
    rule = MeanAggregator()
    acc = rule.init(plan)
    for client in plan.weights:
        acc = rule.add(acc, update_of(SPEC, client, [sign * 16.0] * 5))
    exact = sum(w * sign * 16 * 2 ** plan.scale_bits() for w in weights)
    assert acc.methods[""].total.tolist() == [exact] * 5
    assert rule.finalize(acc).delta.vector().tolist() == [sign * 16.0] * 5


@pytest.mark.parametrize("sign", [1, -1])
def test_fisher_products_at_the_limit_match_python_integers(sign: int) -> None:
    weights = [2**30 - 1, 2**30, 2**30]
    plan = MergePlan(SPEC, {str(i): w for i, w in enumerate(weights)}, 16.0)
    rule = FisherAggregator(cap=256.0)
    acc = rule.init(plan)
    value = float(np.nextafter(np.float32(16), np.float32(0)))
    for client in plan.weights:
        acc = rule.add(acc, update_of(SPEC, client, [sign * value] * 5, [1.0, 1.0, 0.0, 1 / 3, 256.0 / 100]))
    fisher = np.float32([1.0, 1.0, 0.0, 1 / 3, 2.56]).tolist()
    for i, f in enumerate(fisher):
        held = Fraction(acc.product[i].item(), 2**acc.product_bits)
        held += Fraction(acc.remainder[i].item(), 2 ** (acc.product_bits + acc.remainder_bits))
        exact = sum(weights) * Fraction(f) * Fraction(sign * value)
        assert abs(held - exact) <= sum(weights) * Fraction(
            1, 2 ** (acc.product_bits + acc.remainder_bits + 1)
        )


@given(st.floats(-16, 16, width=32), st.integers(8, 52))
def test_float32_rounds_once_half_to_even(value: float, bits: int) -> None:
    fixed = to_fixed(torch.tensor([value], dtype=torch.float32), bits)
    assert fixed.tolist() == [round(Fraction(value) * 2**bits)]


@given(st.floats(-16, 16), st.integers(8, 52))
def test_float64_rounds_once_half_to_even(value: float, bits: int) -> None:
    fixed = to_fixed(torch.tensor([value], dtype=torch.float64), bits)
    assert fixed.tolist() == [round(Fraction(value) * 2**bits)]
    assert abs(from_fixed(fixed, bits).item() - value) <= 2.0 ** -(bits + 1)


def test_half_units_go_to_even() -> None:
    assert to_fixed(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]) * 2.0**-8, 8).tolist() == [0, 2, 2, 0, -2]


def test_threads_do_not_matter() -> None:
    values = torch.randn(300_001, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = to_fixed(values, 40)
        torch.set_num_threads(2)
        assert torch.equal(to_fixed(values, 40), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("index", "tensor"), [(0, "tensor a"), (1, "tensor a"), (2, "tensor b"), (4, "tensor b")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 4.0000005, -4.0000005])
def test_refusals_name_client_and_tensor(index: int, tensor: str, value: float) -> None:
    vector = torch.tensor([4.0, -4.0, 0.0, -0.0, 1.0])
    require_bounded(vector, SPEC, bound=4.0, who="client edge-7")
    vector[index] = value
    with pytest.raises(UpdateRejected, match=rf"client edge-7, {tensor}: .*\[-4, 4\]"):
        require_bounded(vector, SPEC, bound=4.0, who="client edge-7")


@given(st.one_of(st.floats(2.0**-160, 2.0**130), st.floats(2.0**-8, 2.0**20)))
@example(0.1)  # the nearest fp32 is larger
@example(300.1)
@example(2.0**-149)
@example(2.0**-150)  # half the smallest fp32
@example(2.0**129)  # above the largest
def test_bounds_that_float32_cannot_hold(bound: float) -> None:
    limit = float32_at_most(bound)
    with np.errstate(over="ignore"):
        above = np.nextafter(np.float32(limit), np.float32(np.inf))
    assert Fraction(limit) <= Fraction(bound)
    assert limit == np.float32(limit)
    assert above == np.inf or Fraction(float(above)) > Fraction(bound)  # no larger fp32 would do
    inside = torch.tensor([limit, -limit, 0.0, limit, -limit])
    require_bounded(inside, SPEC, bound=bound, who="x")
    require_bounded(inside.abs(), SPEC, bound=bound, who="x", non_negative=True)
    for value in (float(above), -float(above)):
        outside = torch.tensor([0.0, value, 0.0, 0.0, limit])
        for non_negative in (False, True):
            with pytest.raises(UpdateRejected, match=r"x, tensor a: .*\(1 such"):
                require_bounded(outside, SPEC, bound=bound, who="x", non_negative=non_negative)


@pytest.mark.parametrize("bound", [0.1, 300.1, 1.0000001])
def test_the_float32_nearest_to_a_bound_never_ends_the_server(bound: float) -> None:
    vector = torch.tensor([0.0, 0.0, bound, 0.0, 0.0])  # 0.1, rounded to fp32, is above 0.1
    assert float(vector[2]) > bound
    with pytest.raises(UpdateRejected, match="x, tensor b"):
        require_bounded(vector, SPEC, bound=bound, who="x")


def test_negative_values_are_refused_on_request() -> None:
    vector = torch.tensor([0.0, -0.0, 0.0, 4.0, 1e-45])
    require_bounded(vector, SPEC, bound=4.0, who="x", non_negative=True)
    with pytest.raises(UpdateRejected, match=r"tensor b: .*\[0, 4\]"):
        require_bounded(-vector, SPEC, bound=4.0, who="x", non_negative=True)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 2 * BLOCK + 7])
@pytest.mark.parametrize("weight", [1, 7, 2**20 + 1])
def test_what_is_added_is_what_is_rounded(size: int, weight: int) -> None:
    values = torch.from_numpy(np.random.default_rng(size).normal(size=size).astype(np.float32))
    values[: size // 2] *= 2.0**-38  # around half a unit
    total = torch.arange(size)
    add_fixed(total, values, 37, weight)
    assert torch.equal(total, torch.arange(size) + weight * to_fixed(values, 37))
