"""Correlated noise in whole units: the argument of its guarantee, value by value; and how much there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.correlated.mechanism import Participation
from headwater.privacy.correlated.noise import CorrelatedNoise
from headwater.privacy.correlated.toeplitz import Banded
from headwater.privacy.correlated.tree import Tree
from headwater.privacy.noise import ReproducibleRandomness
from headwater.seeds.keys import Key

N, D = 24, 5
KINDS = {
    "independent": Banded((1.0,)),
    "banded": Banded((1.0, 0.6, 0.25)),
    "blt": BufferedToeplitz((0.99, 0.7), (0.1, 0.3)),
    "tree": Tree(N),
}
every_kind = pytest.mark.parametrize("mechanism", KINDS.values(), ids=KINDS)


def noise(mechanism, **changes):
    return replace(CorrelatedNoise(mechanism, Participation(N, 6), D, 0.8, 2.0**20), **changes)


def seeded(seed):
    return ReproducibleRandomness(Key.root(seed).child("test"))


def drawn(source, seed):
    """The noise of every round."""
    memory, randomness, out = source.init(), seeded(seed), []
    for _ in range(N):
        row, memory = source.next(memory, randomness)
        out.append(row)
    return np.stack(out)


def independent_part(mechanism, rows):
    """Z, of the noise that left."""
    memory, out = mechanism.init(D), []
    for row in rows:
        out.append(row + np.rint(mechanism.earlier(memory)).astype(np.int64))
        memory = mechanism.enter(memory, row.astype(float))
    return np.stack(out)


@every_kind
@given(st.integers(0, 2**32), st.sampled_from([2.0**5, 2.0**20, 2.0**40]))
@settings(max_examples=9, deadline=None)
def test_the_same_releases_need_a_noise_that_is_moved_by_no_more_than_the_sensitivity(
    mechanism, seed, longest
):
    """Two databases that differ by one owner's parts D; releases G + N = (G − D) + (N + D)."""
    source = noise(mechanism, longest=longest)
    rows, draw = drawn(source, seed), np.random.default_rng(seed)
    parts = np.zeros((N, D), np.int64)
    for at in range(draw.integers(6), N, 6):
        part = draw.standard_normal(D)
        parts[at] = np.trunc(part * source.longest / np.linalg.norm(part))
    moved = independent_part(mechanism, rows + parts) - independent_part(mechanism, rows)
    exact = mechanism.materialize(N) @ parts
    assert np.abs(moved - exact).max() <= 2 * source.slack(source.sigma)
    assert np.linalg.norm(moved) <= source.sensitivity


@every_kind
def test_what_is_drawn_is_the_inverse_times_the_discrete_gaussian_but_for_a_rounding(mechanism):
    source = noise(mechanism)
    rows = drawn(source, 3)
    z = independent_part(mechanism, rows)
    exact = np.linalg.solve(mechanism.materialize(N), z.astype(float))
    assert np.abs(np.cumsum(rows - exact, axis=0)).max() <= N
    assert 0.7 < z.std() / source.sigma < 1.3


@every_kind
def test_prefix_sums_have_the_variance_that_is_stated(mechanism):
    source = noise(mechanism, values=4000)
    memory, randomness, total = source.init(), seeded(1), np.zeros(4000)
    for variance in mechanism.prefix_errors(N):
        row, memory = source.next(memory, randomness)
        total += row
        assert total.std() / source.sigma == pytest.approx(variance**0.5, rel=0.06)


def test_a_resumed_stream_goes_on_where_it_was():
    source = noise(KINDS["blt"])
    whole, memory, randomness = drawn(source, 9), source.init(), seeded(9)
    for at in range(N):
        stored = replace(memory, buffers=np.frombuffer(memory.buffers.tobytes()).reshape(-1, D))
        row, memory = source.next(stored, randomness)
        assert np.array_equal(row, whole[at]), at


def test_no_round_follows_the_last():
    source, randomness = noise(KINDS["tree"]), seeded(0)
    memory = source.init()
    for _ in range(N):
        _, memory = source.next(memory, randomness)
    with pytest.raises(ConfigError, match="fewer than 24 rounds"):
        source.next(memory, randomness)


def test_a_memory_of_another_mechanism_is_refused():
    with pytest.raises(ConfigError, match="a memory"):
        noise(KINDS["tree"]).next(KINDS["blt"].init(D), seeded(0))


@every_kind
def test_what_rounding_moves_is_in_the_sensitivity(mechanism):
    """Two roundings, of what left with an owner and without it, in each of n·d values."""
    source = noise(mechanism, longest=2.0**10)
    exact = mechanism.sensitivity(source.participation) * source.longest
    assert source.sensitivity >= exact + 2 * source.slack(source.sigma) * np.sqrt(N * D)
    assert source.sensitivity == pytest.approx(exact + np.sqrt(N * D), rel=1e-6)
    assert source.sigma >= 0.8 * source.sensitivity


def test_units_that_are_too_coarse_are_refused():
    with pytest.raises(ConfigError, match="units"):
        _ = noise(KINDS["blt"], longest=2.0).sigma


def test_a_mechanism_whose_inverse_blows_noise_up_is_refused():
    """1/(1 + x) alternates and never fades: its noise grows with the root of the rounds."""
    n = 30_000
    source = CorrelatedNoise(Banded((1.0, 1.0)), Participation(n, n), 2, 1.0, 2.0**30)
    memory = source.init()
    memory.buffers[:] = 80 * source.sigma
    with pytest.raises(ConfigError, match="64 σ"):
        source.next(memory, seeded(0))
