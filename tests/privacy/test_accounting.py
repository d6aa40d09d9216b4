"""Prices: published values, what each sampling costs, budgets and the noise that keeps them."""

from __future__ import annotations

import math

import pytest

from headwater.errors import ConfigError
from headwater.privacy.accounting import in_words, noise_multiplier_for, price, relation_for, relation_of
from headwater.privacy.correlated.mechanism import Participation
from headwater.privacy.correlated.toeplitz import Banded
from headwater.privacy.correlated.tree import Tree
from headwater.privacy.events import (
    Everyone,
    FixedSample,
    PoissonSample,
    PositionReleased,
    SequenceReleased,
    SumReleased,
)

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
DELTA = 1e-5


def rounds(count, multiplier, sampling):
    return [SumReleased(n + 1, f"{n}", 1.0, multiplier, sampling) for n in range(count)]


@pytest.mark.parametrize(
    ("sampling", "multiplier", "count", "rdp", "pld"),
    [
        (PoissonSample(0.01), 1.0, 1000, 2.101, 1.828),
        (PoissonSample(0.05), 1.0, 100, 4.039, 3.502),
        (PoissonSample(0.1), 1.0, 50, 5.885, 5.148),
        (Everyone(), 5.0, 50, 7.077, 6.573),
    ],
)
def test_published_values(sampling, multiplier, count, rdp, pld):
    found = price(rounds(count, multiplier, sampling), DELTA, "add-or-remove")
    assert found.rdp == pytest.approx(rdp, abs=6e-4)
    assert found.pld == pytest.approx(pld, abs=1e-3)
    assert found.epsilon == found.pld


def test_a_gaussian_alone_costs_what_its_closed_form_says():
    """Balle and Wang 2018 (arXiv 1805.06530), equation 6: δ(ε) of the Gaussian mechanism."""

    def delta(epsilon, sigma):
        def phi(x):
            return math.erfc(-x / math.sqrt(2)) / 2

        half, tail = 1 / (2 * sigma), epsilon * sigma
        return phi(half - tail) - math.exp(epsilon) * phi(-half - tail)

    found = price(rounds(9, 6.0, Everyone()), DELTA, "add-or-remove")  # nine of z = 6 are one of z = 2
    assert delta(found.epsilon, 2.0) == pytest.approx(DELTA, rel=1e-2)
    assert found.rdp > found.pld
    replaced = price(rounds(9, 6.0, Everyone()), DELTA, "replace-one")
    assert delta(replaced.epsilon, 1.0) == pytest.approx(DELTA, rel=1e-2)


def test_a_fixed_size_is_never_priced_as_poisson():
    """outside.md: 2.10 against 3.58 at the same noise over the sensitivity, which is twice the norm here."""
    fixed = price(rounds(1000, 2.0, FixedSample(10, 1000)), DELTA, "replace-one")
    assert fixed.epsilon == pytest.approx(3.576, abs=1e-3)
    assert fixed.pld is None
    same_noise = price(rounds(1000, 2.0, PoissonSample(0.01)), DELTA, "add-or-remove")
    assert fixed.epsilon > 3 * same_noise.epsilon
    everybody = price(rounds(10, 4.0, FixedSample(7, 7)), DELTA, "replace-one")
    assert everybody.rdp == price(rounds(10, 4.0, Everyone()), DELTA, "replace-one").rdp


@pytest.mark.parametrize(
    ("sampling", "relation"),
    [(PoissonSample(0.1), "replace-one"), (FixedSample(1, 10), "add-or-remove")],
)
def test_a_sampling_without_a_bound_for_the_relation_is_refused(sampling, relation):
    with pytest.raises(ConfigError, match="relation"):
        price(rounds(1, 1.0, sampling), DELTA, relation)
    assert relation_of(sampling) != relation


def test_nothing_costs_nothing_and_more_costs_more():
    assert price([], DELTA, "add-or-remove").epsilon == 0
    spent = [price(rounds(n, 1.0, PoissonSample(0.1)), DELTA, "add-or-remove").epsilon for n in (1, 2, 5)]
    assert spent == sorted(spent)
    mixed = [*rounds(2, 1.0, PoissonSample(0.1)), *rounds(1, 2.0, Everyone())]
    assert price(mixed, DELTA, "add-or-remove").epsilon > spent[1]
    assert price(mixed[::-1], DELTA, "add-or-remove") == price(mixed, DELTA, "add-or-remove")


@pytest.mark.parametrize("sampling", [PoissonSample(0.05), Everyone()])
def test_the_noise_found_just_keeps_the_budget(sampling):
    relation = relation_of(sampling)
    found = noise_multiplier_for(4.0, DELTA, 20, sampling)
    assert price(rounds(20, found, sampling), DELTA, relation).epsilon <= 4.0
    assert price(rounds(20, found - 0.001, sampling), DELTA, relation).epsilon > 4.0


def test_a_budget_that_no_noise_keeps_is_refused():
    with pytest.raises(ConfigError, match="budget"):
        noise_multiplier_for(1e-6, 1e-12, 10**6, Everyone())


def test_noise_that_can_be_drawn_again_is_said_to_be_no_privacy():
    events = [SumReleased(1, "a", 1.0, 1.0, Everyone(), reproducible=True), *rounds(1, 1.0, Everyone())]
    assert price(events, DELTA, "add-or-remove").reproducible


TREE, EVERY_EIGHTH = Tree(64), Participation(64, 8)


def sequence(name, multiplier, mechanism=TREE, who=EVERY_EIGHTH):
    """Of 64 rounds, each of which is in the ledger."""
    positions = [PositionReleased(n + 1, f"{name}{n}", name, n + 1) for n in range(who.rounds)]
    return [SequenceReleased(1, name, 0.5, multiplier, mechanism, who), *positions]


def test_a_sequence_costs_what_one_gaussian_does_whatever_its_mechanism_and_however_many_its_rounds():
    one = price(rounds(1, 2.0, Everyone()), DELTA, "add-or-remove")
    for events in (
        sequence("a", 2.0),
        sequence("a", 2.0, Banded((1.0, 0.5)), Participation(9, 2)),
        [*sequence("a", 2.0 * math.sqrt(2)), *sequence("b", 2.0 * math.sqrt(2))],  # another pays as well
    ):
        assert {relation_for(event) for event in events} == {"zero-out"}
        found = price(events, DELTA, "zero-out")
        assert (found.rdp, found.pld) == pytest.approx((one.rdp, one.pld), rel=1e-6)
    assert price(sequence("a", 2.0)[1:], DELTA, "zero-out").epsilon == 0
    assert "all updates of one owner set to nothing" in in_words(found, 4.0)


@pytest.mark.parametrize("relation", ["add-or-remove", "replace-one"])
def test_a_sequence_has_no_price_for_owners_who_are_not_asked(relation):
    """An owner's absence gives its place to another, so that others' sums move, too."""
    with pytest.raises(ConfigError, match="zero-out"):
        price(sequence("a", 2.0), DELTA, relation)


def test_the_noise_of_a_sequence_that_keeps_epsilon_4():
    """δ(4) = 1e-5 of one Gaussian (Balle and Wang 2018, equation 6) has σ = 1.0811."""
    found = noise_multiplier_for(4.0, DELTA, 1, Everyone())
    assert found == pytest.approx(1.0811, abs=2e-3)
    assert price(sequence("a", found), DELTA, "zero-out").epsilon <= 4.0
