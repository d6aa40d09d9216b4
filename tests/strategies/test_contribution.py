"""Shapley's axioms, and the mean over all orders as the oracle: what the definition says, by brute force."""

from __future__ import annotations

from itertools import permutations as orders
from math import factorial, fsum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.strategies.contribution import Asked, exact_shapley, leave_one_out, shapley


def by_all_orders(players, worth):
    gains = dict.fromkeys(players, 0.0)
    for order in orders(players):
        for place, player in enumerate(order):
            gains[player] += worth(frozenset(order[: place + 1])) - worth(frozenset(order[:place]))
    return {player: gain / factorial(len(players)) for player, gain in gains.items()}


@st.composite
def games(draw, most=5):
    """Players, and a number for every set of them."""
    players = [f"p{i}" for i in range(draw(st.integers(1, most)))]
    sets = [frozenset(p for i, p in enumerate(players) if n >> i & 1) for n in range(2 ** len(players))]
    return players, {chosen: draw(st.floats(-1, 1, width=32)) for chosen in sets}


def sampled(players, worth, *, orders=7, tolerance=0.0, seed=0):
    draw = np.random.default_rng(seed)
    return shapley(players, worth, permutations=orders, tolerance=tolerance, draw=draw)


@given(games())
def test_it_is_the_mean_over_all_orders(game):
    players, table = game
    assert exact_shapley(players, table.get) == pytest.approx(by_all_orders(players, table.get), abs=1e-12)


def test_the_gloves_game():
    """Two left gloves and a right one: 1/6, 1/6, 2/3 (Shapley's own kind of example)."""

    def worth(chosen):
        return float("right" in chosen and len(chosen) > 1)

    found = exact_shapley(["left", "other left", "right"], worth)
    assert found == pytest.approx({"left": 1 / 6, "other left": 1 / 6, "right": 2 / 3})


@given(games(), st.integers(1, 9))
def test_efficiency_holds_for_drawn_orders_too(game, count):
    players, table = game
    whole = table[frozenset(players)] - table[frozenset()]
    assert fsum(sampled(players, table.get, orders=count).values()) == pytest.approx(whole, abs=1e-9)


@given(games(4), st.integers(0, 9))
def test_who_adds_nothing_gets_nothing(game, seed):
    players, table = game

    def worth(chosen):
        return table[chosen - {"null"}]

    for found in (sampled([*players, "null"], worth, seed=seed), leave_one_out([*players, "null"], worth)):
        assert found["null"] == pytest.approx(0, abs=1e-12)


@given(games(4))
def test_who_is_interchangeable_gets_the_same(game):
    players, table = game

    def worth(chosen):  # a twin of the first player: what counts is how many of the two there are
        twins = len(chosen & {"p0", "twin"})
        rest = chosen - {"p0", "twin"}
        return table[rest | ({"p0"} if twins else set())] + 0.25 * twins * len(rest)

    found = exact_shapley([*players, "twin"], worth)
    assert found["twin"] == pytest.approx(found["p0"], abs=1e-12)


@given(games(4), st.floats(0.01, 0.5))
def test_truncation_costs_no_more_than_its_tolerance(game, tolerance):
    players, table = game
    whole = table[frozenset(players)] - table[frozenset()]
    found = sampled(players, table.get, orders=1, tolerance=tolerance)  # one order: never all subsets
    assert abs(fsum(found.values()) - whole) <= tolerance + 1e-9


def test_drawn_orders_come_near_the_exact_values():
    rng = np.random.default_rng(3)
    players = [f"p{i}" for i in range(13)]  # more than are ever asked for all subsets
    own = dict(zip(players, rng.normal(size=13), strict=True))
    pairs = {(a, b): rng.normal() / 13 for a in players for b in players if a < b}

    def worth(chosen):
        return sum(own[p] for p in chosen) + sum(v for (a, b), v in pairs.items() if {a, b} <= chosen)

    exact = {p: own[p] + sum(v for pair, v in pairs.items() if p in pair) / 2 for p in players}
    found = sampled(players, worth, orders=400)
    assert max(abs(found[p] - exact[p]) for p in players) < 0.05


def test_questions_are_asked_once():
    asked = []
    worth = Asked(lambda chosen: asked.append(chosen) or float(len(chosen)))
    sampled(["a", "b", "c"], worth, orders=20)
    leave_one_out(["a", "b", "c"], worth)
    assert len(asked) == len(set(asked)) == 8
