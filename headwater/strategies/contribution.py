"""What each player brings to a game: :func:`leave_one_out`, :func:`shapley`.

A game gives every set of players a worth. Shapley's value (1953) of a player is its gain over the players
before it, averaged over all orders. It is the one division of the whole worth under which players that are
interchangeable get the same, one that adds nothing gets nothing, and values of two games add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

Worth = Callable[[frozenset[str]], float]
"""Of a set of players."""
MOST_EXACT = 12
"""Players of whom all subsets may be asked: 4,096."""


def leave_one_out(players: Sequence[str], worth: Worth) -> dict[str, float]:
    """By player, the worth of all less that of all others: n + 1 questions. The values need not sum to it."""
    everyone = frozenset(players)
    whole = worth(everyone)
    return {player: whole - worth(everyone - {player}) for player in players}


def shapley(
    players: Sequence[str],
    worth: Worth,
    *,
    permutations: int,
    tolerance: float,
    draw: np.random.Generator,
) -> dict[str, float]:
    """Shapley's values: exact where that asks no more than sampling may, else from drawn orders.

    Truncated Monte Carlo (Ghorbani and Zou 2019, arXiv 1904.02868, algorithm 1): once a prefix of an order
    is worth as much as all players, within ``tolerance``, whoever comes after it gains 0 there. Values of
    drawn orders sum to the whole worth as well, but for what was truncated: at most ``tolerance``. A round
    whose whole worth is within ``tolerance`` of nobody's costs two questions.

    Args:
        players: at least one.
        worth: of a set; asked of the same set again, it must say the same.
        permutations: orders to draw, each asking at most one question a player.
        tolerance: 0 truncates nothing.
        draw: what orders are drawn with.
    """
    count = len(players)
    if tolerance and abs(worth(frozenset(players)) - worth(frozenset())) <= tolerance:
        return dict.fromkeys(players, 0.0)
    if count <= MOST_EXACT and 2**count <= permutations * count:
        return exact_shapley(players, worth)
    whole, nobody = worth(frozenset(players)), worth(frozenset())
    gains: dict[str, list[float]] = {player: [] for player in players}
    for _ in range(permutations):
        before, present, ended = nobody, frozenset[str](), False
        for place in draw.permutation(count).tolist():
            player = players[place]
            present |= {player}
            ended = ended or (tolerance > 0 and abs(whole - before) <= tolerance)
            after = before if ended else worth(present)
            gains[player].append(after - before)
            before = after
    return {player: math.fsum(found) / permutations for player, found in gains.items()}


def exact_shapley(players: Sequence[str], worth: Worth) -> dict[str, float]:
    """Σ over S without i of |S|!·(n − |S| − 1)!/n! · (v(S + i) − v(S)): 2ⁿ questions."""
    count = len(players)
    terms: dict[str, list[float]] = {player: [] for player in players}
    for size in range(count):
        share = 1 / (count * math.comb(count - 1, size))
        for player in players:
            others = [other for other in players if other != player]
            for chosen in combinations(others, size):
                without = frozenset(chosen)
                terms[player].append(share * (worth(without | {player}) - worth(without)))
    return {player: math.fsum(found) for player, found in terms.items()}


class Asked:
    """A worth that remembers what it said, and counts.

    Args:
        worth: the question.

    Attributes:
        known: by set of players, what was said.
    """

    def __init__(self, worth: Worth) -> None:
        self._worth = worth
        self.known: dict[frozenset[str], float] = {}

    def __call__(self, players: frozenset[str]) -> float:
        """The worth of this set."""
        if players not in self.known:
            self.known[players] = self._worth(players)
        return self.known[players]


def total(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums over rounds, by player: worths of rounds add, and so do values."""
    names = sorted({name for values in rounds for name in values})
    return {name: math.fsum(values.get(name, 0.0) for values in rounds) for name in names}
