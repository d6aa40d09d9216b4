"""Coverage: masks by hand, divisors against a loop, layers by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError, UpdateRejected
from headwater.merging.coverage import (
    covered,
    covered_by,
    divisors,
    last_layers,
    layer_of,
    layers_of,
    require_covered,
)
from headwater.protocol.messages import MergePlan
from headwater.state import AdapterState, StateSpec
from tests.support.quadratic import PAIR

NAMES = [t.name for t in PAIR]


def names_where(mask):
    """Which values of each tensor a mask has: its shape of booleans by name."""
    state = AdapterState.from_vector(PAIR, mask.float())
    return {name: value.bool() for name, value in state.items()}


def test_all_is_no_mask():
    assert covered(PAIR, None, None) is None
    assert covered(StateSpec(()), (), None).shape == (0,)


def test_tensors_and_ranks_by_hand():
    mask = covered(PAIR, ("head.bias", "layer.1.lora_B.weight"), None)
    assert {n: bool(v.all()) for n, v in names_where(mask).items() if bool(v.any())} == {
        "head.bias": True,
        "layer.1.lora_B.weight": True,
    }
    ranked = names_where(covered(PAIR, None, 1))
    assert ranked["layer.0.lora_A.weight"].nonzero()[:, 0].tolist() == 6 * [0]  # a row of 6
    assert ranked["layer.0.lora_B.weight"].nonzero()[:, 1].tolist() == 5 * [0]  # a column of 5
    assert bool(ranked["head.bias"].all())
    both = covered(PAIR, ("layer.0.lora_A.weight",), 3)
    assert int(both.sum()) == 18
    assert int(covered(PAIR, (), None).sum()) == 0
    assert bool(covered(PAIR, None, 99).all())


def test_a_tensor_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"layer\.9"):
        covered(PAIR, ("layer.9.lora_A.weight",), None)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 2**40), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from(NAMES), unique=True).map(tuple)),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5)),
)
def test_divisors_are_the_weights_of_those_who_train_a_value(weights, tensors, ranks):
    plan = MergePlan(PAIR, dict.fromkeys("abcd", 2**41), 1.0, tensors=tensors, ranks=ranks)
    expected = [0] * PAIR.numel
    for client, weight in weights.items():
        mask = covered_by(plan, client)
        for i in range(PAIR.numel):
            expected[i] += weight if mask is None or bool(mask[i]) else 0
    found = divisors(plan, weights)
    if found is None:
        assert not set(weights) & (set(tensors) | set(ranks))
        found = torch.full((PAIR.numel,), sum(weights.values()))
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def test_values_outside_are_refused_by_name():
    plan = MergePlan(PAIR, {"a": 1, "b": 1}, 1.0, tensors={"a": ("head.bias",)}, ranks={"a": 2})
    inside = covered_by(plan, "a")
    require_covered(inside.float(), plan, "a")
    require_covered(torch.ones(PAIR.numel), plan, "b")
    require_covered(-0.0 * torch.ones(PAIR.numel), plan, "a")
    for value in (1e-45, float("nan"), -1.0):
        outside = torch.zeros(PAIR.numel)
        outside[-1] = value
        with pytest.raises(UpdateRejected, match=r"client a.*1 other values"):
            require_covered(outside, plan, "a")


def test_layers_by_name():
    assert layer_of("base.model.layers.11.q.lora_A.weight") == 11
    assert layer_of("prompt_embeddings") is None
    assert layers_of(NAMES) == [0, 1]
    assert last_layers(PAIR, 1) == ("head.bias", "layer.1.lora_A.weight", "layer.1.lora_B.weight")
    assert last_layers(PAIR, 5) == tuple(NAMES)
