"""Tree: noise of a binary tree's nodes (Dwork et al. 2010; Chan et al. 2011), as a square matrix.

Of the tree only the nodes that some prefix needs are used: one ends at each round t, over the t & −t rounds
up to it (Fenwick 1994). So row t of C has ones there, C⁻¹ is whole as well, and the noise of the first t
rounds together is the sum of as many nodes as t has ones in binary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from headwater.privacy.correlated.mechanism import Floats, Mechanism, Memory, Participation, gram_bound

_MOST_STEPS = 2**26
"""Of the bound from C⊤C, k·n²: a second."""


@dataclass(frozen=True, slots=True)
class Tree(Mechanism):
    """The tree over up to ``rounds`` rounds.

    It remembers sums of prefixes: in buffer l the latest one whose number of rounds has l zeros at its end.

    Args:
        rounds: n.
    """

    kind: ClassVar[str] = "tree"
    rounds: int

    @property
    def buffers(self) -> int:
        """⌊log₂ n⌋ + 1: as many as the tree has levels."""
        return self.rounds.bit_length()

    def earlier(self, memory: Memory) -> Floats:
        """The sum of the rounds below the node, but for the last."""
        following = memory.step + 1
        before = _prefix(memory, following & memory.step)  # without its lowest one
        return _prefix(memory, memory.step) - before

    def enter(self, memory: Memory, x: Floats) -> Memory:
        """Store the new prefix in the place of one that no later node begins at."""
        step, buffers = memory.step + 1, memory.buffers.copy()
        buffers[_zeros(step)] = _prefix(memory, memory.step) + x
        return Memory(step, buffers)

    def sensitivity(self, participation: Participation) -> float:
        """A bound: from C⊤C, or by levels where one participation makes that exact, or C is large."""
        n, k = participation.rounds, participation.times
        if k == 1 or k * n * n > _MOST_STEPS:
            return level_bound(participation)
        return _matrix_bound(self, participation)

    def prefix_errors(self, rounds: int) -> Floats:
        """As many nodes as t has ones."""
        return np.array([t.bit_count() for t in range(1, rounds + 1)], np.float64)


@lru_cache(maxsize=16)
def _matrix_bound(tree: Tree, participation: Participation) -> float:
    dense = tree.materialize(participation.rounds)
    return gram_bound(dense.T @ dense, participation)


def level_bound(participation: Participation) -> float:
    """A bound of a tree's sensitivity, level by level; never below that from C⊤C.

    A node over s rounds has one owner at most m = ⌈s/b⌉ times, and the nodes of a level do not overlap: so
    the squares of what it has of one owner sum up to m·min(k, m·nodes) at most. Exact for k = 1, where it is
    the number of levels, and for b = 1.

    Args:
        participation: of n rounds.
    """
    n, k, squares = participation.rounds, participation.times, 0
    for level in range(n.bit_length()):
        size = 1 << level
        most = min(k, math.ceil(size / participation.separation))
        squares += most * min(k, most * ((n // size + 1) // 2))
    return math.sqrt(squares)


def _zeros(number: int) -> int:
    return (number & -number).bit_length() - 1


def _prefix(memory: Memory, rounds: int) -> Floats:
    if rounds == 0:
        return np.zeros(memory.buffers.shape[1])
    prefix: Floats = memory.buffers[_zeros(rounds)]
    return prefix
