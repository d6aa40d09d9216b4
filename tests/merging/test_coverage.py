"""Coverage: masks by hand, divisors against a loop, layers by name."""

from fractions import Fraction

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
from headwater.merging.plan import MergePlan
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
    st.none() | st.fixed_dictionaries({c: st.sampled_from([1 / 64, 0.3, 1.0]) for c in "abcd"}),
)
def test_divisors_are_the_weights_of_those_who_train_a_value(weights, tensors, ranks, progress):
    """Σ n·c / max c, in fractions; Σ n exactly where all c are alike."""
    plan = MergePlan(PAIR, dict.fromkeys("abcd", 2**41), 1.0, tensors=tensors, ranks=ranks)
    above, most = [Fraction(0)] * PAIR.numel, [Fraction(0)] * PAIR.numel
    for client, weight in weights.items():
        mask, reached = covered_by(plan, client), Fraction(1 if progress is None else progress[client])
        for i in range(PAIR.numel):
            if mask is None or bool(mask[i]):
                above[i] += weight * reached
                most[i] = max(most[i], reached)
    expected = [float(a / m) if m else 0.0 for a, m in zip(above, most, strict=True)]
    found = divisors(plan, weights, progress)
    assert isinstance(found, float) == (not set(weights) & (set(tensors) | set(ranks)))
    if isinstance(found, float):
        found = torch.full((PAIR.numel,), found, dtype=torch.float64)
    assert found.dtype == torch.float64
    if progress is None:
        assert found.tolist() == expected
    assert found.tolist() == pytest.approx(expected, rel=1e-14)


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
