"""Who trains which tensors."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.assignment import Method
from headwater.config.training import BackpropTraining, SpryTraining
from headwater.merging.coverage import layers_of
from headwater.seeds.keys import Key
from headwater.state import StateSpec, TensorSpec
from headwater.strategies.layers import one_factor, trained_tensors

KEY = Key.root(3)


def spec(layers: int) -> StateSpec:
    names = [f"layer.{i}.query.{ab}" for i in range(layers) for ab in ("lora_A", "lora_B")]
    return StateSpec.of([TensorSpec(n, (2,), "lora_a") for n in [*names, "classifier.weight"]])


def spry(count: int = 1, last: int | None = None) -> Method:
    return Method(training=SpryTraining(kind="spry", layers_per_client=count), last_layers=last)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_layers_are_dealt_evenly(layers: int, clients: int, each: int, seed: int) -> None:
    names = [f"c{i}" for i in range(clients)]
    found = trained_tensors(spec(layers), dict.fromkeys(names, spry(each)), key=Key.root(seed))
    count = Counter[int]()
    for tensors in found.values():
        mine = layers_of(tensors) if tensors is not None else list(range(layers))
        assert len(mine) == min(each, layers)
        assert tensors is None or "classifier.weight" in tensors
        count.update(mine)
    most, least = max(count.values()), min(count[i] for i in range(layers))
    assert most - least <= 1
    assert least >= 1 or clients * min(each, layers) < layers


def test_rounds_deal_anew() -> None:
    dealt = {tuple((trained_tensors(spec(6), {"a": spry()}, key=KEY.child(r))["a"]) or ()) for r in range(20)}
    assert len(dealt) > 3


def test_last_layers_and_no_limit() -> None:
    whole = Method(training=BackpropTraining(kind="backprop"))
    last = Method(training=BackpropTraining(kind="backprop"), last_layers=2)
    found = trained_tensors(spec(4), {"all": whole, "last": last, "spry": spry(1, last=2)}, key=KEY)
    assert found["all"] is None
    assert found["last"] is not None
    assert layers_of(found["last"]) == [2, 3]
    assert "classifier.weight" in found["last"]
    assert found["spry"] is not None
    assert set(layers_of(found["spry"])) < {2, 3}


@pytest.mark.parametrize("layers", [0, 1])
def test_with_nothing_to_split_everything_is_trained(layers: int) -> None:
    assert trained_tensors(spec(layers), {"a": spry(3), "b": spry()}, key=KEY) == {"a": None, "b": None}


def test_rolora_trains_b_first_and_then_a() -> None:
    pair = [
        TensorSpec("q.lora_A", (2, 3), "lora_a"),
        TensorSpec("q.lora_B", (3, 2), "lora_b", pair="q.lora_A"),
    ]
    spec = StateSpec.of([*pair, TensorSpec("head", (2,), "head")])
    assert one_factor(spec, None, 1) == one_factor(spec, None, 3) == ("head", "q.lora_B")
    assert one_factor(spec, None, 2) == ("head", "q.lora_A")
    assert one_factor(spec, ("q.lora_A", "q.lora_B"), 2) == ("q.lora_A",)
