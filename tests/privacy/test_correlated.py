"""Matrix mechanisms: streams and dense algebra, sensitivities and every pattern, jax_privacy's numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.correlated.kinds import best as best_of_kind
from headwater.privacy.correlated.mechanism import Memory, Participation, gram_bound
from headwater.privacy.correlated.optimise import best_bands, best_blt
from headwater.privacy.correlated.toeplitz import Banded, best_coefficients
from headwater.privacy.correlated.tree import Tree, level_bound

INDEPENDENT = Banded((1.0,))
BLT = BufferedToeplitz((0.97, 0.6, 0.1), (0.05, 0.2, 0.15))
KINDS = {
    "independent": INDEPENDENT,
    "banded": Banded((1.0, 0.6, 0.25, 0.25)),
    "blt": BLT,
    "tree": Tree(40),
}
every_kind = pytest.mark.parametrize("mechanism", KINDS.values(), ids=KINDS)


def patterns(participation):
    """Every way to take part, as vectors of 0 and 1."""
    n, b = participation.rounds, participation.separation
    for chosen in itertools.product((0, 1), repeat=n):
        rounds = np.flatnonzero(chosen)
        if len(rounds) <= participation.times and (np.diff(rounds) >= b).all():
            yield np.array(chosen, float)


@every_kind
@given(st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_streams_are_the_matrix_and_its_inverse(mechanism, rounds, seed):
    dense = mechanism.materialize(rounds)
    assert np.array_equal(np.diag(dense), np.ones(rounds))
    assert not np.triu(dense, 1).any()
    y = np.random.default_rng(seed).standard_normal((rounds, 3))
    x = np.stack(list(mechanism.rows(y)))
    np.testing.assert_allclose(x, np.linalg.solve(dense, y), atol=1e-11)
    memory = mechanism.init(3)
    for row, there in zip(x, y, strict=True):
        back, memory = mechanism.multiply(memory, row)
        np.testing.assert_allclose(back, there, atol=1e-12)
    assert memory.step == rounds
    assert memory.buffers.shape == (mechanism.buffers, 3)


@every_kind
def test_errors_are_the_norms_of_the_rows_of_prefix_sums_of_the_inverse(mechanism):
    n = 37
    noise = np.tri(n) @ np.linalg.inv(mechanism.materialize(n))
    np.testing.assert_allclose(mechanism.prefix_errors(n), np.square(noise).sum(axis=1), rtol=1e-10)


@every_kind
@pytest.mark.parametrize(("separation", "most"), [(1, None), (2, None), (3, 2), (4, None), (11, None)])
def test_no_pattern_moves_it_further_than_its_sensitivity(mechanism, separation, most):
    """Exact for Toeplitz matrices and for one participation, a bound for the tree."""
    who = Participation(11, separation, most)
    dense = mechanism.materialize(11)
    worst = max(np.linalg.norm(dense @ u) for u in patterns(who))
    found = mechanism.sensitivity(who)
    assert found >= worst - 1e-12
    if not isinstance(mechanism, Tree) or who.times == 1 or separation == 1:
        assert found == pytest.approx(worst, rel=1e-12)
    assert found <= gram_bound(dense.T @ dense, who) + 1e-12


@pytest.mark.parametrize("rounds", [1, 7, 13, 16, 32])
def test_the_trees_bound_by_levels_is_no_lower_than_the_one_from_its_matrix(rounds):
    dense = Tree(rounds).materialize(rounds)
    for separation in {1, 2, 3, 5, 8, rounds}:
        for most in (None, 1, 2):
            who = Participation(rounds, separation, most)
            assert level_bound(who) >= gram_bound(dense.T @ dense, who) - 1e-12
    assert level_bound(Participation(rounds)) == pytest.approx(np.linalg.norm(dense.sum(axis=1)))
    assert level_bound(Participation(rounds, most=1)) ** 2 == pytest.approx(rounds.bit_length())


def test_a_memory_is_not_changed_by_what_comes_after():
    """So a round that is closed again starts where it did."""
    for mechanism in KINDS.values():
        memory = mechanism.init(2)
        for value in (1.0, 2.0, 3.0):
            kept = memory.buffers.copy()
            _, after = mechanism.solve(memory, np.full(2, value))
            assert np.array_equal(memory.buffers, kept)
            memory = after


def test_jax_privacy_says_the_same():
    """jax_privacy 2.0.0: BufferedToeplitz, minsep_sensitivity_squared, per_query_error and (for the tree)
    get_min_sep_sensitivity_upper_bound."""
    eight = [
        1.0, 0.4, 0.1835, 0.120545, 0.08898364999999998, 0.07019964050000001, 0.058490201284999994,
        0.05097995024644999,
    ]  # fmt: skip
    np.testing.assert_allclose(BLT.coefficients(8), eight, rtol=1e-14)
    squared = {
        (1, None): 306.3469856952025,
        (7, None): 12.990643650146554,
        (7, 3): 4.360443274910391,
        (50, 1): 1.2536785541555011,
        (13, None): 5.704782892467347,
    }
    for (separation, most), value in squared.items():
        found = BLT.sensitivity(Participation(50, separation, most))
        assert found**2 == pytest.approx(value, rel=1e-12)
    errors = BLT.prefix_errors(50)
    assert errors.max() == pytest.approx(8.548438560230675, rel=1e-12)
    assert errors.mean() == pytest.approx(5.534419932695576, rel=1e-12)
    tree = {
        (1, None): 19.390719429665317,
        (3, None): 7.483314773547883,
        (4, 2): 3.605551275463989,
        (16, 1): 2.23606797749979,
    }
    for (separation, most), value in tree.items():
        assert Tree(16).sensitivity(Participation(16, separation, most)) == pytest.approx(value, rel=1e-12)


def test_the_best_banded_matrix_is_the_one_that_jax_privacy_finds():
    """``optimize_banded_toeplitz(64, 8)``: its coefficients of norm 1, and its loss."""
    theirs = [
        0.6766776518749479, 0.3977134068925639, 0.3237598365194781, 0.2830463823797251, 0.2544091466651675,
        0.23137685755200804, 0.210888469809871, 0.19042716269812546,
    ]  # fmt: skip
    who = Participation(64, 64)
    found = best_bands(who, 8, "mean")
    np.testing.assert_allclose(np.array(found.bands) / np.linalg.norm(found.bands), theirs, atol=1e-6)
    assert found.mean_error(who) ** 2 == pytest.approx(7.09676191688255, rel=1e-9)


def test_the_best_blt_is_as_good_as_the_one_that_jax_privacy_finds():
    """``buffered_toeplitz.optimize``: sensitivity² × largest variance, of so many buffers."""
    for buffers, loss in {1: 14.937373990660614, 2: 11.087522283427543, 4: 10.712160440752076}.items():
        who = Participation(1024, 1024)
        assert best_blt(who, buffers).max_error(who) ** 2 == pytest.approx(loss, rel=1e-7)
    apart = Participation(512, 64)
    assert best_blt(apart, 2).max_error(apart) ** 2 == pytest.approx(146.60192554844764, rel=1e-7)


def test_a_thousand_rounds_beside_the_best_toeplitz_matrix():
    """n = 1,024, one participation: the tree, independent noise, BLTs of 1, 2 and 4 buffers."""
    who = Participation(1024, 1024)
    best = float(np.square(best_coefficients(1024)).sum())
    assert best == pytest.approx(3.2725541502731343, rel=1e-12)
    assert Tree(1024).max_error(who) == pytest.approx(math.sqrt(11 * 10))
    assert Tree(1024).max_error(who) / best == pytest.approx(3.20, abs=0.006)
    assert INDEPENDENT.max_error(who) / best == pytest.approx(9.78, abs=0.006)
    for buffers, ratio in {1: 1.18, 2: 1.017, 4: 1.0001}.items():
        assert best_blt(who, buffers).max_error(who) / best == pytest.approx(ratio, rel=1.2e-3)


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 17, 100, 300])
def test_a_blt_errs_less_than_a_tree_at_every_count_of_rounds(rounds):
    for separation in {1, min(rounds, 20), rounds}:
        who = Participation(rounds, separation)
        blt, tree = best_blt(who, 2), Tree(rounds)
        least = min(tree.max_error(who), INDEPENDENT.max_error(who))
        assert blt.max_error(who) <= least * (1 + 1e-4)  # in every round independent noise is the best


def test_what_is_optimised_for_the_mean_has_the_lower_mean():
    who = Participation(200, 40)
    for best in (lambda error: best_blt(who, 2, error), lambda error: best_bands(who, 20, error)):
        worst, mean = best("max"), best("mean")
        assert mean.mean_error(who) < worst.mean_error(who)
        assert worst.max_error(who) < mean.max_error(who)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Participation(10, 0),
        lambda: Participation(10, 2, 0),
        lambda: Banded((0.5,)),
        lambda: Banded((1.0, 0.2, 0.3)),
        lambda: Banded((1.0, -0.1)),
        lambda: BufferedToeplitz((0.5,), (1.1,)),
        lambda: BufferedToeplitz((1.0,), (0.5,)),
        lambda: BufferedToeplitz((), ()),
        lambda: best_blt(Participation(10), 7),
        lambda: best_bands(Participation(10, 3), 4),
    ],
)
def test_what_has_no_stated_sensitivity_is_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


def test_the_tree_keeps_a_vector_for_each_level():
    assert [Tree(n).buffers for n in (1, 2, 3, 4, 1023, 1024)] == [1, 2, 2, 3, 10, 11]
    assert isinstance(Tree(7).init(3), Memory)


def test_the_best_blt_keeps_no_vector_that_earns_nothing():
    """Three buffers over four rounds, each owner twice: the search leaves a scale of 1e-23."""
    who = Participation(4, 2)
    found, three = best_of_kind("blt", who), best_blt(who, 3)
    assert found.buffers == 1
    assert found.max_error(who) <= 1.005 * three.max_error(who)
    assert min(found.scales) > 1e-3 > 1e-9 > min(three.scales)
