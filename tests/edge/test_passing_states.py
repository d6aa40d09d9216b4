"""An edge aggregator makes the base of a training from what passed through it, or says that it lacks it."""

from __future__ import annotations

import pytest
import torch

from headwater.compression.compeft import CompeftCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.since import encode_since, name_of
from headwater.edge.passing_states import MOST, PassingStates
from headwater.errors import DecodeError
from headwater.protocol.failures import FailureCode, reported_code
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec.of([TensorSpec("v", (50,), "vector")])
KEY, DENSE, SPARSE = Key.root(1), DenseCodec("fp32"), CompeftCodec(0.2, None)


def history(count: int) -> list[tuple]:
    """States, each with what was added to the one before."""
    state, found = AdapterState.from_vector(SPEC, torch.linspace(-1, 1, 50)), []
    for seed in range(count):
        draw = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        payload, added = SPARSE.round_trip(AdapterState.from_vector(SPEC, draw), key=KEY)
        found.append((state, payload))
        state = state + added
    return found


def since(states: list[tuple], base: int, to: int):
    return encode_since(name_of(states[base][0].sha256()), [p for _, p in states[base:to]])


def test_what_passed_through_is_enough_for_what_is_made_from_it():
    states, passing = history(5), PassingStates()
    first = states[0][0]
    passing.note(DENSE.encode(first, key=KEY), first.sha256())
    for number in range(1, 5):  # evaluations pass through unread; each training follows the last
        state = states[number][0]
        payload = since(states, number - 1, number)
        passing.note(payload, state.sha256())
        nothing = since(states, number, number)
        passing.note(nothing, state.sha256())
        assert passing.state(nothing, state.sha256(), SPEC, DENSE).sha256() == state.sha256()
    assert len(passing._came) == MOST


def test_after_a_restart_it_says_that_it_lacks_the_base_and_takes_the_whole():
    states, passing = history(3), PassingStates()
    state = states[2][0]
    for payload in (since(states, 2, 2), since(states, 1, 2)):
        passing.note(payload, state.sha256())
        with pytest.raises(DecodeError) as error:
            passing.state(payload, state.sha256(), SPEC, DENSE)
        assert reported_code(error.value) is FailureCode.NEEDS_FULL_STATE
    whole = DENSE.encode(state, key=KEY)
    passing.note(whole, state.sha256())
    passing.note(since(states, 2, 2), state.sha256())
    assert passing.state(since(states, 2, 2), state.sha256(), SPEC, DENSE) == state
    assert passing.state(whole, state.sha256(), SPEC, DENSE) == state
    assert passing.state(since(states, 2, 2), state.sha256(), SPEC, DENSE) == state
    with pytest.raises(DecodeError, match="another"):
        passing.state(whole, states[1][0].sha256(), SPEC, DENSE)
