"""The planner: what it promises for every device, and what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.federation import Federation
from headwater.errors import ConfigError
from headwater.protocol.messages import DeviceProfile, MethodCost
from headwater.strategies.planner import pick

MIB = 2**20
NAMES = ("default", "lean", "seeds")


def file(prefer=(), **assignment) -> Federation:
    lean = {"kind": "mezo", "batch_size": 8}
    seeds = {"kind": "kseed", "batch_size": 4, "max_steps": 20}
    return Federation.model_validate(
        {
            "federation": {"name": "t", "rounds": 1},
            "model": {"kind": "encoder", "path": "m"},
            "adapter": {"kind": "lora"},
            "data": {
                "kind": "classification",
                "path": "x",
                "labels": ("a", "b"),
                "partition": {"kind": "iid", "clients": 2},
            },
            "training": {"kind": "backprop", "batch_size": 16},
            "methods": {"lean": {"training": lean}, "seeds": {"training": seeds}},
            "assignment": {"kind": "planner", "prefer": tuple(prefer), **assignment},
        }
    )


SIZES = {"default": 16, "lean": 8, "seeds": 4}


def device(memory: int, base: int, each: dict[str, int], step_s: float = 0.0) -> DeviceProfile:
    """A device on which a method takes ``base + each·batch`` bytes: costs as a client predicts them."""
    costs = {}
    for name, size in SIZES.items():
        fits = size
        while fits and base + each[name] * fits > memory:
            fits //= 2
        costs[name] = MethodCost(base + each[name] * size, step_s, fits)
    return DeviceProfile(memory, 1, costs)


EACH = st.fixed_dictionaries({name: st.integers(1, 10**9) for name in NAMES})
ORDERS = st.permutations(NAMES).flatmap(lambda p: st.integers(0, 3).map(lambda n: tuple(p[:n])))


@given(ORDERS, EACH, st.integers(0, 10**9), st.integers(1, 2 * 10**10), st.integers(0, 10**10))
def test_the_pick_fits_and_more_memory_never_gives_a_less_preferred_method(prefer, each, base, memory, more):
    federation = file(prefer)
    order = prefer or NAMES

    def picked(memory):
        try:
            return pick(federation, device(memory, base, each), examples=100)
        except ConfigError:
            return None

    small, large = picked(memory), picked(memory + more)
    if small is None:
        assert all(base + each[name] > memory for name in order)
        return
    assert base + each[small.method] * small.batch_size <= memory
    assert 1 <= small.batch_size <= SIZES[small.method]
    assert large is not None
    assert order.index(large.method) <= order.index(small.method)
    for better in order[: order.index(small.method)]:
        assert base + each[better] > memory, "nothing preferred would have fitted, not even one row"


@given(st.floats(1e-4, 1e3), st.floats(1e-3, 1e4), st.integers(1, 10_000))
def test_a_round_never_takes_longer_than_allowed(step_s, round_s, examples):
    try:
        choice = pick(
            file(round_s=round_s), device(10**9, 1, dict.fromkeys(NAMES, 1), step_s), examples=examples
        )
    except ConfigError:
        assert step_s > round_s
        return
    full = {"default": -(-examples // 16), "lean": -(-examples // 8), "seeds": 20}[choice.method]
    steps = full if choice.max_steps is None else choice.max_steps
    assert 1 <= steps <= full
    assert steps * step_s <= round_s * (1 + 1e-9)


def test_the_reasons_are_sentences():
    each = {"default": 100 * MIB, "lean": 10 * MIB, "seeds": 5 * MIB}
    assert pick(file(), device(2000 * MIB, 200 * MIB, each), examples=10).reason == (
        "'default' fits: 1,800 MiB of 2,000 MiB"
    )
    halved = pick(file(), device(700 * MIB, 200 * MIB, each), examples=10)
    assert (halved.method, halved.batch_size) == ("default", 4)
    assert halved.reason == "'default' fits 700 MiB with batches of 4: at 16 it would need 1,800 MiB"
    lean = pick(file(), device(290 * MIB, 200 * MIB, each), examples=10)
    assert lean.reason == "'lean' fits: 280 MiB of 290 MiB ('default' needs 1,800 MiB)"
    with pytest.raises(ConfigError, match=r"a method that fits 202 MiB.*least memory.*is 220 MiB") as caught:
        pick(file(), device(202 * MIB, 200 * MIB, each), examples=10)
    assert "'seeds' needs 220 MiB" in str(caught.value)
    assert "evaluation.batch_size" in str(caught.value)


def test_where_nothing_is_picked_the_next_step_is_for_what_stands_in_the_way():
    each = dict.fromkeys(NAMES, 1)
    with pytest.raises(ConfigError, match=r"takes 5e\+09 s.*Raise assignment\.round_s"):
        pick(file(round_s=1e-9), device(10**9, 1, each, 5e9), examples=10)
    with pytest.raises(ConfigError, match=r"no costs.*owner's policy"):
        pick(file(), DeviceProfile(10**9, 1, {}), examples=10)


def test_steps_are_cut_to_the_time_and_the_reason_says_so():
    choice = pick(file(round_s=2.0), device(10**9, 1, dict.fromkeys(NAMES, 1), 0.5), examples=160)
    assert (choice.method, choice.max_steps) == ("default", 4)
    assert choice.reason.endswith("; 4 steps are what the time allows")


def test_a_method_whose_steps_cannot_be_cut_is_skipped_where_time_is_short():
    """All of decomfl's clients step along the round's seeds: it is not promised what it will not do."""
    federation = file(("seeds", "lean"), round_s=10.0)
    steps = {"kind": "decomfl", "batch_size": 4, "max_steps": 20}
    content = federation.model_dump()
    content["methods"]["seeds"]["training"] = steps
    federation = Federation.model_validate(content)
    choice = pick(federation, device(10**9, 1, dict.fromkeys(NAMES, 1), 2.0), examples=160)
    assert (choice.method, choice.max_steps) == ("lean", 5)
    assert "'seeds' takes 40 s" in choice.reason
    assert pick(federation, device(10**9, 1, dict.fromkeys(NAMES, 1), 0.5), examples=160).method == "seeds"
